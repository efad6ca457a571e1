"""The watch over a run: what it tells of each way to end, without a Ray to tell it to."""

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
from kvq_batch.engine.metrics import MetricSpec, Queues
from kvq_batch.engine.metrics_observer import MetricsObserver, RunLabels
from kvq_batch.engine.observer import Observer, SilentObserver
from kvq_batch.engine.pipeline import Cancel
from kvq_batch.engine.retry_loop import record_failure_on_error, run_attempts
from kvq_batch.engine.rows import Row
from kvq_batch.engine.stopping import StopCondition
from kvq_batch.engine.summary import State
from kvq_batch.engine.work_tracker import WorkTracker
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.writer import Writer
from tests.engine.test_score_tracker import failed, ledger_of, scored

FAILING = ("fetch", "probe", "decode", "score")


class Recorded:
    """Stands for the process' telemetry; keeps what it is told, by the labels beside the job."""

    def __init__(self, tags: Mapping[str, str]) -> None:
        assert tags == {"job_name": "night"}
        self.counts: dict[str, Counter[tuple[str, ...]]] = {}
        self.gauges: dict[str, float] = {}

    def begin(self, counter: MetricSpec, **tags: str) -> None:
        self.counts.setdefault(counter.name, Counter())[self._of(counter, tags)] += 0

    def add(self, counter: MetricSpec, value: float, **tags: str) -> None:
        assert value >= 0
        self.counts.setdefault(counter.name, Counter())[self._of(counter, tags)] += value  # type: ignore[assignment]

    def observe(self, histogram: MetricSpec, value: float, **tags: str) -> None:
        self.add(histogram, 1, **tags)

    def set(self, gauge: MetricSpec, value: float, **tags: str) -> None:
        self._of(gauge, tags)
        self.gauges[gauge.name] = value

    def _of(self, declared: MetricSpec, tags: Mapping[str, str]) -> tuple[str, ...]:
        assert {*tags, "job_name"} == set(declared.tags)
        return tuple(tags.values())


class Recorder:
    """Takes what is finished; `states` are the ends that were written down."""

    def __init__(self, take: Callable[[], tuple[list[Row], list[Row]]]) -> None:
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


class Hears(SilentObserver):
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.states: Sequence[State] = ()

    def progressed(self, tracker: WorkTracker) -> None:
        self.heard.append("progressed")

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        self.heard.append(f"committed {len(scores)} and {len(failures)}")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    made: list[Recorded] = []

    def make(tags: Mapping[str, str]) -> Recorded:
        made.append(Recorded(tags))
        return made[-1]

    monkeypatch.setattr("kvq_batch.engine.metrics_observer.Telemetry", make)
    return made


def run(
    folder: Path,
    tables: Sequence[pa.Table | Exception],
    outcome: State,
    stale_at: datetime | None = None,
    hears: Hears | None = None,
) -> Hears:
    """A run of two videos and a model whose pipeline yields `tables`, as `run_job` makes one of its parts."""
    tracker = ledger_of(("x", "a"), ("y", "a"), max_attempts=1)

    def take() -> tuple[list[Row], list[Row]]:
        rows = tracker.take()
        return rows.scores, rows.failures

    def pipeline(items: pa.Table, is_alone: bool, cancel: Cancel) -> Iterator[pa.Table]:
        for table in tables:
            if isinstance(table, Exception):
                raise table
            yield table

    recorder, hears, storage = Recorder(take), hears or Hears(), StorageOptions()
    hears.states = recorder.states
    watched = RunLabels("night", [("score", "a")], FAILING, stale_at)
    with ExitStack() as stack:
        lease = stack.enter_context(hold(str(folder), storage, Holder.this_process("run-1", "night"), hears.told))
        writer = Writer(Tables.create(str(folder), storage), "run-1")
        stack.enter_context(record_failure_on_error(recorder))
        watch = stack.enter_context(MetricsObserver(watched, tracker, writer, Queues(), hears, lambda: outcome))
        run_attempts(tracker, recorder, pipeline, lease, watch, StopCondition(threading.Event()), lambda: False)
    return hears


