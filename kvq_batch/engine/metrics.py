"""Prometheus metrics of a run: their declarations, the instrumentation of workers, and the observer that exports them.

Ray exports the metrics. It prefixes each name with `ray_`, adds labels of its own (node, session, worker) and sums the
processes of a node. Each process sends its values to the agent of its node every 10 s; without an agent Ray drops them
silently.

Labels have few values by design: job, stage, model, outcome, error; never a video. The label of the job is `job_name`,
because Prometheus uses `job` itself. Seconds whose sum matters are counters, not histograms: Ray keeps only the bucket
counts of a histogram and estimates the sum.

Workers import this module too, so the types of the driver are imported for type checking only.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import pyarrow as pa

if TYPE_CHECKING:
    from kvq_batch.engine.executor.base import Queues
    from kvq_batch.engine.rows import Row
    from kvq_batch.engine.run_recorder import State
    from kvq_batch.engine.work_tracker import Observer, Work, WorkTracker
    from kvq_batch.tables.writer import Writer

REPEAT_S = 5.0
"""Seconds between two exports of the gauges. Ray sends values every 10 s and drops a gauge that is silent for 20 s."""

Kind = Literal["counter", "gauge", "histogram"]

_STAGE_TAGS = ("job_name", "stage", "model")

_STATES: tuple["State", ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """Declaration of one metric: name without Ray's prefix, kind, one line of help, labels, buckets of a histogram."""

    name: str
    kind: Kind
    description: str
    tags: tuple[str, ...] = ("job_name",)
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names of the series in Prometheus."""
        endings = ("_bucket", "_count", "_sum") if self.kind == "histogram" else ("",)
        return tuple(f"ray_{self.name}{ending}" for ending in endings)


RUNS_STARTED = MetricSpec("kvq_batch_runs_started_total", "counter", "Runs that started.")
RUNS_ENDED = MetricSpec(
    "kvq_batch_runs_ended_total",
    "counter",
    "Runs that ended, by state: finished, stopped (by a budget or a user) or failed.",
    ("job_name", "state"),
)
RUN_ACTIVE = MetricSpec("kvq_batch_run_active", "gauge", "1 while a run is active; disappears 20 s after its driver.")
VIDEOS = MetricSpec(
    "kvq_batch_videos_total",
    "counter",
    "Committed outcomes, one per video and model: scored, failed (for this run) or retried, at the stage of the "
    "outcome. Label runs count renditions, under the model 'labels'.",
    (*_STAGE_TAGS, "outcome"),
)
FAILURES = MetricSpec(
    "kvq_batch_failures_total",
    "counter",
    "Committed failures, of last and of earlier attempts, by error class.",
    (*_STAGE_TAGS, "error"),
)
OPEN_TASKS = MetricSpec("kvq_batch_open_tasks", "gauge", "Tasks (scores or labels) that the run has not finished yet.")
QUEUED_BLOCKS = MetricSpec(
    "kvq_batch_queued_blocks", "gauge", "Blocks that wait for a worker of the stage.", _STAGE_TAGS
)
LOW_SCORES = MetricSpec(
    "kvq_batch_low_scores_total",
    "counter",
    "Committed scores below the 5th percentile of earlier scores of the model; absent with fewer than 1000 of them.",
    ("job_name", "model"),
)
WORK_SECONDS = MetricSpec(
    "kvq_batch_work_seconds_total",
    "counter",
    "Seconds of fetching, decoding and scoring (or labelling) in returned results; fetching overlaps decoding.",
    _STAGE_TAGS,
)
WORKER_SECONDS = MetricSpec(
    "kvq_batch_worker_seconds_total",
    "counter",
    "Seconds that workers of a pool were starting, busy or waiting (for input, or for room in the output).",
    (*_STAGE_TAGS, "state"),
)
FETCHED_BYTES = MetricSpec("kvq_batch_fetched_bytes_total", "counter", "Bytes of the decoded videos.")
WRITTEN_BYTES = MetricSpec("kvq_batch_written_bytes_total", "counter", "Bytes of the committed data files.")
COMMIT_SECONDS = MetricSpec(
    "kvq_batch_commit_seconds",
    "histogram",
    "Duration of result commits, data files included; Ray estimates the sum from the buckets.",
    boundaries=(0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
LAST_COMMIT = MetricSpec(
    "kvq_batch_last_commit_timestamp_seconds",
    "gauge",
    "Time of the run's last commit of results, or of its start before the first one; Unix time.",
)
OLDEST_STALE = MetricSpec(
    "kvq_batch_oldest_stale_score_timestamp_seconds",
    "gauge",
    "Time of the oldest score that the plan replaces; if it replaces none, the time of the plan. Unix time.",
)

METRICS = (
    RUNS_STARTED,
    RUNS_ENDED,
    RUN_ACTIVE,
    VIDEOS,
    FAILURES,
    LOW_SCORES,
    OPEN_TASKS,
    QUEUED_BLOCKS,
    WORK_SECONDS,
    WORKER_SECONDS,
    FETCHED_BYTES,
    WRITTEN_BYTES,
    COMMIT_SECONDS,
    LAST_COMMIT,
    OLDEST_STALE,
)


class Telemetry:
    """Exports values of this process with `tags` on each; does nothing outside a Ray process."""

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)
        self._metrics: dict[str, Any] = {}

    def initialize(self, counter: MetricSpec, **tags: str) -> None:
        """Export the counter before its first event.

        `rate` and `increase` do not see the first event of a series that starts with it.
        """
        # Imported here because it imports Ray Data, which only the driver of a Ray run needs.
        from kvq_batch.engine.ray_internals import export_zero

        export_zero(self._metric(counter), self._tags | tags)

    def add(self, counter: MetricSpec, value: float, **tags: str) -> None:
        """Add `value` to the counter; values that are not positive are ignored."""
        if value > 0:
            self._metric(counter).inc(value, self._tags | tags)

    def set(self, gauge: MetricSpec, value: float, **tags: str) -> None:
        """Set the gauge to `value` for 20 s, after which Ray drops it."""
        self._metric(gauge).set(value, self._tags | tags)

    def observe(self, histogram: MetricSpec, value: float, **tags: str) -> None:
        """Record one event of size `value`."""
        self._metric(histogram).observe(value, self._tags | tags)

    def _metric(self, spec: MetricSpec) -> Any:
        if spec.name not in self._metrics:
            self._metrics[spec.name] = _make_ray_metric(spec)
        return self._metrics[spec.name]


def _make_ray_metric(spec: MetricSpec) -> Any:
    from ray.util import metrics as ray_metrics

    match spec.kind:
        case "counter":
            return ray_metrics.Counter(spec.name, spec.description, spec.tags)
        case "gauge":
            return ray_metrics.Gauge(spec.name, spec.description, spec.tags)
        case "histogram":
            return ray_metrics.Histogram(spec.name, spec.description, list(spec.boundaries), spec.tags)


def instrument(worker: type, tags: Mapping[str, str]) -> type:
    """Return a class that works like `worker` and also exports how long it was starting, busy and waiting.

    It keeps the name of `worker`, which is how Ray names its processes. Ray may lose the last 10 s before a worker
    ends.
    """
    return type(worker.__name__, (_InstrumentedWorker,), {"worker": worker, "tags": dict(tags)})


class _InstrumentedWorker:
    """Ray Data callable that wraps an instance of `worker`; tables pass through unchanged."""

    worker: ClassVar[type]
    tags: ClassVar[Mapping[str, str]]

    def __init__(self, settings: object) -> None:
        self._telemetry = Telemetry(self.tags)
        self._since = time.perf_counter()
        self._worker: Any = self.worker(settings)
        self._record("starting")

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        self._record("waiting")
        output = self._worker(rows)
        tables = iter((output,)) if isinstance(output, pa.Table) else output
        del output
        # A one-element list instead of a variable: nothing here keeps the frames of a yielded table alive.
        while table := [*islice(tables, 1)]:
            self._record("busy")
            yield table.pop()
            self._record("waiting")
        self._record("busy")

    def _record(self, state: str) -> None:
        now = time.perf_counter()
        self._telemetry.add(WORKER_SECONDS, now - self._since, state=state)
        self._since = now


@dataclass(frozen=True, slots=True)
class RunLabels:
    """Labels that the metrics of one run use.

    `result_stages` are the stages that produce results, each with its model; `failure_stages` are the stages that can
    fail. `oldest_stale_at` is the time of the oldest score that the plan replaces, or None. `find_low_bounds` returns
    {model: raw score below which a score counts as low}.
    """

    job_name: str
    result_stages: Sequence["Work"]
    failure_stages: Sequence[str]
    oldest_stale_at: datetime | None = None
    find_low_bounds: Callable[[], Mapping[str, float]] = dict


class MetricsObserver:
    """Observer that exports the metrics of a run and forwards each event to `observer`.

    A context manager around the run. An exception ends the run as failed; otherwise `outcome` returns its state. Only
    whole tables and commits are counted, never single videos. A thread repeats the gauges, because Ray drops a gauge
    that is silent for 20 s, which is less than a slow block takes. A run without work exports its start, its end and
    the age of its scores like any other.
    """

    def __init__(
        self,
        labels: RunLabels,
        tracker: "WorkTracker",
        writer: "Writer",
        queues: "Queues",
        observer: "Observer",
        outcome: Callable[[], "State"],
    ) -> None:
        self._labels = labels
        self._tracker = tracker
        self._writer = writer
        self._queues = queues
        self._observer = observer
        self._outcome = outcome
        self._telemetry = Telemetry({"job_name": labels.job_name})
        self._exported_work: Mapping[Work, float] = {}
        self._exported_bytes = 0
        self._result_stages = {model: stage for stage, model in labels.result_stages}
        self._low_bounds: Mapping[str, float] = {}
        self._last_commit = time.time()
        stale_at = labels.oldest_stale_at
        self._oldest_stale = self._last_commit if stale_at is None else stale_at.timestamp()
        self._ended = threading.Event()
        self._repeater = threading.Thread(target=self._repeat_gauges, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._telemetry.add(RUNS_STARTED, 1)
        for state in _STATES:
            self._telemetry.initialize(RUNS_ENDED, state=state)
        for stage, model in self._labels.result_stages:
            self._telemetry.initialize(VIDEOS, stage=stage, model=model, outcome="scored")
            for failure_stage in self._labels.failure_stages:
                self._telemetry.initialize(VIDEOS, stage=failure_stage, model=model, outcome="failed")
        self._low_bounds = self._labels.find_low_bounds()
        for model in self._low_bounds:
            self._telemetry.initialize(LOW_SCORES, model=model)
        self._repeater.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        state = "failed" if kind is not None else self._outcome()
        self._ended.set()
        self._repeater.join()
        self._telemetry.add(RUNS_ENDED, 1, state=state)
        if state == "finished" and not self._tracker.num_failed:
            self._oldest_stale = time.time()
        self._export_gauges()
        self._telemetry.set(RUN_ACTIVE, 0)

    def started(self, run_id: str, num_videos: int) -> None:
        self._observer.started(run_id, num_videos)

    def progressed(self, tracker: "WorkTracker") -> None:
        work = tracker.work_s
        for (stage, model), seconds in work.items():
            increase = seconds - self._exported_work.get((stage, model), 0.0)
            self._telemetry.add(WORK_SECONDS, increase, stage=stage, model=model)
        self._telemetry.add(FETCHED_BYTES, tracker.fetched_bytes - self._exported_bytes)
        self._exported_work, self._exported_bytes = work, tracker.fetched_bytes
        self._observer.progressed(tracker)

    def committed(self, scores: Sequence["Row"], failures: Sequence["Row"]) -> None:
        self._last_commit = time.time()
        self._telemetry.observe(COMMIT_SECONDS, self._writer.last_commit.seconds)
        self._telemetry.add(WRITTEN_BYTES, self._writer.last_commit.size_bytes)
        # Label rows have no model name; a label run has one result stage only.
        (first_model, *_) = self._result_stages
        for model, num in Counter(row.get("model_name", first_model) for row in scores).items():
            stage = self._result_stages[model]
            self._telemetry.add(VIDEOS, num, stage=stage, model=model, outcome="scored")
        for model, low in self._low_bounds.items():
            own = [row["raw_score"] for row in scores if row.get("model_name") == model]
            self._telemetry.add(LOW_SCORES, sum(score is not None and score < low for score in own), model=model)
        for (stage, model, final), num in Counter(
            (row["stage"], row["model_name"], row["final"]) for row in failures
        ).items():
            outcome = "failed" if final else "retried"
            self._telemetry.add(VIDEOS, num, stage=stage, model=model, outcome=outcome)
        for (stage, model, error), num in Counter(
            (row["stage"], row["model_name"], row["error"]) for row in failures
        ).items():
            self._telemetry.add(FAILURES, num, stage=stage, model=model, error=error)
        self._observer.committed(scores, failures)

    def _repeat_gauges(self) -> None:
        self._export_gauges()
        while not self._ended.wait(REPEAT_S):
            self._export_gauges()

    def _export_gauges(self) -> None:
        self._telemetry.set(RUN_ACTIVE, 1)
        self._telemetry.set(OPEN_TASKS, self._tracker.num_open)
        self._telemetry.set(LAST_COMMIT, self._last_commit)
        self._telemetry.set(OLDEST_STALE, self._oldest_stale)
        for (stage, model), num in self._queues.lengths.items():
            self._telemetry.set(QUEUED_BLOCKS, num, stage=stage, model=model)
