"""A job's pools and their work, as the estimate counts them: what is planned, what earlier runs measured, what is done.

Decoding and fetching overlap within a worker, so its work is the longer of the two. This module computes no estimate
itself and writes nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvq_batch.config.job import Job, Workers
from kvq_batch.planning.estimate import DECODE, Estimate, PastRun, Stage, Throughput, estimate, throughput
from kvq_batch.planning.items import first_items
from kvq_batch.planning.job_models import JobModel, JobModels
from kvq_batch.planning.past_runs import RunFacts, decode_by_size, past_runs
from kvq_batch.planning.plan import Plan
from kvq_batch.tables.delta import Tables


def pools_of(job: Job, models: JobModels) -> tuple[Stage, ...]:
    """The pools of the job without any work: decoding, then the models in their order."""
    decode = _stage(DECODE, job.decode.workers, job.decode.workers.num_cpus)
    return (decode, *(_stage(model.ref.name, model.section.workers, _cores(model)) for model in models.models))


def expected(job: Job, models: JobModels, plan: Plan, tables: Tables | None) -> Estimate:
    """What a run of `plan` is expected to take, within `budget.max_videos`. Raises: SpecError for unreadable tables."""
    videos = _videos_by_stage(job, models, plan)
    return estimate(pools_of(job, models), videos, measured(tables, models), job.prices, block_size(job))


def measured(tables: Tables | None, models: JobModels, megapixels: float | None = None) -> Throughput:
    """What earlier runs in these tables say of these models, for videos of the mean size `megapixels` where given.

    Raises:
        SpecError: unreadable tables, or sizes of which they know nothing.
    """
    if tables is None:
        return Throughput()
    model_mask = [(model.ref.name, model.ref.fingerprint, model.section.device) for model in models.models]
    runs = past_runs(tables, model_mask)
    found = throughput([_past(run) for run in runs])
    if megapixels is None or not found.num_runs:
        return found
    mean, slope_s = decode_by_size(tables, runs) or (None, None)
    return replace(found, megapixels=mean, decode_megapixel_s=slope_s).at_megapixels(megapixels)


def block_size(job: Job) -> int:
    """Videos that go from stage to stage together: what fills the largest batch."""
    return max(model.batch_size for model in job.models)


def _videos_by_stage(job: Job, models: JobModels, plan: Plan) -> dict[str, int]:
    most = job.budget.max_videos
    if most is None or most >= plan.num_videos:
        by_model = {
            model.ref.name: sum(of.get(model.ref.name, 0) for of in plan.counts.values()) for model in models.models
        }
        return {DECODE: plan.num_videos, **by_model}
    items = first_items(plan.tasks, models.models, most)
    masks = items["model_mask"].to_numpy()
    return {
        DECODE: items.num_rows,
        **{model.ref.name: int(((masks >> model_index) & 1).sum()) for model_index, model in enumerate(models.models)},
    }


def _past(run: RunFacts) -> PastRun:
    sections: list[Mapping[str, Any]] = run.job_spec["models"]
    stages = [_stored(DECODE, run.job_spec["decode"]["workers"], run.decode_work_s)]
    stages += [_stored(model["name"], model["workers"], run.score_work_s[model["name"]]) for model in sections]
    alike = {name: num for name, num in run.num_scored.items() if name in run.alike}
    largest = max(model["batch_size"] for model in sections)
    return PastRun(run.seconds, run.startup_s, tuple(stages), alike, max(run.num_scored.values()), largest)


def _stored(name: str, workers: Mapping[str, Any], work_s: float) -> Stage:
    return Stage(name, workers["min"], workers["max"], workers["num_cpus"], workers["num_gpus"], work_s)


def _stage(name: str, workers: Workers, cores: float) -> Stage:
    return Stage(name, workers.min, workers.max, cores, workers.num_gpus, None)


def _cores(model: JobModel) -> float:
    """Cores that one worker keeps busy: on a CPU its threads, even where it reserves less."""
    threads = model.options.num_threads or 1
    cpus = model.section.workers.num_cpus
    return max(cpus, float(threads)) if model.section.device == "cpu" else cpus
