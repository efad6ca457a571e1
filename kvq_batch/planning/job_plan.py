"""What a run of a job would do, and why, worked out before anything is touched.

Models are described, the catalog is read, content ids are found, and the tables are asked what they hold. No video is
opened and nothing is written; `run` starts from exactly this plan.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa

from kvq_batch.catalog.reader import catalog_root, read_catalog, resolve_content_ids
from kvq_batch.catalog.selection import in_shard
from kvq_batch.config.job import Job
from kvq_batch.domain.errors import SpecError
from kvq_batch.planning.estimate import Estimate
from kvq_batch.planning.forecast import Cluster, forecast
from kvq_batch.planning.job_models import JobModels, describe_models
from kvq_batch.planning.plan import Plan, check_roots, make_plan
from kvq_batch.planning.workload import block_size, expected, measured, pools_of
from kvq_batch.storage.options import StorageOptions, check_reachable, display_uri
from kvq_batch.tables.delta import Tables

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
    """How far the tables had come (`Tables.progress`), as the plan knows it; nothing for tables that were not there."""


def plan_job(job: Job) -> JobPlan:
    """Return the plan of `job`.

    Raises:
        SpecError: the job, its catalog, its models or its tables cannot be used; nothing was changed.
    """
    deadline = job.budget.deadline_after(datetime.now(UTC))
    if deadline is not None and deadline <= datetime.now(UTC):
        raise SpecError(f"budget.deadline = {job.budget.deadline} has passed; name a later one, or a time of the day")
    storage = StorageOptions.from_spec(job.storage)
    check_reachable(job.tables, storage)
    _LOG.info("checking the models")
    models = describe_models(job)
    _LOG.info("reading the catalog %s", display_uri(job.catalog.source))
    # The rest of it is none of this run's business: not its content ids, and not whether it left.
    catalog = in_shard(read_catalog(job.catalog, storage), job.select.scope)
    root = catalog_root(job.catalog)
    _LOG.info("resolving the content ids of %d videos", catalog.num_rows)
    catalog = resolve_content_ids(catalog, storage)
    _LOG.info("querying the tables for current scores")
    tables = Tables.open_if_any(job.tables, storage)
    if tables is not None:
        check_roots(tables, catalog, root)
    plan = make_plan(tables, catalog, job.catalog_name, [model.ref for model in models.models], job.select)
    estimate = expected(job, models, plan, tables)
    return JobPlan(job, models, catalog, root, plan, estimate, tables.progress(job.select.scope) if tables else {})


def estimate_cluster(job: Job, num_videos: int, cluster: Cluster, megapixels: float | None = None) -> Estimate:
    """What scoring `num_videos` with all models of `job` is expected to take on `cluster`; its catalog is not read.

    The videos are like those of earlier runs, or of the mean size `megapixels` (frames times their area).

    Raises:
        SpecError: the models or the tables cannot be used, or no run in them tells what is asked.
    """
    storage = StorageOptions.from_spec(job.storage)
    check_reachable(job.tables, storage)
    models = describe_models(job)
    told = measured(Tables.open_if_any(job.tables, storage), models, megapixels)
    return forecast(pools_of(job, models), num_videos, told, cluster, job.prices, block_size(job))
