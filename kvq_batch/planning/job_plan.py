"""Plans a job: what a run would do and why, and what it is expected to take, before anything is changed.

Planning describes the models, reads the catalog, resolves content ids and compares them with the tables. It opens no
video and writes nothing. `engine.run` starts from exactly this plan.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import catalog_root, read_catalog
from kvq_batch.catalog.selection import filter_shard
from kvq_batch.catalog.stored_rows import known_types, stored_columns
from kvq_batch.config.job import Job, Workers
from kvq_batch.domain.errors import SpecError
from kvq_batch.planning.estimate import DECODE, Cluster, Estimate, WorkerPool, estimate, forecast
from kvq_batch.planning.job_models import JobModels, describe_models
from kvq_batch.planning.past_runs import measured_throughput
from kvq_batch.planning.plan import Plan, check_roots, make_plan, tasks_to_items
from kvq_batch.storage.options import StorageOptions, check_reachable, display_uri
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import CATALOG

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job with everything that a run needs to start."""

    job: Job
    models: JobModels
    catalog: pa.Table
    root: str
    plan: Plan
    estimate: Estimate
    known: Mapping[str, int] = field(default_factory=dict)
    """State of the tables that the plan is based on (`Tables.progress`); empty if there were no tables."""


def plan_job(job: Job) -> JobPlan:
    """Return the plan of `job`.

    Raises:
        SpecError: the job, its catalog, its models or its tables cannot be used. Nothing was changed.
    """
    deadline = job.budget.deadline_after(datetime.now(UTC))
    if deadline is not None and deadline <= datetime.now(UTC):
        raise SpecError(f"budget.deadline = {job.budget.deadline} has passed; set a later one, or a time of day")
    if job.decode.decoder != "auto":
        # Imported here because it loads FFmpeg.
        from kvq_batch.media.decoders import check_installed

        check_installed(job.decode.decoder)
    storage = StorageOptions.from_spec(job.storage)
    check_reachable(job.tables, storage)
    _LOG.info("checking the models")
    models = describe_models(job)
    tables = Tables.open_if_any(job.tables, storage)
    known = CATALOG.arrow() if tables is None else tables.arrow_schema("catalog")
    _LOG.info("reading the catalog %s", display_uri(job.catalog.source))
    # A run of one shard resolves no content ids of other shards, and does not look for removed videos there.
    catalog = filter_shard(read_catalog(job.catalog, storage, known=known_types(known)), job.select.scope)
    # Rejects what a run could not store.
    stored_columns(catalog, known)
    root = catalog_root(job.catalog)
    _LOG.info("resolving the content ids of %d videos", catalog.num_rows)
    catalog = resolve_content_ids(catalog, storage)
    _LOG.info("comparing the catalog with the tables")
    if tables is not None:
        check_roots(tables, catalog, root)
    refs = [model.ref for model in models.models]
    with_features = {model.ref.name for model in models.models if model.stores_features}
    plan = make_plan(tables, catalog, job.catalog_name, refs, job.select, with_features=with_features)
    estimated = estimate_plan(job, models, plan, tables)
    return JobPlan(job, models, catalog, root, plan, estimated, tables.progress(job.select.scope) if tables else {})


def estimate_plan(job: Job, models: JobModels, plan: Plan, tables: Tables | None) -> Estimate:
    """Return the estimate for a run of `plan`, within `budget.max_videos`.

    Raises:
        SpecError: the tables cannot be read.
    """
    num_videos = _num_videos_by_stage(job, models, plan)
    return estimate(
        job_pools(job, models), num_videos, measured_throughput(tables, models), job.prices, block_size(job)
    )


def estimate_cluster(job: Job, num_videos: int, cluster: Cluster, megapixels: float | None = None) -> Estimate:
    """Return the estimate for scoring `num_videos` with all models of `job` on `cluster`; the catalog is not read.

    The videos are assumed to be like those of earlier runs, or of the mean size `megapixels` (frames times frame area).

    Raises:
        SpecError: the models or the tables cannot be used, or no run in the tables has measured what is needed.
    """
    storage = StorageOptions.from_spec(job.storage)
    check_reachable(job.tables, storage)
    models = describe_models(job)
    measured = measured_throughput(Tables.open_if_any(job.tables, storage), models, megapixels)
    return forecast(job_pools(job, models), num_videos, measured, cluster, job.prices, block_size(job))


def job_pools(job: Job, models: JobModels) -> tuple[WorkerPool, ...]:
    """Return the worker pools of the job, with unknown work: decoding, then the models in their order."""
    decode = _pool(DECODE, job.decode.workers, job.decode.workers.num_cpus)
    return (decode, *(_pool(model.ref.name, model.section.workers, model.cores) for model in models.models))


def block_size(job: Job) -> int:
    """Return the number of videos that move from stage to stage together: as many as the largest batch holds."""
    return max(model.batch_size for model in job.models)


def _num_videos_by_stage(job: Job, models: JobModels, plan: Plan) -> dict[str, int]:
    max_videos = job.budget.max_videos
    names = [model.ref.name for model in models.models]
    if max_videos is None or max_videos >= plan.num_videos:
        by_model = {name: sum(counts.get(name, 0) for counts in plan.counts.values()) for name in names}
        return {DECODE: plan.num_videos, **by_model}
    items = tasks_to_items(plan.tasks, models.models, max_videos)
    masks = items["model_mask"].to_numpy()
    return {DECODE: items.num_rows, **{name: int(((masks >> index) & 1).sum()) for index, name in enumerate(names)}}


def _pool(name: str, workers: Workers, cores: float) -> WorkerPool:
    return WorkerPool(name, workers.min, workers.max, cores, workers.num_gpus, None)
