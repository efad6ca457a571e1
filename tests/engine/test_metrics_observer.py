"""`MetricsObserver`: the values that it exports for each way a run ends, recorded without Ray."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from kvq_batch.domain.errors import FatalError, FetchError, LabelError
from kvq_batch.engine import metrics
from kvq_batch.engine.executor.base import Cancel, Queues
from kvq_batch.engine.metrics import MetricsObserver, MetricSpec, RunLabels
from kvq_batch.engine.retry_loop import record_failure_on_error, run_attempts
from kvq_batch.engine.rows import Row
from kvq_batch.engine.run_recorder import State
from kvq_batch.engine.stopping import StopCondition
from kvq_batch.engine.work_tracker import Observer, SilentObserver, WorkTracker
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.writer import Writer
from tests.engine.test_score_tracker import failed, scored, tracker_of

FAILING = ("fetch", "probe", "decode", "score")


class RecordedTelemetry:
    """Replacement for `Telemetry` that keeps the values, by the labels other than the job."""

    def __init__(self, tags: Mapping[str, str]) -> None:
        assert tags == {"job_name": "night"}
        self.counts: dict[str, Counter[tuple[str, ...]]] = {}
        self.gauges: dict[str, float] = {}

    def initialize(self, counter: MetricSpec, **tags: str) -> None:
        self.counts.setdefault(counter.name, Counter())[self._labels(counter, tags)] += 0

    def add(self, counter: MetricSpec, value: float, **tags: str) -> None:
        assert value >= 0
        self.counts.setdefault(counter.name, Counter())[self._labels(counter, tags)] += value  # type: ignore[assignment]

    def observe(self, histogram: MetricSpec, value: float, **tags: str) -> None:
        self.add(histogram, 1, **tags)

    def set(self, gauge: MetricSpec, value: float, **tags: str) -> None:
        self._labels(gauge, tags)
        self.gauges[gauge.name] = value

    def _labels(self, spec: MetricSpec, tags: Mapping[str, str]) -> tuple[str, ...]:
        assert {*tags, "job_name"} == set(spec.tags)
        return tuple(tags.values())


class Recorder:
    """Recorder that takes finished rows; `states` are the states that it closed with."""

    def __init__(self, take: Callable[[], tuple[Sequence[Row], Sequence[Row]]]) -> None:
        self._take = take
        self.states: list[State] = []

    def note_result(self) -> None: ...

    def commit_when_due(self, observer: Observer) -> None: ...

    def commit(self, observer: Observer) -> None:
        scores, failures = self._take()
        if scores or failures:
            observer.committed(scores, failures)

    def close(self, state: State, message: str = "") -> object:
        self.states.append(state)
        return None


class RecordingObserver(SilentObserver):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.states: Sequence[State] = ()

    def progressed(self, tracker: WorkTracker) -> None:
        self.events.append("progressed")

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        self.events.append(f"committed {len(scores)} and {len(failures)}")


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> list[RecordedTelemetry]:
    made: list[RecordedTelemetry] = []

    def make(tags: Mapping[str, str]) -> RecordedTelemetry:
        made.append(RecordedTelemetry(tags))
        return made[-1]

    monkeypatch.setattr("kvq_batch.engine.metrics.Telemetry", make)
    return made


def run(
    folder: Path,
    tables: Sequence[pa.Table | Exception],
    outcome: State,
    stale_at: datetime | None = None,
    observer: RecordingObserver | None = None,
    low_bounds: Mapping[str, float] | None = None,
) -> RecordingObserver:
    """Run two videos and one model with a pipeline that yields `tables`, composed as in `run_job`."""
    tracker = tracker_of(("x", "a"), ("y", "a"), max_attempts=1)

    def take() -> tuple[Sequence[Row], Sequence[Row]]:
        rows = tracker.take()
        return rows.scores, rows.failures

    def pipeline(items: pa.Table, is_alone: bool, cancel: Cancel) -> Iterator[pa.Table]:
        for table in tables:
            if isinstance(table, Exception):
                raise table
            yield table

    recorder, observer, storage = Recorder(take), observer or RecordingObserver(), StorageOptions()
    observer.states = recorder.states
    labels = RunLabels("night", [("score", "a")], FAILING, stale_at, lambda: low_bounds or {})
    with ExitStack() as stack:
        lease = stack.enter_context(hold(str(folder), storage, Holder.this_process("run-1", "night")))
        writer = Writer(Tables.create(str(folder), storage), "run-1")
        stack.enter_context(record_failure_on_error(recorder))
        watch = stack.enter_context(MetricsObserver(labels, tracker, writer, Queues(), observer, lambda: outcome))
        run_attempts(tracker, recorder, pipeline, lease, watch, StopCondition(threading.Event()), lambda: False)
    return observer


def test_finished_run_resets_age_of_scores(tmp_path: Path, telemetry: list[RecordedTelemetry]) -> None:
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    observer = run(tmp_path, [scored(0, [0], 1), scored(1, [0], 1)], "finished", long_ago)
    (seen,) = telemetry
    assert seen.counts["kvq_batch_videos_total"]["score", "a", "scored"] == 2
    series = {("score", "a", "scored"), *((stage, "a", "failed") for stage in FAILING)}
    assert set(seen.counts["kvq_batch_videos_total"]) == series
    assert seen.counts["kvq_batch_runs_started_total"] == {(): 1}
    assert seen.counts["kvq_batch_runs_ended_total"] == {("finished",): 1, ("stopped",): 0, ("failed",): 0}
    work = seen.counts["kvq_batch_work_seconds_total"]
    assert work == pytest.approx({("fetch", ""): 0.2, ("decode", ""): 0.4, ("score", "a"): 1.0, ("score", "b"): 0.0})
    assert seen.counts["kvq_batch_fetched_bytes_total"] == {(): 18}
    assert seen.counts["kvq_batch_commit_seconds"] == {(): 1}
    assert seen.gauges["kvq_batch_run_active"] == 0
    assert seen.gauges["kvq_batch_open_tasks"] == 0
    # No stale score is left.
    age_s = datetime.now(UTC).timestamp() - seen.gauges["kvq_batch_oldest_stale_score_timestamp_seconds"]
    assert age_s < 3600
    assert observer.events == ["progressed", "progressed", "committed 2 and 0"]


def test_low_scores_are_counted(tmp_path: Path, telemetry: list[RecordedTelemetry]) -> None:
    """The bound is of earlier runs; both videos score alike. Without a bound, the series does not exist."""
    for name, bound, expected in (("above", 0.4, 0), ("below", 10.0, 2)):
        run(tmp_path / name, [scored(0, [0], 1), scored(1, [0], 1)], "finished", low_bounds={"a": bound})
        assert telemetry[-1].counts["kvq_batch_low_scores_total"] == {("a",): expected}
    run(tmp_path / "new", [scored(0, [0], 1), scored(1, [0], 1)], "finished")
    assert "kvq_batch_low_scores_total" not in telemetry[-1].counts


def test_failure_keeps_age_of_scores(tmp_path: Path, telemetry: list[RecordedTelemetry]) -> None:
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    run(tmp_path, [scored(0, [0], 1), failed(1, 1, FetchError("missing", "gone"))], "finished", long_ago)
    (seen,) = telemetry
    assert seen.counts["kvq_batch_videos_total"]["fetch", "a", "failed"] == 1
    assert seen.counts["kvq_batch_failures_total"] == {("fetch", "a", "missing"): 1}
    assert seen.gauges["kvq_batch_oldest_stale_score_timestamp_seconds"] == long_ago.timestamp()


def test_results_before_a_fatal_error_are_committed_and_counted(
    tmp_path: Path, telemetry: list[RecordedTelemetry]
) -> None:
    observer = RecordingObserver()
    with pytest.raises(FatalError, match="the store burns"):
        run(tmp_path, [scored(0, [0], 1), FatalError("the store burns")], "finished", observer=observer)
    assert (observer.events, observer.states) == (["progressed", "committed 1 and 0"], ["failed"])
    (seen,) = telemetry
    assert seen.counts["kvq_batch_videos_total"]["score", "a", "scored"] == 1
    assert seen.counts["kvq_batch_runs_ended_total"] == {("finished",): 0, ("stopped",): 0, ("failed",): 1}
    assert seen.gauges["kvq_batch_open_tasks"] == 1


def test_stopped_run_is_counted_as_stopped(tmp_path: Path, telemetry: list[RecordedTelemetry]) -> None:
    run(tmp_path, [scored(0, [0], 1), scored(1, [0], 1)], "stopped")
    (seen,) = telemetry
    assert seen.counts["kvq_batch_runs_ended_total"]["stopped",] == 1


def test_label_run_counts_renditions(tmp_path: Path, telemetry: list[RecordedTelemetry]) -> None:
    tracker = tracker_of(("x", "a"))
    writer = Writer(Tables.create(str(tmp_path), StorageOptions()), "run-1")
    labels = RunLabels("night", [("label", "labels")], ("fetch", "label"))
    error = LabelError("too_short", "two frames", True)
    failure = {"stage": error.stage, "model_name": "labels", "final": True, "error": error.code}
    with MetricsObserver(labels, tracker, writer, Queues(), SilentObserver(), lambda: "finished") as watch:
        watch.committed([{"label_id": "1"}, {"label_id": "2"}], [failure])
    (seen,) = telemetry
    videos = seen.counts["kvq_batch_videos_total"]
    assert (videos["label", "labels", "scored"], videos["label", "labels", "failed"]) == (2, 1)
    assert set(seen.gauges) == {spec.name for spec in metrics.METRICS if spec.kind == "gauge"} - {
        metrics.QUEUED_BLOCKS.name
    }
