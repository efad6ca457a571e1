"""A scoring run: the plan's open pairs through the pipeline, every result committed by this one process.

It takes the right to write, follows those who died, works off the plan in rounds, and closes the books however that
ended. This module knows neither decoding nor models.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from kvq_batch.domain.identity import new_run_id
from kvq_batch.engine.decode_worker import DecodeSettings, DecodeWorker
from kvq_batch.engine.metrics import MetricsObserver, RunLabels
from kvq_batch.engine.observer import Observer, SilentObserver
from kvq_batch.engine.pipeline import Cancel, Stage, Stages, blocks_of, results
from kvq_batch.engine.ray_cluster import PreemptionMonitor, cleanup_scratch, ray_cluster
from kvq_batch.engine.recovery import close_crashed_runs
from kvq_batch.engine.retry_loop import Pipeline, record_failure_on_error, run_attempts
from kvq_batch.engine.run_recorder import RunRecorder
from kvq_batch.engine.score_tracker import ScoreTracker
from kvq_batch.engine.score_worker import ScoreSettings, ScoreWorker
from kvq_batch.engine.stopping import Breaker, StopCondition
from kvq_batch.engine.summary import RunSummary, State
from kvq_batch.planning.items import first_items
from kvq_batch.planning.job_plan import JobPlan, plan_again
from kvq_batch.planning.workload import block_size
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, Lease, hold
from kvq_batch.tables.writer import Writer


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says of a run beside its job.

    `decode_worker` is the decoding stage's class (a subclass may name another task for its children); `stop` is set
    to end the run early; `run_id` names the run where somebody must know its name beforehand.
    """

    address: str | None = None
    decode_worker: type[DecodeWorker] = DecodeWorker
    stop: threading.Event | None = None
    run_id: str | None = None


def run_job(plan: JobPlan, observer: Observer | None = None, options: RunOptions = RunOptions()) -> RunSummary:
    """Score what `plan` names and return what came of it; everything finished is committed, whatever ends the run.

    Raises:
        FatalError: the breaker tripped, the tables were taken over, the store or Ray failed.
        SpecError: another run is at work on the tables, or the cluster cannot be used.
    """
    started, observer = datetime.now(UTC), observer or SilentObserver()
    storage = StorageOptions.from_spec(plan.job.storage)
    holder = Holder.this_process(options.run_id or new_run_id(), plan.job.name)
    shard = plan.job.select.scope
    with hold(plan.job.tables, storage, holder, observer.told, shard) as lease:
        writer = Writer(Tables.create(plan.job.tables, storage), holder.run_id, shard=shard)
        for sentence in close_crashed_runs(writer):
            observer.told(sentence)
        # Older writers of these videos are refused from here on, so that what the tables hold now is all that this run
        # has not done.
        if writer.found != plan.known:
            plan = plan_again(plan, observer.told)
        return _run(plan, writer, lease, observer, options, started)


def _run(
    plan: JobPlan, writer: Writer, lease: Lease, observer: Observer, options: RunOptions, started: datetime
) -> RunSummary:
    budget = plan.job.budget
    items = first_items(plan.plan.tasks, plan.models.models, budget.max_videos)
    tracker = ScoreTracker(items, plan.models.models, plan.job.run.max_attempts, Breaker.from_spec(plan.job.run))
    recorder = RunRecorder.open(plan, tracker, writer)
    stop = StopCondition(
        options.stop or threading.Event(), budget.deadline_after(started), budget.max_cost, lambda: recorder.cost
    )
    observer.started(recorder.run_id, items.num_rows)

    def outcome() -> tuple[State, str]:
        if stop.cause is not None and tracker.num_open:
            return "stopped", stop.cause
        if recorder.num_left_out:
            return "stopped", f"budget.max_videos = {budget.max_videos} are done"
        return "finished", ""

    target = options.address or plan.job.run.ray_address
    with record_failure_on_error(recorder):
        # A cluster hears of a night without work, too: else its alarms would take the job for dead.
        if items.num_rows or target is not None:
            pools = [plan.job.decode.workers, *(model.workers for model in plan.job.models)]
            stages = _stages(plan, options)
            with (
                cleanup_scratch(plan.job.decode),
                ray_cluster(pools, target),
                MetricsObserver(
                    _run_labels(plan), tracker, writer, stages.queues, observer, lambda: outcome()[0]
                ) as watch,
            ):
                run_attempts(
                    tracker,
                    recorder,
                    _pipeline(plan, stages),
                    lease,
                    watch,
                    stop,
                    PreemptionMonitor().has_new_preemptions,
                )
    summary = recorder.close(*outcome())
    summary.check()
    return summary


def _run_labels(plan: JobPlan) -> RunLabels:
    closing = [("score", model.ref.name) for model in plan.models.models]
    return RunLabels(plan.job.name, closing, ("fetch", "probe", "decode", "score"), plan.plan.oldest_stale_at)


def _stages(plan: JobPlan, options: RunOptions) -> Stages:
    decode = DecodeSettings.of(plan.job, plan.models.requests)
    pools = [Stage(options.decode_worker, decode, plan.job.decode.workers, "decode")]
    for model_index, model in enumerate(plan.models.models):
        drops, size = plan.models.drops_after(model_index), model.section.batch_size
        settings = ScoreSettings(model.options, model.ref.model_id, model_index, model.request, drops, size)
        pools.append(Stage(ScoreWorker, settings, model.section.workers, "score", model.ref.name))
    return Stages(plan.job.name, pools)


def _pipeline(plan: JobPlan, stages: Stages) -> Pipeline:
    size = block_size(plan.job)

    def run(items: pa.Table, is_alone: bool, cancel: Cancel) -> Iterator[pa.Table]:
        return results(blocks_of(items, 1 if is_alone else size), stages, is_alone, cancel)

    return run
