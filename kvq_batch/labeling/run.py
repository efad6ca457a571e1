"""A run that makes labels: the plan's versions through one pool of workers, every label committed by this one process.

The same bookkeeping as a scoring run: the right to write, the dead followed, rounds, one writer, books that are closed
however it ended. This module touches no pixel.
"""

import json
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from kvq_batch.config.labels import RENDITIONS_PER_BLOCK
from kvq_batch.domain.errors import FatalError
from kvq_batch.domain.identity import new_run_id
from kvq_batch.engine.metrics import MetricsObserver, RunLabels
from kvq_batch.engine.observer import Observer, SilentObserver
from kvq_batch.engine.pipeline import Cancel, Stage, Stages, results
from kvq_batch.engine.ray_cluster import PreemptionMonitor, cleanup_scratch, ray_cluster
from kvq_batch.engine.recovery import close_crashed_runs
from kvq_batch.engine.retry_loop import Pipeline, record_failure_on_error, run_attempts
from kvq_batch.engine.stopping import Breaker, StopCondition
from kvq_batch.engine.summary import State
from kvq_batch.labeling.label_index import LABELS_MODEL
from kvq_batch.labeling.planning import LabelPlan, label_blocks, plan_labels_again
from kvq_batch.labeling.tracker import LabelTracker
from kvq_batch.labeling.worker import LabelSettings, LabelWorker
from kvq_batch.media.ffmpeg import ffmpeg_version
from kvq_batch.planning.plan_store import store_plan
from kvq_batch.storage.options import StorageOptions, display_uri
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer

RECORDED_VERSIONS = ("kvq-batch", "ray", "av", "numpy", "pillow", "pyarrow", "deltalake", "imageio-ffmpeg")


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """The outcome of one run; counts are of versions."""

    run_id: str
    state: State
    num_sources: int
    num_segments: int
    num_planned: int
    num_made: int
    num_failed: int
    num_remaining: int
    num_retried: int
    seconds: float
    make_s: float
    message: str = ""

    def check(self) -> None:
        """Raises FatalError where the books do not balance."""
        total = self.num_made + self.num_failed + self.num_remaining
        if total != self.num_planned or (self.state == "finished" and self.num_remaining):
            raise FatalError(
                f"run {self.run_id}: {self.num_planned} labels were planned, but {self.num_made} made, "
                f"{self.num_failed} failed and {self.num_remaining} not reached make {total}: please report this"
            )

    @property
    def failure_share(self) -> float:
        return self.num_failed / self.num_planned if self.num_planned else 0.0

    @property
    def labels_per_worker_hour(self) -> float:
        """Labels by hour of a worker at work; on a machine with a core for each, that is a core-hour."""
        return 3600 * self.num_made / self.make_s if self.make_s else 0.0


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """What the command line says of a run beside its job; `worker` may be a subclass, `run_id` names the
    run where somebody must know its name beforehand."""

    address: str | None = None
    worker: type[LabelWorker] = LabelWorker
    stop: threading.Event | None = None
    run_id: str | None = None


def run_labels(
    plan: LabelPlan, observer: Observer | None = None, options: LabelOptions = LabelOptions()
) -> LabelSummary:
    """Makes what `plan` names and returns what came of it; everything finished is committed, whatever ends the run.

    Raises:
        FatalError: the breaker tripped, the tables were taken over, the store or Ray failed.
        SpecError: another run is at work on the tables, or the cluster cannot be used.
    """
    observer = observer or SilentObserver()
    storage = StorageOptions.from_spec(plan.job.storage)
    holder = Holder.this_process(options.run_id or new_run_id(), plan.job.name)
    with hold(plan.job.tables, storage, holder, observer.told) as lease:
        writer = Writer(Tables.create(plan.job.tables, storage), holder.run_id)
        for sentence in close_crashed_runs(writer):
            observer.told(sentence)
        if writer.found != plan.known:
            plan = plan_labels_again(plan, observer.told)
        job, stop = plan.job, StopCondition(options.stop or threading.Event())
        tracker = LabelTracker(plan.renditions, job.run.max_attempts, Breaker.from_spec(job.run))
        recorder = LabelRecorder(plan, tracker, writer)
        recorder.open()
        observer.started(writer.run_id, plan.renditions.num_rows)

        def outcome() -> tuple[State, str]:
            return ("stopped", stop.cause) if stop.cause is not None and tracker.num_open else ("finished", "")

        with record_failure_on_error(recorder):
            if plan.renditions.num_rows:
                stages = _stages(plan, options)
                with (
                    cleanup_scratch(job.make),
                    ray_cluster([job.make.workers], options.address or job.run.ray_address),
                    MetricsObserver(
                        _run_labels(plan), tracker, writer, stages.queues, observer, lambda: outcome()[0]
                    ) as watch,
                ):
                    run_attempts(
                        tracker,
                        recorder,
                        _pipeline(stages),
                        lease,
                        watch,
                        stop,
                        PreemptionMonitor().has_new_preemptions,
                    )
        summary = recorder.close(*outcome())
        summary.check()
        return summary


