"""What a run tells a Prometheus, all of it declared here, and told through Ray's own metrics.

Ray puts `ray_` before each name and its own labels beside ours (node, session, worker), and adds what processes of one
node tell. A value goes to the node's agent every ten seconds, and is dropped in silence where there is none. Labels of
ours are few by nature: job, stage, model, outcome, error; never a video. The job's label is `job_name`, because `job`
is Prometheus' own. Seconds are counters and no histograms where their sum matters: of a histogram Ray keeps the counts
of its buckets alone and guesses the sum. This module times nothing and serves nothing.

Workers of any stage that also tell how long they were starting, busy and waiting.

One place for all stages, around the worker and not in it. What a worker was given and what it makes pass through
untouched; this module knows nothing of either. Seconds of the last ten seconds before a worker's end may never be told.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, Literal

import pyarrow as pa
from ray.util import metrics as ray_metrics

Kind = Literal["counter", "gauge", "histogram"]

_STAGE_TAGS = ("job_name", "stage", "model")


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: its name without Ray's prefix, what it is, one line about it, the labels, the buckets."""

    name: str
    kind: Kind
    description: str
    tags: tuple[str, ...] = ("job_name",)
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names that a Prometheus finds."""
        endings = ("_bucket", "_count", "_sum") if self.kind == "histogram" else ("",)
        return tuple(f"ray_{self.name}{ending}" for ending in endings)


RUNS_BEGUN = MetricSpec("kvq_batch_runs_begun_total", "counter", "Runs that began to work.")
RUNS_ENDED = MetricSpec(
    "kvq_batch_runs_ended_total",
    "counter",
    "Runs that ended, by state: finished, stopped (by a budget or a person) or failed.",
    ("job_name", "state"),
)
RUN_ACTIVE = MetricSpec("kvq_batch_run_active", "gauge", "1 while a run is at work; gone 20 s after its driver.")
VIDEOS = MetricSpec(
    "kvq_batch_videos_total",
    "counter",
    "Committed outcomes of videos, one for each model: scored, failed (for this run), retried; at the stage where it "
    "ended. Of a run that makes labels: versions, under the model 'labels'.",
    (*_STAGE_TAGS, "outcome"),
)
FAILURES = MetricSpec(
    "kvq_batch_failures_total",
    "counter",
    "Committed failures, of the last try and of those before, by the error's class.",
    (*_STAGE_TAGS, "error"),
)
OPEN = MetricSpec("kvq_batch_open_scores", "gauge", "Scores (or labels) that the run has still to make.")
QUEUED = MetricSpec("kvq_batch_queued_blocks", "gauge", "Blocks that wait for a worker of the stage.", _STAGE_TAGS)
WORK_SECONDS = MetricSpec(
    "kvq_batch_work_seconds_total",
    "counter",
    "Seconds of fetching, decoding, scoring (or labelling) of what came back; fetching overlaps decoding.",
    _STAGE_TAGS,
)
WORKER_SECONDS = MetricSpec(
    "kvq_batch_worker_seconds_total",
    "counter",
    "Seconds that workers of a pool were starting, busy or waiting (for input, or for room to hand on).",
    (*_STAGE_TAGS, "state"),
)
FETCHED_BYTES = MetricSpec("kvq_batch_fetched_bytes_total", "counter", "Bytes of the videos that were decoded.")
WRITTEN_BYTES = MetricSpec("kvq_batch_written_bytes_total", "counter", "Bytes of the parts that were committed.")
COMMIT_SECONDS = MetricSpec(
    "kvq_batch_commit_seconds",
    "histogram",
    "Commits of results, with all of their parts; the sum is Ray's guess from the buckets.",
    boundaries=(0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
LAST_COMMIT = MetricSpec(
    "kvq_batch_last_commit_timestamp_seconds", "gauge", "When the run last committed results, or else began; Unix time."
)
OLDEST_STALE = MetricSpec(
    "kvq_batch_oldest_stale_score_timestamp_seconds",
    "gauge",
    "When the oldest score was made that is due to be replaced, as the plan found it; where none is, the moment of "
    "that knowledge. Unix time.",
)

METRICS = (
    RUNS_BEGUN,
    RUNS_ENDED,
    RUN_ACTIVE,
    VIDEOS,
    FAILURES,
    OPEN,
    QUEUED,
    WORK_SECONDS,
    WORKER_SECONDS,
    FETCHED_BYTES,
    WRITTEN_BYTES,
    COMMIT_SECONDS,
    LAST_COMMIT,
    OLDEST_STALE,
)

_KINDS: Mapping[Kind, Any] = {"counter": ray_metrics.Counter, "gauge": ray_metrics.Gauge}


@dataclass(slots=True)
class Queues:
    """Blocks that wait for each (stage, model), as Ray Data last saw them in this process; empty in any other."""

    stages: tuple[tuple[str, str], ...] = ()
    lengths: dict[tuple[str, str], int] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type["Queues"], tuple[()]]:
        return (Queues, ())


class Telemetry:
    """Tells values from this process, with `tags` on each of them; only while the process belongs to a Ray."""

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)
        self._made: dict[str, Any] = {}

    def begin(self, counter: MetricSpec, **tags: str) -> None:
        """The counter is there, and 0 if nothing was counted: the first event then is an increase as any other."""
        # `inc` takes nothing below what it counts, and a counter that begins with its first event hides it from
        # `rate` and `increase`.
        self._metric(counter)._record(0.0, self._tags | tags)

    def add(self, counter: MetricSpec, value: float, **tags: str) -> None:
        """Counts `value` more; what is not above 0 is not counted."""
        if value > 0:
            self._metric(counter).inc(value, self._tags | tags)

    def set(self, gauge: MetricSpec, value: float, **tags: str) -> None:
        """The gauge stands at `value` for 20 s, unless it is set again."""
        self._metric(gauge).set(value, self._tags | tags)

    def observe(self, histogram: MetricSpec, value: float, **tags: str) -> None:
        """One event of so many units."""
        self._metric(histogram).observe(value, self._tags | tags)

    def _metric(self, declared: MetricSpec) -> Any:
        if declared.name not in self._made:
            self._made[declared.name] = _ray_metric(declared)
        return self._made[declared.name]


def _ray_metric(declared: MetricSpec) -> Any:
    if declared.kind == "histogram":
        return ray_metrics.Histogram(declared.name, declared.description, list(declared.boundaries), declared.tags)
    return _KINDS[declared.kind](declared.name, declared.description, declared.tags)


class _Instrumented:
    """A callable for Ray Data around an instance of `worker`."""

    worker: ClassVar[type]
    tags: ClassVar[Mapping[str, str]]

    def __init__(self, settings: object) -> None:
        self._telemetry = Telemetry(self.tags)
        self._since = time.perf_counter()
        self._worker: Any = self.worker(settings)
        self._spent("starting")

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        self._spent("waiting")
        made = self._worker(rows)
        tables = iter((made,)) if isinstance(made, pa.Table) else made
        del made
        # A list, so that nothing here holds the frames of a table that was handed on.
        while table := [*islice(tables, 1)]:
            self._spent("busy")
            yield table.pop()
            self._spent("waiting")
        self._spent("busy")

    def _spent(self, state: str) -> None:
        now = time.perf_counter()
        self._telemetry.add(WORKER_SECONDS, now - self._since, state=state)
        self._since = now


def instrument(worker: type, tags: Mapping[str, str]) -> type:
    """A class that works as `worker` does and is called like it, which is how Ray names its processes."""
    return type(worker.__name__, (_Instrumented,), {"worker": worker, "tags": dict(tags)})
