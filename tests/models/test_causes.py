"""Causes: each is found in the renditions, the cells and the time slots that have it, and not elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.causes import auc, measure
from benchmarks.pipeline import FACTS
from kvq_batch.domain.errors import ScoreError, SpecError
from kvq_batch.domain.frames import ClipTimes, Frame, SampledClip, Sampling
from kvq_batch.domain.scorer import ModelOptions, Prediction
from kvq_batch.features.causes.extraction import CauseExtraction, unpack
from kvq_batch.media.local_files import clip_of_file
from kvq_batch.media.planes import Planes, from_raw
from kvq_batch.media.synthesis import fractal
from kvq_batch.models import registry
from kvq_batch.models.causes.config import CausesConfig, SlotSampling
from kvq_batch.models.causes.family import CAUSES, CELL_CAUSES
from kvq_batch.models.causes.scorer import ramp
from tests.support.material import Material

HEIGHT, WIDTH, FRAMES = 224, 320, 64
Video = NDArray[np.uint8]
"""Luma, uint8 [T, H, W]."""


@pytest.fixture(scope="module")
def pristine() -> Video:
    """Return a pan over a photograph-like picture with sharp edges, which do not lie on multiples of 8."""
    generator = np.random.default_rng(0)
    height, width = HEIGHT + FRAMES, WIDTH + 2 * FRAMES
    y, x = np.indices((height, width))
    picture = 110 + 12 * fractal(generator, height, width, 1.5) + 50 * (((x + 5) // 27 + (y + 3) // 31) % 2)
    pixels = np.clip(np.rint(picture + generator.normal(0, 0.7, picture.shape)), 30, 220).astype(np.uint8)
    return np.stack([pixels[t : t + HEIGHT, 2 * t : 2 * t + WIDTH] for t in range(FRAMES)])


def planes(video: Video) -> Planes:
    chroma = np.full((len(video), HEIGHT * WIDTH // 2), 128, np.uint8)
    raw = np.concatenate([video.reshape(len(video), -1), chroma], axis=1)
    return from_raw(raw.tobytes(), HEIGHT, WIDTH, Fraction(25))


def predict(video: Video) -> Prediction:
    scorer = registry.build(ModelOptions("causes"))
    return scorer.score([measure(planes(video), CausesConfig())])[0]


def blurred(video: Video) -> Video:
    return np.stack([gaussian_filter(frame.astype(np.float32), 2.5) for frame in video]).round().astype(np.uint8)


def noisy(video: Video) -> Video:
    noise = np.random.default_rng(1).normal(0, 9, video.shape)
    return np.clip(np.rint(video + noise), 0, 255).astype(np.uint8)


def blocky(video: Video) -> Video:
    blocks = video.reshape(len(video), HEIGHT // 8, 8, WIDTH // 8, 8).mean(axis=(2, 4))
    return np.asarray(blocks.repeat(8, 1).repeat(8, 2), np.uint8)


def banded(video: Video) -> Video:
    y, x = np.indices((HEIGHT, WIDTH))
    smooth = 60 + (x + 0.4 * y) * 0.25
    return np.broadcast_to((smooth // 6 * 6).astype(np.uint8), video.shape)


def white(video: Video) -> Video:
    return np.maximum(video, 235)


def woven(video: Video) -> Video:
    mixed = video.copy()
    mixed[:-1, 1::2] = video[1:, 1::2]
    return mixed


DEGRADED: dict[str, Callable[[Video], Video]] = {
    "blur": blurred,
    "noise": noisy,
    "blockiness": blocky,
    "banding": banded,
    "over_exposure": white,
    "combing": woven,
}


def test_pristine_clip_has_no_cause(pristine: Video) -> None:
    found = predict(pristine)
    assert set(found.outputs) == set(CAUSES)
    assert max(found.outputs.values()) < 0.1, found.outputs
    means = {name: float(values.mean()) for name, values in found.causes.items()}
    assert max(means.values()) < 0.1, means


@pytest.mark.parametrize("cause", CELL_CAUSES)
def test_cause_is_found_in_its_cells_and_slots_only(pristine: Video, cause: str) -> None:
    # The lower right quarter, in the second half.
    video = pristine.copy()
    rows, columns = slice(HEIGHT // 2, None), slice(WIDTH // 2, None)
    video[FRAMES // 2 :, rows, columns] = DEGRADED[cause](pristine)[FRAMES // 2 :, rows, columns]
    found = predict(video).causes
    half = len(found[cause]) // 2
    assert found[cause].shape == (2 * half, 14, 14)
    # Cells at the border of the quarter have something of both.
    assert found[cause][half:, 8:, 8:].mean() > 0.5
    # A straight edge of the picture may lie on a multiple of 8: then a cell has a block border.
    assert np.quantile(found[cause][half:, :6], 0.95) < 0.4
    assert np.quantile(found[cause][half:, :, :6], 0.95) < 0.4
    assert found[cause][:half].mean() < 0.05


@pytest.mark.parametrize("cause", CELL_CAUSES)
def test_cause_of_the_whole_clip_is_in_its_output(pristine: Video, cause: str) -> None:
    found = predict(DEGRADED[cause](pristine)).outputs
    assert found[cause] > 0.5, found


def test_black_half_is_black_and_not_frozen(pristine: Video) -> None:
    video = pristine.copy()
    video[FRAMES // 2 :] = 16
    found = predict(video)
    assert found.causes["black"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert found.outputs["black"] == 0.5
    assert found.outputs["freeze"] == found.outputs["under_exposure"] == found.outputs["letterbox"] == 0


def test_frozen_slots_are_found(pristine: Video) -> None:
    video = pristine.copy()
    video[FRAMES // 2 :] = video[FRAMES // 2]
    found = predict(video)
    assert found.causes["freeze"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert found.causes["repeated_frames"].max() == 0


@pytest.mark.parametrize(("every", "severity"), [(4, 0.5), (2, 1.0)])
def test_repeated_frames_are_not_a_freeze(pristine: Video, every: int, severity: float) -> None:
    frames = np.arange(FRAMES)
    found = predict(pristine[frames - (frames % every == every - 1)]).outputs
    assert found["repeated_frames"] == pytest.approx(severity, abs=0.17)
    assert found["freeze"] == 0


@pytest.mark.parametrize(("bars", "severity"), [(0, 0.0), (14, 0.46), (28, 1.0)])
def test_letterbox_grows_with_its_bars(pristine: Video, bars: int, severity: float) -> None:
    video = pristine.copy()
    if bars:
        video[:, :bars] = video[:, -bars:] = 17
    assert predict(video).outputs["letterbox"] == pytest.approx(severity, abs=0.02)


def test_bars_in_one_slot_are_not_a_letterbox(pristine: Video) -> None:
    video = pristine.copy()
    video[:8, :40] = video[:8, -40:] = 16
    assert predict(video).outputs["letterbox"] == 0


def test_under_exposure_follows_the_brightest_pixels(pristine: Video) -> None:
    darker = [predict((16 + (pristine - 16.0) * gain).astype(np.uint8)).outputs for gain in (1, 0.5, 0.3)]
    severities = [found["under_exposure"] for found in darker]
    assert severities[0] == 0
    assert 0.2 < severities[1] < severities[2]
    assert darker[2]["black"] == 0


@pytest.mark.parametrize("num_frames", [1, 2, 6, 7, 8, 13])
def test_short_clips_have_fewer_slots(pristine: Video, num_frames: int) -> None:
    found = predict(pristine[:num_frames])
    assert found.causes["blur"].shape == (max(1, num_frames // 7), 14, 14)
    assert all(np.isfinite(values).all() for values in found.causes.values())
    assert max(found.outputs.values()) < 0.1, found.outputs


@pytest.mark.parametrize("num_frames", [64, 100, 250, 719])
def test_frames_of_kvq_are_among_the_measured_ones(num_frames: int) -> None:
    times = ClipTimes(np.arange(num_frames) / 25, 25.0)
    own = SlotSampling().select(times, "")
    assert len(own) == len(set(own.tolist())) == 56
    assert set(Sampling().select(times, "").tolist()) <= set(own.tolist())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (18, 400), (400, 18), (722, 34)])
@pytest.mark.parametrize("level", [16, 90, 235])
def test_flat_frames_of_any_size_have_severities(height: int, width: int, level: int) -> None:
    raw = np.full((7, height * width * 3 // 2), level, np.uint8)
    rows = measure(from_raw(raw.tobytes(), height, width, Fraction(25)), CausesConfig())
    (found,) = registry.build(ModelOptions("causes")).score([rows])
    severe = {name for name, value in found.outputs.items() if value > 0.5}
    assert severe == {16: {"black"}, 90: {"freeze", "under_exposure"}, 235: {"freeze", "over_exposure"}}[level]


def test_tiny_frames_are_rejected() -> None:
    raw = np.zeros((7, 14 * 40 * 3 // 2), np.uint8)
    with pytest.raises(ScoreError, match="at least 16 pixels a side, got 40x14"):
        measure(from_raw(raw.tobytes(), 14, 40, Fraction(25)), CausesConfig())


def test_result_does_not_depend_on_the_batch(pristine: Video) -> None:
    scorer = registry.build(ModelOptions("causes"))
    clips = [measure(planes(video), CausesConfig()) for video in (pristine[:20], noisy(pristine[:20]))]
    together = scorer.score(clips)
    alone = [scorer.score([clip])[0] for clip in clips]
    assert [p.outputs for p in together] == [p.outputs for p in alone]
    assert scorer.score([]) == []


def test_file_is_measured_while_it_is_decoded(material: Material) -> None:
    spec = registry.describe(ModelOptions("causes"))
    rows = clip_of_file(material("h264.mp4"), spec.frames, 1)
    (found,) = registry.build(ModelOptions("causes")).score([rows])
    assert set(found.causes) == set(CAUSES)
    assert not spec.has_score


def test_ten_bits_and_full_range_have_the_severities_of_eight_bits(pristine: Video) -> None:
    def measured(frames: NDArray[Any], bit_depth: int, color_range: str) -> NDArray[np.float32]:
        facts = replace(FACTS, bit_depth=bit_depth, color_range=color_range)
        indices = np.arange(7)
        extraction = CauseExtraction(SampledClip(facts, indices, indices / 25, 0, 7, ""), 7, 14, 14)
        for index in range(7):
            extraction.add(Frame(index, index / 25, np.array([index]), (frames[index],)))
        return unpack(extraction.finish(), (14, 14)).cells

    eight = measured(pristine[:7], 8, "tv")
    ten = measured(pristine[:7].astype(np.uint16) << 2, 10, "tv")
    full = measured(np.rint((pristine[:7] - 16.0) * 255 / 219).astype(np.uint8), 8, "pc")
    np.testing.assert_array_equal(ten[:, :3], eight[:, :3])
    np.testing.assert_allclose(full[:, 0], eight[:, 0], atol=0.1)
    np.testing.assert_allclose(full[:, 1], eight[:, 1], atol=0.15)


def test_ramp_is_linear_between_its_ends() -> None:
    assert ramp(np.array([0, 1, 2, 3, 9, np.nan]), (1, 3)).tolist() == [0, 0, 0.5, 1, 1, 0]
    assert ramp(np.array([130, 100, 70]), (130, 70)).tolist() == [0, 0.5, 1]


def test_auc_counts_pairs() -> None:
    assert auc([1, 2], [0, 1]) == 0.875


def test_weights_are_rejected() -> None:
    with pytest.raises(SpecError, match="Model 'causes' has no weights"):
        registry.describe(ModelOptions("causes", weights="a.pth"))
