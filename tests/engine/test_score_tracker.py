"""The tracker closes every task exactly once, whether results arrive once, twice, late or never."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from kvq_batch.config.job import Model
from kvq_batch.domain.errors import DecodeError, FetchError, ItemError
from kvq_batch.domain.frames import EveryFrame, FrameRequest
from kvq_batch.domain.identity import ModelRef
from kvq_batch.domain.maps import quantise
from kvq_batch.domain.scorer import ModelCard, ModelOptions, Prediction, ScorerSpec
from kvq_batch.domain.video import ClipFrames
from kvq_batch.engine.rows import Failure
from kvq_batch.engine.score_run import ScoreTracker
from kvq_batch.engine.stopping import CircuitBreaker
from kvq_batch.engine.stream import RESULT, ClipRow, StreamRows, maps_to_stream, prediction_values
from kvq_batch.engine.work_tracker import MAX_PREEMPTED_ATTEMPTS
from kvq_batch.planning.job_models import JobModel
from kvq_batch.planning.plan import tasks_to_items
from kvq_batch.tables.schemas import DATA_TABLES, make_rows

FACTS = {"width_px": 64, "height_px": 48, "num_frames": 10, "codec": "h264"}


def job_model(name: str) -> JobModel:
    card = ModelCard(name, "1", "0" * 64, "handcrafted", "for tests")
    ref = ModelRef(name, card.model_id, "fp")
    return JobModel(Model(name=name), ModelOptions(name), ScorerSpec(card, FrameRequest()), ref, (0,))


MODELS = (job_model("a"), job_model("b"))


def task_table(*tasks: tuple[str, str]) -> pa.Table:
    rows = [
        {"video_id": video, "uri": f"/v/{video}", "content_id": f"stat:{video}", "model_name": model, "reason": "new"}
        for video, model in tasks
    ]
    schema = [("video_id", "string"), ("uri", "string"), ("content_id", "string"), ("size_bytes", "int64")]
    schema += [("start_s", "float64"), ("end_s", "float64"), ("model_name", "string"), ("reason", "string")]
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.type_for_alias(kind)) for name, kind in schema]))


def tracker_of(*tasks: tuple[str, str], max_attempts: int = 3, breaker: CircuitBreaker | None = None) -> ScoreTracker:
    items = tasks_to_items(task_table(*tasks), MODELS)
    return ScoreTracker(items, MODELS, max_attempts, breaker or CircuitBreaker(1000, 1.0))


def scored(
    item: int,
    model_indices: list[int],
    model_mask: int,
    clip: int = 0,
    num_clips: int = 1,
    score: float = 1.0,
    attempt: int = 1,
) -> pa.Table:
    """Return the output of the last stage for one clip: results of `model_indices`, null for the other models."""
    frames = ClipFrames(np.zeros((4, 2, 2, 3), np.uint8), np.arange(4), np.arange(4) / 10)
    row = ClipRow(
        item, attempt, model_mask, clip, num_clips, 0.0, 1.0, json.dumps(FACTS), 9, "pyav", "etag:1", 0.1, 1, 0.2, 0.2
    )
    stream = StreamRows(1)
    stream.add_clip(row, [frames])
    table = stream.take().drop_columns(["frames_0"])
    texture = np.full((2, 1, 1), score, np.float32)
    maps = maps_to_stream(quantise(texture, np.ones_like(texture)))
    for model_index in range(len(MODELS)):
        value: dict[str, Any] | None = None
        if model_index in model_indices:
            value = {"raw_score": score, "outputs": [("x", 2 * score)], "maps": maps, "slot_scores": [score, score]}
            value |= {"score_s": 0.5}
        table = table.append_column(f"result_{model_index}", pa.array([value], RESULT))
    return table


def failed(item: int, model_mask: int, error: ItemError, attempt: int = 1) -> pa.Table:
    stream = StreamRows(1)
    stream.add_failure(item, attempt, model_mask, error)
    table = stream.take().drop_columns(["frames_0"])
    for model_index in range(len(MODELS)):
        table = table.append_column(f"result_{model_index}", pa.array([None], RESULT))
    return table


def test_items_have_one_row_per_video() -> None:
    items = tasks_to_items(task_table(("x", "a"), ("x", "b"), ("y", "b")), MODELS).to_pylist()
    assert [(row["item"], row["video_id"], row["model_mask"]) for row in items] == [(0, "x", 3), (1, "y", 2)]


def test_duplicate_score_is_ignored() -> None:
    tracker = tracker_of(("x", "a"))
    tracker.add(scored(0, [0], 1))
    tracker.add(scored(0, [0], 1, score=7.0))
    rows = tracker.take()
    assert [row["raw_score"] for row in rows.scores] == [1.0]
    assert (tracker.num_scored, tracker.num_open) == (1, 0)
    assert not tracker.take()


def test_rows_match_table_schemas() -> None:
    tracker = tracker_of(("x", "a"), ("y", "a"))
    tracker.add(scored(0, [0], 1))
    tracker.add(failed(1, 1, DecodeError("undecodable", "no", True)))
    rows = tracker.take()
    tables = {name: make_rows(name, getattr(rows, name)) for name in DATA_TABLES}
    assert tables.pop("features").num_rows == 0
    assert {name: table.num_rows for name, table in tables.items()} == dict.fromkeys(tables, 1)
    assert tables["scores"]["width_px"].to_pylist() == [64]
    assert tables["clips"]["slot_start_s"].to_pylist() == [[0.0, 0.2]]
    assert tables["maps"]["num_slots"].to_pylist() == [2]


def test_score_is_mean_of_all_clips() -> None:
    tracker = tracker_of(("x", "a"))
    tracker.add(scored(0, [0], 1, clip=1, num_clips=2, score=3.0))
    tracker.add(scored(0, [0], 1, clip=1, num_clips=2, score=3.0))
    assert not tracker.take()
    tracker.add(scored(0, [0], 1, clip=0, num_clips=2, score=1.0))
    (row,) = (rows := tracker.take()).scores
    assert (row["raw_score"], row["score_spread"], row["num_clips"], row["outputs"]) == (2.0, 1.0, 2, [("x", 4.0)])
    assert [clip["clip_index"] for clip in rows.clips] == [0, 1]


def with_features(table: pa.Table, features: list[float] | None) -> pa.Table:
    (value,) = table["result_0"].to_pylist(maps_as_pydicts="lossy")
    value |= {"outputs": [], "features": features}
    return table.set_column(table.column_names.index("result_0"), "result_0", pa.array([value], RESULT))


def test_features_of_a_video_are_means_over_clips_where_they_are_defined() -> None:
    models = (replace(job_model("a"), stores_features=True), job_model("b"))
    tracker = ScoreTracker(tasks_to_items(task_table(("x", "a")), models), models, 3, CircuitBreaker(1000, 1.0))
    nan, inf = float("nan"), float("inf")
    tracker.add(with_features(scored(0, [0], 1, clip=0, num_clips=2), [1.0, nan, nan, inf]))
    tracker.add(with_features(scored(0, [0], 1, clip=1, num_clips=2), [2.0, 5.0, nan, inf]))
    rows = tracker.take()
    (row,) = make_rows("features", rows.features).to_pylist()
    assert (row["num_features"], row["num_undefined"], row["model_name"]) == (4, 2, "a")
    np.testing.assert_array_equal(row["features"], [1.5, 5.0, nan, inf])
    assert [(clip["features"] or [])[0] for clip in rows.clips] == [1.0, 2.0]


def test_features_that_the_job_does_not_store_are_dropped() -> None:
    tracker = tracker_of(("x", "a"))
    tracker.add(with_features(scored(0, [0], 1), [1.0]))
    rows = tracker.take()
    assert (rows.features, rows.clips[0]["features"]) == ([], None)


def test_models_of_one_video_close_separately() -> None:
    tracker = tracker_of(("x", "a"), ("x", "b"))
    tracker.add(scored(0, [0], 3))
    assert (tracker.num_scored, tracker.num_open, tracker.num_videos_done) == (1, 1, 0)
    assert tracker.open_items(2).to_pylist()[0]["model_mask"] == 2


def test_permanent_failure_closes_task_of_every_model() -> None:
    tracker = tracker_of(("x", "a"), ("x", "b"))
    tracker.add(failed(0, 3, DecodeError("truncated", "no", True)))
    rows = tracker.take().failures
    assert [(row["model_name"], row["final"], row["permanent"]) for row in rows] == [
        ("a", True, True),
        ("b", True, True),
    ]
    assert (tracker.num_failed, tracker.num_videos_failed, tracker.num_open) == (2, 1, 0)


def test_transient_failure_is_final_at_last_attempt() -> None:
    tracker = tracker_of(("x", "a"), max_attempts=2)
    tracker.add(failed(0, 1, FetchError("timeout", "slow")))
    assert tracker.finish_attempt(1) == 0
    assert [row["attempt"] for row in tracker.open_items(2).to_pylist()] == [2]
    tracker.add(failed(0, 1, FetchError("timeout", "slow"), attempt=2))
    rows = tracker.take().failures
    assert [(row["attempt"], row["final"], row["permanent"]) for row in rows] == [(1, False, False), (2, True, False)]
    assert (tracker.num_failed, tracker.num_retried) == (1, 1)


def test_missing_file_is_final_at_end_of_attempt() -> None:
    tracker = tracker_of(("x", "a"), ("y", "a"))
    tracker.add(failed(0, 1, FetchError("missing", "gone")))
    assert not tracker.take()
    tracker.finish_attempt(1)
    rows = {row["video_id"]: row for row in tracker.take().failures}
    assert (rows["x"]["final"], rows["x"]["permanent"], rows["y"]["error"]) == (True, False, "worker_died")


def test_deferred_failures_are_not_final_after_abort() -> None:
    tracker = tracker_of(("x", "a"))
    tracker.add(failed(0, 1, FetchError("forbidden", "expired")))
    tracker.abort()
    assert [row["final"] for row in tracker.take().failures] == [False]
    assert (tracker.num_failed, tracker.num_open) == (0, 1)


def test_successful_retry_leaves_no_final_failure() -> None:
    tracker = tracker_of(("x", "a"))
    tracker.add(failed(0, 1, FetchError("timeout", "slow")))
    tracker.open_items(2)
    tracker.add(scored(0, [0], 1, attempt=2))
    rows = tracker.take()
    assert [row["attempt"] for row in rows.scores] == [2]
    assert [row["final"] for row in rows.failures] == [False]


def test_repeated_decoder_crash_is_permanent() -> None:
    tracker = tracker_of(("x", "a"))
    tracker.add(failed(0, 1, DecodeError("decoder_crashed", "SIGSEGV", exit_signal="SIGSEGV")))
    tracker.open_items(2)
    tracker.add(failed(0, 1, DecodeError("decoder_crashed", "SIGSEGV", exit_signal="SIGSEGV"), attempt=2))
    rows = tracker.take().failures
    assert [(row["final"], row["permanent"]) for row in rows] == [(False, False), (True, True)]
    assert rows[1]["exit_signal"] == "SIGSEGV"


def test_lost_task_is_not_a_permanent_failure() -> None:
    tracker = tracker_of(("x", "a"), ("y", "a"), max_attempts=2)
    tracker.add(scored(0, [0], 1))
    assert tracker.finish_attempt(1) == 1
    tracker.open_items(2)
    assert tracker.finish_attempt(2) == 1
    rows = tracker.take().failures
    assert [(row["video_id"], row["error"], row["final"], row["permanent"]) for row in rows] == [
        ("y", "worker_died", False, False),
        ("y", "worker_died", True, False),
    ]
    assert tracker.num_open == 0


def test_bad_addresses_are_tried_once_and_trip_no_breaker() -> None:
    tracker = tracker_of(*((f"v{i}", "a") for i in range(9)), breaker=CircuitBreaker(in_a_row=5, share=1.0))
    tracker.open_items(1)
    for item in range(9):
        tracker.fail((item, 0), Failure(1, "fetch", "bad_address", "foo:// is not supported", False))
    assert tracker.finish_attempt(1) == 0
    assert (tracker.num_failed, tracker.num_open, tracker.breaker.cause) == (9, 0, None)
    assert all(row["final"] and not row["permanent"] for row in tracker.take().failures)


def test_lost_tasks_trip_breaker_only_when_alone() -> None:
    tracker = tracker_of(*((f"v{i}", "a") for i in range(9)), breaker=CircuitBreaker(in_a_row=5, share=1.0))
    tracker.open_items(1)
    assert tracker.finish_attempt(1) == 9
    assert tracker.breaker.cause is None
    tracker.open_items(2)
    assert tracker.finish_attempt(2) == 9
    assert tracker.breaker.cause == "9 videos in a row failed at decode with worker_died"


def test_preempted_node_is_not_an_attempt() -> None:
    tracker = tracker_of(("x", "a"), ("y", "a"), max_attempts=1, breaker=CircuitBreaker(in_a_row=2, share=1.0))
    # One of two clips came back before the preemption: it must not mix with the next attempt.
    tracker.add(scored(0, [0], 1, clip=0, num_clips=2, score=9.0))
    assert tracker.finish_attempt(1, was_preempted=True) == 2
    assert (tracker.max_attempts, tracker.num_open, tracker.breaker.cause) == (2, 2, None)
    tracker.open_items(2)
    for clip in (0, 1):
        tracker.add(scored(0, [0], 1, clip=clip, num_clips=2, score=1.0, attempt=2))
    assert tracker.finish_attempt(2) == 1
    rows = tracker.take()
    assert [row["raw_score"] for row in rows.scores] == [1.0]
    assert [(row["video_id"], row["attempt"], row["error"], row["final"]) for row in rows.failures] == [
        ("x", 1, "node_preempted", False),
        ("y", 1, "node_preempted", False),
        ("y", 2, "worker_died", True),
    ]


def test_preempted_attempts_are_limited() -> None:
    tracker = tracker_of(("x", "a"), max_attempts=2)
    attempt = 0
    while tracker.num_open:
        attempt += 1
        tracker.open_items(attempt)
        tracker.finish_attempt(attempt, was_preempted=True)
    assert attempt == 2 + MAX_PREEMPTED_ATTEMPTS
    assert tracker.take().failures[-1]["error"] == "worker_died"


def test_preemption_without_lost_tasks_adds_no_attempt() -> None:
    tracker = tracker_of(("x", "a"), max_attempts=1)
    tracker.add(scored(0, [0], 1))
    assert tracker.finish_attempt(1, was_preempted=True) == 0
    assert tracker.max_attempts == 1


def test_clips_of_different_attempts_do_not_mix() -> None:
    tracker = tracker_of(("x", "a"))
    tracker.add(scored(0, [0], 1, clip=0, num_clips=2, score=9.0))
    tracker.finish_attempt(1)
    tracker.open_items(2)
    for clip in (0, 1):
        tracker.add(scored(0, [0], 1, clip=clip, num_clips=2, score=1.0, attempt=2))
    assert [row["raw_score"] for row in tracker.take().scores] == [1.0]


def test_clips_after_a_failure_are_ignored() -> None:
    tracker = tracker_of(("x", "a"))
    tracker.add(failed(0, 1, FetchError("timeout", "slow")))
    tracker.add(scored(0, [0], 1))
    assert not tracker.take().scores


@pytest.mark.parametrize(("is_same", "expected"), [(True, True), (False, False)])
def test_breaker_trips_on_same_cause_in_a_row(is_same: bool, expected: bool) -> None:
    breaker = CircuitBreaker(in_a_row=5, share=1.0)
    for i in range(5):
        breaker.record_failure("fetch", "forbidden" if is_same or i % 2 else "missing", f"v{i}")
    assert (breaker.cause is not None) is expected


def test_breaker_counts_each_video_once() -> None:
    breaker = CircuitBreaker(in_a_row=5, share=0.2)
    for i in range(400):
        breaker.record_failure("label", "reference_too_short", f"v{i % 4}")
    assert breaker.cause is None
    breaker.record_failure("label", "reference_too_short", "v4")
    assert breaker.cause == "5 videos in a row failed at label with reference_too_short"


def test_breaker_trips_on_share_of_first_videos() -> None:
    breaker = CircuitBreaker(in_a_row=1000, share=0.2)
    for i in range(400):
        breaker.record_failure("fetch", "timeout", f"v{i}") if i % 4 == 0 else breaker.record_success()
    assert breaker.cause is not None
    late = CircuitBreaker(in_a_row=1000, share=0.2)
    for _ in range(500):
        late.record_success()
    for i in range(900):
        late.record_failure("fetch", "timeout", f"v{i}") if i % 2 else late.record_success()
    assert late.cause is None


class SumPooler:
    """Adds all partial results."""

    def pool(self, partial: NDArray[Any]) -> Prediction:
        return Prediction(float(partial.sum()))


def chunk(value: float, clip: int, chunk_index: int, decode_pass: int, num_clips: int = 2) -> pa.Table:
    """Return the output of the last stage for one of two chunks of a clip."""
    frames = ClipFrames(np.zeros((1, 2, 2, 3), np.uint8), np.arange(1), np.zeros(1))
    position = (0.0, 1.0, json.dumps(FACTS), 9, "pyav", "etag:1", 0.1, 1, 0.2, 0.2, chunk_index, 2, decode_pass)
    stream = StreamRows(1)
    stream.add_clip(ClipRow(0, 1, 1, clip, num_clips, *position), [frames])
    result = prediction_values(Prediction(0.0, partial=np.array([[value]], np.float64))) | {"score_s": 0.5}
    return stream.take().drop_columns(["frames_0"]).append_column("result_0", pa.array([result], RESULT))


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (0, 5, 3, 1, 6, 4, 2), (6, 5, 4, 3, 2, 1, 0)])
def test_chunks_of_a_decode_that_started_again_are_replaced(order: tuple[int, ...]) -> None:
    """The first pass gave both chunks of clip 0 and one of clip 1; the last one never comes."""
    model = job_model("streamed")
    streamed = FrameRequest(EveryFrame(), None, is_streamed=True)
    model = replace(model, spec=replace(model.spec, frames=streamed))
    tracker = ScoreTracker(tasks_to_items(task_table(("v", "streamed")), (model,)), (model,), 3, CircuitBreaker(9, 1.0))
    tracker._poolers[0] = SumPooler()
    tables = [chunk(-1, 0, 0, 0), chunk(-1, 0, 1, 0), chunk(-1, 1, 0, 0)]
    tables += [chunk(2.0**n, n // 2, n % 2, 1) for n in range(4)]
    for index in order:
        assert tracker.num_open == 1
        tracker.add(tables[index])
        if not tracker.num_open:
            break
    (score,) = tracker.take().scores
    assert score["raw_score"] == (1 + 2 + 4 + 8) / 2
    assert score["decode_s"] == pytest.approx(2 * 0.2)
