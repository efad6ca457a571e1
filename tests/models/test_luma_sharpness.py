"""The luma statistics equal values computed by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kvq_batch.domain.scorer import ModelOptions, Prediction
from kvq_batch.models import registry
from kvq_batch.models.luma_sharpness.scorer import pair_starts


def score(clip: NDArray[np.uint8]) -> Prediction:
    return registry.build(ModelOptions("luma-sharpness")).score([clip])[0]


def test_grey_clip_has_luma_only() -> None:
    found = score(np.full((32, 24, 40, 3), 77, np.uint8))
    assert found.outputs == {"luma_mean": 77.0, "luma_std": 0.0, "sharpness": 0.0, "temporal_difference": 0.0}
    assert found.raw_score == 0.0
    assert found.texture is None
    assert found.saliency is None


def test_luma_weights_are_those_of_bt601() -> None:
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        clip = np.zeros((2, 8, 8, 3), np.uint8)
        clip[..., channel] = 255
        assert score(clip).outputs["luma_mean"] == pytest.approx(255 * weight, abs=0.5)


def test_checkerboard_has_computed_statistics() -> None:
    board = (np.indices((16, 16)).sum(0) % 2 * 100).astype(np.uint8)
    clip = np.repeat(np.stack([board, 100 - board])[..., None], 3, axis=-1)
    # Each inner pixel differs by 100 from its four neighbours, and by 100 from the next frame.
    expected = {"luma_mean": 50.0, "luma_std": 50.0, "sharpness": 400.0, "temporal_difference": 100.0}
    found = score(clip)
    assert dict(found.outputs) == pytest.approx(expected)
    assert found.raw_score == pytest.approx(400.0)


def test_one_frame_has_no_temporal_difference() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert score(clip).outputs["temporal_difference"] == 0.0
    assert score(clip).outputs["sharpness"] > 100


def test_blur_lowers_and_noise_raises_the_score() -> None:
    generator = np.random.default_rng(1)
    clip = np.kron(generator.integers(60, 200, (4, 12, 12, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    blurred = (clip.astype(int) + np.roll(clip, 1, 1) + np.roll(clip, 1, 2) + np.roll(clip, (1, 1), (1, 2))) // 4
    noisy = np.clip(clip + generator.normal(0, 8, clip.shape), 0, 255)
    scores = [score(rendition.astype(np.uint8)).raw_score for rendition in (blurred, clip, noisy)]
    assert scores == sorted(scores)


def test_score_does_not_depend_on_the_batch() -> None:
    generator = np.random.default_rng(2)
    clips = [generator.integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8) for frames in (32, 7, 2)]
    scorer = registry.build(ModelOptions("luma-sharpness"))
    together = scorer.score(clips)
    assert together == [scorer.score([clip])[0] for clip in clips]
    assert scorer.score([]) == []


@pytest.mark.parametrize(
    ("num_frames", "starts"), [(1, []), (2, [0]), (3, [0]), (7, [0, 2, 4]), (8, [0, 2, 4, 6]), (32, [0, 8, 16, 24])]
)
def test_pairs_are_spread_over_the_clip(num_frames: int, starts: list[int]) -> None:
    assert pair_starts(num_frames, 4) == starts


def test_model_id_is_stable() -> None:
    # The id covers the names of the configuration's fields: renaming one makes every stored score outdated.
    assert registry.describe(ModelOptions("luma-sharpness")).card.model_id == "luma-sharpness@1-8ebe4ba6c66e"
