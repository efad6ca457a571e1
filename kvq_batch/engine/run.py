"""The generic run: execute a plan of any kind and commit its results from this process.

    lease -> close crashed runs -> plan again if the tables changed -> record the plan
          -> open the executor (threads here, or Ray) -> retry loop -> record the outcome

Scoring runs (`engine/score_run.py`) and label runs (`labeling/run.py`) build what differs: a
`PreparedRun`.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from kvq_batch.config.job import Budget, ExecutorName, Job, MediaFiles
from kvq_batch.config.labels import LabelJob
from kvq_batch.domain.identity import new_run_id
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.engine.decode_worker import cleanup_scratch
from kvq_batch.engine.executor.base import Cancel, OpenExecutor, PipelineSpec, PipelineStage, choose_executor
from kvq_batch.engine.executor.local import local_executor
from kvq_batch.engine.metrics import MetricsObserver, RunLabels
from kvq_batch.engine.recovery import close_crashed_runs
from kvq_batch.engine.retry_loop import record_failure_on_error, run_attempts
from kvq_batch.engine.run_recorder import RunRecorder, RunSummary, State
from kvq_batch.engine.stopping import StopCondition
from kvq_batch.engine.work_tracker import Observer, SilentObserver, WorkTracker
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, Lease, hold
from kvq_batch.tables.writer import Writer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run that are not part of its job.

    `address` and `executor` override the job's Ray address and executor. `worker` replaces the class of the first
    stage's workers. Set `stop` to end the run early. `run_id` sets the id of the run, for callers that must know it in
    advance.
    """

    address: str | None = None
    worker: type[Any] | None = None
    stop: threading.Event | None = None
    run_id: str | None = None
    executor: ExecutorName | None = None


DEFAULT_OPTIONS = RunOptions()


class RunPlan(Protocol):
    """A plan that a run can execute: a `JobPlan` or a `LabelPlan`."""

    @property
    def job(self) -> Job | LabelJob: ...

    @property
    def known(self) -> Mapping[str, int]:
        """The progress of the tables (`Tables.progress`) when the plan was made."""
        ...


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """The parts in which scoring runs and label runs differ.

    `make_blocks` cuts items into blocks for a number of workers; True asks for blocks of one item. `decode` is the
    section of the job that names the scratch folders. With `connects_without_work` the run connects to its cluster even
    if there is nothing to do, so that monitoring does not take a nightly job without work for a dead one.
    """

    tracker: WorkTracker
    recorder: RunRecorder
    pipeline: PipelineSpec
    make_blocks: Callable[[pa.Table, bool, int], list[pa.Table]]
    decode: MediaFiles
    labels: RunLabels
    budget: Budget = field(default_factory=Budget)
    connects_without_work: bool = False


PlanT = TypeVar("PlanT", bound=RunPlan)


def execute_run(
    plan: PlanT,
    prepare: Callable[[PlanT, Writer], PreparedRun],
    replan: Callable[[PlanT], PlanT],
    shard: Shard = WHOLE,
    observer: Observer | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
) -> RunSummary:
    """Execute `plan` and return the summary. Finished results are committed, however the run ends.

    `replan` makes the plan again if the tables changed since `plan` was made.

    Raises:
        FatalError: the circuit breaker tripped, another run took over the tables, or the storage or Ray failed.
        SpecError: another run is active on the tables, or the cluster cannot be used.
    """
    started_at = datetime.now(UTC)
    job, storage = plan.job, StorageOptions.from_spec(plan.job.storage)
    holder = Holder.this_process(options.run_id or new_run_id(), job.name)
    with hold(job.tables, storage, holder, shard=shard) as lease:
        # Making the writer fences all older writers of these videos: from here on the tables cannot change under us.
        writer = Writer(Tables.create(job.tables, storage), holder.run_id, shard=shard)
        close_crashed_runs(writer)
        if writer.progress_before != plan.known:
            _LOG.info("the tables changed since the plan was made: planning again")
            plan = replan(plan)
        return _execute(prepare(plan, writer), writer, lease, started_at, observer or SilentObserver(), options)


def _execute(
    run: PreparedRun, writer: Writer, lease: Lease, started_at: datetime, observer: Observer, options: RunOptions
) -> RunSummary:
    tracker, recorder, budget = run.tracker, run.recorder, run.budget
    address, stages = options.address or recorder.job.run.ray_address, run.pipeline.stages
    name, reason = choose_executor(options.executor or recorder.job.run.executor, address, stages, tracker.num_videos)
    recorder.open()
    stop = StopCondition(
        options.stop or threading.Event(), budget.deadline_after(started_at), budget.max_cost, lambda: recorder.cost
    )
    observer.started(recorder.run_id, tracker.num_videos)

    def outcome() -> tuple[State, str]:
        if stop.cause is not None and tracker.num_open:
            return "stopped", stop.cause
        if recorder.num_left_out:
            return "stopped", f"reached budget.max_videos = {budget.max_videos}"
        return "finished", ""

    with record_failure_on_error(recorder):
        if tracker.num_videos or run.connects_without_work:
            with ExitStack() as stack:
                stack.enter_context(cleanup_scratch(run.decode))
                _LOG.info("executor: %s (%s)", name, reason)
                executor = stack.enter_context(_open_executor(name, stages, address))
                recorder.note_cores(executor.num_cores)
                spec = run.pipeline.on(executor.num_cores)

                def pipeline(items: pa.Table, is_alone: bool, cancel: Cancel) -> Iterator[pa.Table]:
                    blocks = run.make_blocks(items, is_alone, spec.stages[0].workers.max)
                    return executor.results(blocks, spec, is_alone, cancel)

                if executor.exports_metrics:
                    metrics = MetricsObserver(
                        run.labels, tracker, writer, run.pipeline.queues, observer, lambda: outcome()[0]
                    )
                    observer = stack.enter_context(metrics)
                run_attempts(tracker, recorder, pipeline, lease, observer, stop, executor.has_new_preemptions)
    summary = recorder.close(*outcome())
    summary.check()
    return summary


def _open_executor(name: ExecutorName, stages: Sequence[PipelineStage], address: str | None) -> OpenExecutor:
    if name == "local":
        return local_executor()
    # Imported here because importing Ray takes a second.
    from kvq_batch.engine.executor.ray import ray_executor

    return ray_executor([stage.workers for stage in stages], address)
