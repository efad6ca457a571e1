"""The score worker: a bad clip costs only itself, and results of models are checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kvq_batch.config.job import Job
from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import DeviceLostError, FatalError, OutOfMemoryError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.scorer import ModelCard, Prediction, ScorerSpec
from kvq_batch.engine.score_worker import Batches, ScoreSettings, ScoreWorker, score_clips
from kvq_batch.planning.job_models import describe_models

SPEC = ScorerSpec(ModelCard("fake", "1", "0" * 64, "handcrafted", "for tests"), FrameRequest())


@dataclass
class PickyScorer:
    """Scores a clip by its mean; raises for a clip of zeros, and returns NaN for a clip of 255."""

    spec: ScorerSpec = SPEC
    calls: list[int] = field(default_factory=list)

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        self.calls.append(len(clips))
        if any(clip.max() == 0 for clip in clips):
            raise RuntimeError("out of memory at s3://me:secret@bucket/x")
        return [Prediction(float("nan") if clip.min() == 255 else float(clip.mean())) for clip in clips]


def clip(value: int) -> NDArray[np.uint8]:
    return np.full((2, 4, 4, 3), value, np.uint8)


def test_bad_clip_fails_alone() -> None:
    scorer = PickyScorer()
    results = score_clips(scorer, [clip(1), clip(0), clip(3)])
    assert [result.get("raw_score") for result in results] == [1.0, None, 3.0]
    assert results[1]["error"] == "RuntimeError"
    assert "secret" not in results[1]["message"]
    assert scorer.calls == [3, 1, 1, 1]


@dataclass
class NarrowScorer(PickyScorer):
    """Has memory for `capacity` clips at a time, and for none whose pixels are 99."""

    capacity: int = 3

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        self.calls.append(len(clips))
        if len(clips) > self.capacity or any(clip.max() == 99 for clip in clips):
            raise OutOfMemoryError(f"{len(clips)} clip(s) do not fit")
        return [Prediction(float(clip.mean())) for clip in clips]


def test_batch_is_halved_when_out_of_memory(caplog: pytest.LogCaptureFixture) -> None:
    scorer = NarrowScorer()
    batches = Batches(scorer, 8)
    for _ in range(2):
        results = batches.score([clip(value) for value in range(1, 11)])
        assert [result["raw_score"] for result in results] == list(range(1, 11))
    assert scorer.calls == [8, 4, *[2] * 5, *[2] * 5]
    assert [record.message for record in caplog.records] == [
        "8 clip(s) do not fit; continuing with batches of 4",
        "4 clip(s) do not fit; continuing with batches of 2",
    ]


def test_too_large_clip_does_not_shrink_batches() -> None:
    scorer = NarrowScorer(capacity=4)
    batches = Batches(scorer, 4)
    results = batches.score([clip(value) for value in (1, 2, 99, 4, 5, 6, 7)])
    assert [result.get("raw_score") for result in results] == [1, 2, None, 4, 5, 6, 7]
    assert results[2]["error"] == "out_of_memory"
    assert (batches.size, scorer.calls) == (2, [4, 2, 2, 1, 2, 2])


def test_batch_size_is_remembered_between_blocks() -> None:
    batches = Batches(NarrowScorer(capacity=1), 8)
    assert len(batches.score([clip(1)] * 3)) == 3
    assert batches.size == 1


@dataclass
class GpuScorer(PickyScorer):
    """Raises `error` for calls with a clip of 99, and for all later calls if it `is_sticky`."""

    error: Exception = field(default_factory=RuntimeError)
    is_sticky: bool = True
    is_lost: bool = False

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        self.calls.append(len(clips))
        has_error = any(clip.max() == 99 for clip in clips)
        self.is_lost |= has_error and self.is_sticky
        if has_error or self.is_lost:
            raise self.error
        return [Prediction(float(clip.mean())) for clip in clips]


def test_lost_device_gives_no_result() -> None:
    scorer = GpuScorer(error=torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nAdvice"))
    with pytest.raises(
        DeviceLostError, match="cannot be used any more: CUDA error: an illegal memory access"
    ) as caught:
        Batches(scorer, 4).score([clip(value) for value in (1, 2, 99, 4)])
    assert "Advice" not in str(caught.value)
    assert scorer.calls == [4]


def test_device_lost_at_single_clip_gives_no_result() -> None:
    """cuBLAS without a handle may mean a full GPU: only a smaller batch shows that the context is broken."""

    class Scorer(GpuScorer):
        def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
            if len(clips) == 1:
                self.error = RuntimeError("CUDA error: device-side assert triggered")
            return super().score(clips)

    scorer = Scorer(error=RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"))
    with pytest.raises(DeviceLostError, match="device-side assert"):
        Batches(scorer, 4).score([clip(value) for value in (99, 2, 3, 4)])
    assert scorer.calls == [4, 2, 1]


@dataclass
class OverlappingScorer(PickyScorer):
    """Starts clips and gives their scores later. Fails at the start for a clip of 99, at the end for one of 0."""

    events: list[str] = field(default_factory=list)
    capacity: int = 8

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        self.events.append(f"score {self._names(clips)}")
        if len(clips) > self.capacity or any(clip.max() == 99 for clip in clips):
            raise OutOfMemoryError(f"{len(clips)} clip(s) do not fit")
        return super().score(clips)

    def start(self, clips: Sequence[NDArray[np.uint8]]) -> Callable[[], list[Prediction]]:
        self.events.append(f"start {self._names(clips)}")
        if len(clips) > self.capacity or any(clip.max() == 99 for clip in clips):
            raise OutOfMemoryError(f"{len(clips)} clip(s) do not fit")

        def finish() -> list[Prediction]:
            self.events.append(f"finish {self._names(clips)}")
            return super(OverlappingScorer, self).score(clips)

        return finish

    @staticmethod
    def _names(clips: Sequence[NDArray[np.uint8]]) -> str:
        return " ".join(str(clip.max()) for clip in clips)


def test_batch_is_started_before_the_one_before_is_fetched() -> None:
    scorer = OverlappingScorer()
    results = Batches(scorer, 2).score([clip(value) for value in range(1, 6)])
    assert [result["raw_score"] for result in results] == [1, 2, 3, 4, 5]
    assert all(result["score_s"] > 0 for result in results)
    assert scorer.events == ["start 1 2", "start 3 4", "finish 1 2", "start 5", "finish 3 4", "finish 5"]


def test_block_of_one_batch_is_cut_into_two() -> None:
    scorer = OverlappingScorer()
    assert len(Batches(scorer, 8).score([clip(value) for value in range(1, 6)])) == 5
    assert scorer.events == ["start 1 2 3", "start 4 5", "finish 1 2 3", "finish 4 5"]


@pytest.mark.parametrize(("bad", "error"), [(0, "RuntimeError"), (255, "non_finite"), (99, "out_of_memory")])
@pytest.mark.parametrize("position", range(6))
def test_error_of_an_overlapped_batch_is_that_of_its_clip(bad: int, error: str, position: int) -> None:
    values = [1, 2, 3, 4, 5, 6]
    values[position] = bad
    results = Batches(OverlappingScorer(), 2).score([clip(value) for value in values])
    assert [result.get("error") for result in results] == [error if value == bad else None for value in values]
    assert [result.get("raw_score") for result in results] == [None if value == bad else value for value in values]


def test_overlapped_batches_that_do_not_fit_are_halved() -> None:
    batches = Batches(OverlappingScorer(capacity=1), 4)
    results = batches.score([clip(value) for value in range(1, 9)])
    assert [result["raw_score"] for result in results] == list(range(1, 9))
    assert batches.size == 1


def test_device_that_is_lost_while_batches_overlap_gives_no_result() -> None:
    class Scorer(GpuScorer):
        def start(self, clips: Sequence[NDArray[np.uint8]]) -> Callable[[], list[Prediction]]:
            return lambda: self.score(clips)

    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        Batches(Scorer(error=error), 2).score([clip(value) for value in (1, 2, 99, 4)])


def test_harmless_cuda_error_fails_only_its_clip() -> None:
    error = torch.AcceleratorError("CUDA error: invalid configuration argument")
    results = Batches(GpuScorer(error=error, is_sticky=False), 4).score([clip(value) for value in (1, 99, 3, 4)])
    assert [result.get("raw_score") for result in results] == [1, None, 3, 4]
    assert results[1]["error"] == "AcceleratorError"


def test_cuda_out_of_memory_halves_batch() -> None:
    class Scorer(PickyScorer):
        def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
            if len(clips) > 2:
                raise torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`")
            return super().score(clips)

    batches = Batches(scorer := Scorer(), 8)
    results = batches.score([clip(value) for value in range(1, 9)])
    assert [result["raw_score"] for result in results] == list(range(1, 9))
    assert (batches.size, scorer.calls) == (2, [2, 2, 2, 2])


def test_worker_rejects_other_weights_than_driver() -> None:
    (model,) = describe_models(job(models=[{"name": "kvq-tiny", "weights": "untrained"}])).models
    settings = ScoreSettings(model.options, "kvq-tiny@untrained-0123456789ab", 0, (0,), (), 1)
    with pytest.raises(FatalError, match=f"{model.ref.model_id} on this worker but kvq-tiny@untrained-0123456789ab"):
        ScoreWorker(settings)
    ScoreWorker(replace(settings, model_id=model.ref.model_id))


def test_nan_score_is_an_error() -> None:
    good, bad = score_clips(PickyScorer(), [clip(7), clip(255)])
    assert good["raw_score"] == 7.0
    assert (bad["error"], bad.get("raw_score")) == ("non_finite", None)


@pytest.mark.parametrize("name", ["texture", "saliency", "slot_scores"])
def test_nan_in_any_array_is_an_error(name: str) -> None:
    class Scorer(PickyScorer):
        def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
            values = np.ones((2, 1, 1) if name in ("texture", "saliency") else 2, np.float32)
            values.flat[1] = np.inf
            arrays: dict[str, Any] = {name: values}
            return [Prediction(1.0, **arrays) for _ in clips]

    assert score_clips(Scorer(), [clip(1)])[0]["error"] == "non_finite"


def test_missing_prediction_is_an_error() -> None:
    class Scorer(PickyScorer):
        def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
            return [Prediction(1.0)] * (len(clips) - 1)

    assert [result["error"] for result in score_clips(Scorer(), [clip(1), clip(2)])] == ["ValueError", "ValueError"]


def job(**more: object) -> Job:
    models = [{"name": "kvq-tiny", "weights": "untrained"}, {"name": "luma-sharpness"}]
    return make_job({"name": "n", "tables": "t", "catalog": {"source": "v"}, "models": models} | more, "test")


def test_models_with_same_frames_share_one_decode() -> None:
    described = describe_models(job())
    assert len(described.requests) == 1
    assert (described.drops_after(0), described.drops_after(1)) == ((), (0,))


def test_fingerprints_of_shipped_models_are_those_of_their_first_release() -> None:
    """A change would make every stored score stale."""
    models = describe_models(job(models=[{"name": "kvq-lite"}, {"name": "luma-sharpness"}])).models
    assert [(model.ref.model_id, model.ref.fingerprint) for model in models] == [
        ("kvq-lite@5-c0e8ed9d6625", "3efa628371c1846443d10c0b728ec8dc5501a2d5769618d45b2087a037c38372"),
        ("luma-sharpness@1-8ebe4ba6c66e", "bcfda1855e21a4362d37fdf52cb93273b8ea0c8b36adf0d241831d47117c9d1d"),
    ]


def test_fingerprint_covers_what_changes_a_score() -> None:
    def prints(**more: object) -> list[str]:
        return [model.ref.fingerprint for model in describe_models(job(**more)).models]

    before = prints()
    assert prints(clips={"every_s": 60}) != before
    assert prints(hdr="as-is") != before
    assert prints(decode={"workers": {"max": 8}}, run={"commit_every_s": 60}, limits={"timeout_s": 9}) == before