def test_a_run_that_ends_well_has_made_its_scores_new(tmp_path: Path, told: list[Recorded]) -> None:
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    hears = run(tmp_path, [scored(0, [0], 1), scored(1, [0], 1)], "finished", long_ago)
    (seen,) = told
    assert seen.counts["kvq_batch_videos_total"]["score", "a", "scored"] == 2
    series = {("score", "a", "scored"), *((stage, "a", "failed") for stage in FAILING)}
    assert set(seen.counts["kvq_batch_videos_total"]) == series
    assert seen.counts["kvq_batch_runs_begun_total"] == {(): 1}
    assert seen.counts["kvq_batch_runs_ended_total"] == {("finished",): 1, ("stopped",): 0, ("failed",): 0}
    work = seen.counts["kvq_batch_work_seconds_total"]
    assert work == pytest.approx({("fetch", ""): 0.2, ("decode", ""): 0.4, ("score", "a"): 1.0, ("score", "b"): 0.0})
    assert seen.counts["kvq_batch_fetched_bytes_total"] == {(): 18}
    assert seen.counts["kvq_batch_commit_seconds"] == {(): 1}
    assert seen.gauges["kvq_batch_run_active"] == 0
    assert seen.gauges["kvq_batch_open_scores"] == 0
    # Every score is new now.
    age_s = datetime.now(UTC).timestamp() - seen.gauges["kvq_batch_oldest_stale_score_timestamp_seconds"]
    assert age_s < 3600
    assert hears.heard == ["progressed", "progressed", "committed 2 and 0"]


def test_a_failure_leaves_old_scores_where_they_were(tmp_path: Path, told: list[Recorded]) -> None:
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    run(tmp_path, [scored(0, [0], 1), failed(1, 1, FetchError("missing", "gone"))], "finished", long_ago)
    (seen,) = told
    assert seen.counts["kvq_batch_videos_total"]["fetch", "a", "failed"] == 1
    assert seen.counts["kvq_batch_failures_total"] == {("fetch", "a", "missing"): 1}
    assert seen.gauges["kvq_batch_oldest_stale_score_timestamp_seconds"] == long_ago.timestamp()


def test_what_was_finished_before_a_run_broke_is_committed_and_counted(tmp_path: Path, told: list[Recorded]) -> None:
    hears = Hears()
    with pytest.raises(FatalError, match="the store burns"):
        run(tmp_path, [scored(0, [0], 1), FatalError("the store burns")], "finished", hears=hears)
    assert (hears.heard, hears.states) == (["progressed", "committed 1 and 0"], ["failed"])
    (seen,) = told
    assert seen.counts["kvq_batch_videos_total"]["score", "a", "scored"] == 1
    assert seen.counts["kvq_batch_runs_ended_total"] == {("finished",): 0, ("stopped",): 0, ("failed",): 1}
    assert seen.gauges["kvq_batch_open_scores"] == 1


def test_a_run_that_is_stopped_says_so(tmp_path: Path, told: list[Recorded]) -> None:
    run(tmp_path, [scored(0, [0], 1), scored(1, [0], 1)], "stopped")
    (seen,) = told
    assert seen.counts["kvq_batch_runs_ended_total"]["stopped",] == 1


def test_labels_are_counted_as_the_one_thing_that_their_run_makes(tmp_path: Path, told: list[Recorded]) -> None:
    tracker = ledger_of(("x", "a"))
    writer = Writer(Tables.create(str(tmp_path), StorageOptions()), "run-1")
    watched = RunLabels("night", [("label", "labels")], ("fetch", "label"))
    error = LabelError("too_short", "two frames", True)
    failure = {"stage": error.stage, "model_name": "labels", "final": True, "error": error.code}
    with MetricsObserver(watched, tracker, writer, Queues(), SilentObserver(), lambda: "finished") as watch:
        watch.committed([{"label_id": "1"}, {"label_id": "2"}], [failure])
    (seen,) = told
    videos = seen.counts["kvq_batch_videos_total"]
    assert (videos["label", "labels", "scored"], videos["label", "labels", "failed"]) == (2, 1)
    assert set(seen.gauges) == {declared.name for declared in metrics.METRICS if declared.kind == "gauge"} - {
        metrics.QUEUED.name
    }