def _run_labels(plan: LabelPlan) -> RunLabels:
    return RunLabels(plan.job.name, [("label", LABELS_MODEL)], ("fetch", "probe", "decode", "label"))


def _stages(plan: LabelPlan, options: LabelOptions) -> Stages:
    settings, workers = LabelSettings.of(plan.job), plan.job.make.workers
    return Stages(plan.job.name, [Stage(options.worker, settings, workers, "label", LABELS_MODEL)])


def _pipeline(stages: Stages) -> Pipeline:
    def run(renditions: pa.Table, is_alone: bool, cancel: Cancel) -> Iterator[pa.Table]:
        blocks = label_blocks(renditions, 1 if is_alone else RENDITIONS_PER_BLOCK)
        return results(blocks, stages, is_alone, cancel)

    return run


class LabelRecorder:
    """The open account of one run in the tables: its plan, its commits, its row in `runs`."""

    def __init__(self, plan: LabelPlan, tracker: LabelTracker, writer: Writer) -> None:
        self._plan = plan
        self._tracker = tracker
        self._writer = writer
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._committed = time.monotonic()
        self._first_result: float | None = None
        self._num_unsaved_labels = 0
        self._num_unsaved_failures = 0

    def open(self) -> None:
        """Writes down what the run sets out to do, before it does any of it."""
        store_plan(self._writer.tables, self._writer.run_id, self._plan.renditions)
        self._write_run(self._summary("running", ""))

    def note_result(self) -> None:
        """Results arrive: from the first of them on, starting is over."""
        if self._first_result is None:
            self._first_result = time.monotonic()

    def commit_when_due(self, observer: Observer) -> None:
        """Commits what is finished, at most every `run.commit_every_s` seconds."""
        if time.monotonic() - self._committed >= self._plan.job.run.commit_every_s:
            self.commit(observer)

    def commit(self, observer: Observer) -> None:
        """Commits what is finished."""
        labels, failures = self._tracker.take_labels(), self._tracker.take_failures()
        if labels or failures:
            try:
                self._writer.commit_labels(make_rows("labels", labels), make_rows("failures", failures))
            except FatalError:
                # Labels that are not in the tables do not count: a later run makes them again.
                self._num_unsaved_labels += len(labels)
                self._num_unsaved_failures += sum(row["final"] for row in failures)
                raise
            observer.committed(labels, failures)
        self._committed = time.monotonic()

    def close(self, state: State, message: str = "") -> LabelSummary:
        """Writes the outcome and returns it."""
        summary = self._summary(state, message)
        self._write_run(summary)
        return summary

    def _summary(self, state: State, message: str) -> LabelSummary:
        plan, tracker = self._plan, self._tracker
        return LabelSummary(
            run_id=self._writer.run_id,
            state=state,
            num_sources=plan.num_sources,
            num_segments=plan.num_segments,
            num_planned=plan.renditions.num_rows,
            num_made=tracker.num_scored - self._num_unsaved_labels,
            num_failed=tracker.num_failed - self._num_unsaved_failures,
            num_remaining=tracker.num_open + self._num_unsaved_labels + self._num_unsaved_failures,
            num_retried=tracker.num_retried,
            seconds=time.monotonic() - self._started,
            make_s=tracker.make_s,
            message=message,
        )

    def _write_run(self, summary: LabelSummary) -> None:
        job, is_over = self._plan.job, summary.state != "running"
        row: dict[str, Any] = {
            "job": job.name,
            "job_spec": json.dumps(_shown(self._plan)),
            "catalog": job.name,
            "catalog_root": "",
            "state": summary.state,
            "models": [],
            "num_videos": summary.num_sources,
            "num_planned": summary.num_planned,
            "planned_by_reason": [("new", summary.num_planned)],
            "num_scored": summary.num_made,
            "num_failed": summary.num_failed,
            "num_remaining": summary.num_remaining,
            "num_removed": 0,
            "started_at": self._started_at,
            "finished_at": datetime.now(UTC) if is_over else None,
            "seconds": summary.seconds if is_over else None,
            "startup_s": self._first_result - self._started if self._first_result is not None else None,
            "versions": [
                *((name, version(name)) for name in RECORDED_VERSIONS),
                ("ffmpeg", ffmpeg_version()),
                ("python", platform.python_version()),
            ],
            "message": summary.message,
        }
        self._writer.write_run(make_rows("runs", [row]))


def _shown(plan: LabelPlan) -> dict[str, Any]:
    """The job as it may be stored: addresses without what was signed into them."""
    spec = plan.job.model_dump(mode="json")
    spec["tables"] = display_uri(plan.job.tables)
    spec["keep"] = None if plan.job.keep is None else display_uri(plan.job.keep)
    for section, source in zip(spec["sources"], plan.job.sources, strict=True):
        section["source"] = display_uri(source.source)
    return spec
