"""Models of measured features equal golden values through the interface of the decoder, and refuse other videos."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError, ScoreError, SpecError
from kvq_batch.domain.frames import ClipTimes, Extraction, Frame, SampledClip
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.domain.video import VideoFacts
from kvq_batch.features.brisque import live_features
from kvq_batch.features.chunks import CentreSampling, ChunkSampling
from kvq_batch.features.extractions import (
    BrisqueExtraction,
    CentreFrames,
    NiqeExtraction,
    NssExtraction,
    OpencvBrisqueExtraction,
)
from kvq_batch.models import registry
from kvq_batch.models.brisque.family import _regressor
from kvq_batch.models.videval.family import predict
from tests.goldens.study import recipe

FOLDER = Path(recipe.__file__).parent
NSS = np.load(FOLDER / "golden_nss.npz", allow_pickle=False)
PICTURES = np.load(FOLDER / "golden_pictures.npz", allow_pickle=False)


def sampled(height: int, width: int, num: int, rate: float, indices: NDArray[np.int64], first: int = 0) -> SampledClip:
    facts = VideoFacts(
        width, height, 0, False, 1.0, rate, False, num / rate, num, "h264", "yuv420p", 8, "progressive",
        "bt709", "bt709", "bt709", "tv",
    )  # fmt: skip
    return SampledClip(facts, indices, indices / rate, first, num, "clip#0")


def extract(extraction: Extraction, frames: Sequence[tuple[NDArray[Any], ...]], numbers: Sequence[int]) -> NDArray[Any]:
    for row, number in enumerate(numbers):
        extraction.add(Frame(number, 0.0, np.array([row]), frames[number]))
    return extraction.finish()


@pytest.mark.parametrize(("name", "first"), [("c48", 0), ("c48", 7), ("c60", 0)])
def test_streamed_nss_features_equal_matlab(name: str, first: int) -> None:
    seed, num, height, width, rate = recipe.CLIPS[name]
    frames = recipe.clip(seed, num, height, width)
    indices = ChunkSampling().select(ClipTimes(np.arange(num) / rate, rate), "")
    clip = sampled(height, width, num, rate, indices, first)
    found = extract(NssExtraction(clip), [()] * first + list(frames), (indices + first).tolist())
    np.testing.assert_allclose(found[0], NSS[f"nss.{name}.rvs"].astype(np.float32), rtol=2e-6, atol=1e-9)


def test_last_row_and_column_of_odd_planes_are_left_out() -> None:
    y, u, v = recipe.clip(*recipe.CLIPS["c48"][:1], 4, *recipe.CLIPS["c48"][2:4])[3]
    odd = tuple(np.pad(plane, ((0, 1), (0, 1))) for plane in (y, u, v))
    clip = sampled(y.shape[0], y.shape[1], 1, 1.0, np.array([0]))
    expected = extract(CentreFrames(clip, 16), [(y, u, v)], [0])
    assert (extract(CentreFrames(clip, 16), [odd], [0]) == expected).all()
    assert expected.shape == (1, 16, 16, 3)


def test_frames_of_chunks_follow_the_rounded_rate() -> None:
    times = ClipTimes(np.arange(80) / 29.97, 29.97)
    assert CentreSampling().select(times, "").tolist() == [15, 45, 75]
    found = ChunkSampling().select(times, "").tolist()
    # Section 2.2 with F = 30: previous and next frames, and eight from four before the centre on.
    assert found == sorted({5, 25, 35, 55, 65, 78, *range(11, 19), *range(41, 49), *range(71, 78)})


def test_video_of_less_than_half_a_second_is_refused() -> None:
    with pytest.raises(DecodeError, match=r"The clip has 16 frames. At 30 per second it needs 17"):
        ChunkSampling().select(ClipTimes(np.arange(16) / 30, 30.0), "")


def rgb(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(picture[..., None], 3, -1)


def test_niqe_of_golden_pictures_is_the_output_and_its_negative_the_raw_score() -> None:
    picture = rgb(recipe.natural(*recipe.NIQE["n1"]))
    clip = sampled(picture.shape[0], picture.shape[1], 3, 1.0, np.arange(3))
    # A black frame has no distance.
    vector = extract(NiqeExtraction(clip), [(picture,), (picture,), (np.zeros_like(picture),)], [0, 1, 2])
    (found,) = registry.build(ModelOptions("niqe")).score([vector])
    assert found.outputs["niqe"] == pytest.approx(float(PICTURES["niqe.n1.score"]), rel=1e-6)
    assert found.raw_score == -found.outputs["niqe"]
    assert found.features is not None
    np.testing.assert_allclose(found.features, PICTURES["niqe.n1.features"].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_niqe_refuses_small_and_black_videos() -> None:
    with pytest.raises(ScoreError, match=r"191 x 400 pixels. NIQE needs 192"):
        NiqeExtraction(sampled(400, 191, 1, 1.0, np.array([0])))
    with pytest.raises(ScoreError, match="enough detail"):
        extract(NiqeExtraction(sampled(192, 192, 1, 1.0, np.array([0]))), [(np.zeros((192, 192, 3), np.uint8),)], [0])


def test_brisque_measures_the_luma_plane() -> None:
    y = recipe.natural(41, 60, 80)
    planes = (y, np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8))
    found = extract(BrisqueExtraction(sampled(60, 80, 2, 1.0, np.arange(2))), [planes, planes], [0, 1])
    np.testing.assert_allclose(found[0], live_features(y), rtol=1e-6)
    with pytest.raises(ScoreError, match="BRISQUE needs 16"):
        BrisqueExtraction(sampled(60, 8, 2, 1.0, np.arange(2)))


@pytest.mark.parametrize("name", sorted(recipe.BRISQUE))
def test_opencv_score_equals_golden(name: str) -> None:
    picture = rgb(recipe.natural(*recipe.BRISQUE[name]))
    flat = np.full_like(picture, 9)
    clip = sampled(picture.shape[0], picture.shape[1], 3, 1.0, np.arange(3))
    measured = extract(OpencvBrisqueExtraction(clip), [(picture,), (flat,), (picture,)], [0, 1, 2])
    (found,) = registry.build(ModelOptions("brisque-opencv")).score([measured])
    # OpenCV computes in float32; a port in float64 is 0.001 below.
    assert found.outputs["brisque"] == pytest.approx(float(PICTURES[f"brisque_cv.{name}.score"]), abs=0.005)
    assert found.raw_score == -found.outputs["brisque"]
    assert registry.describe(ModelOptions("brisque-opencv")).num_parameters == _regressor().num_parameters
    with pytest.raises(ScoreError, match="enough detail"):
        registry.build(ModelOptions("brisque-opencv")).score([measured[1:2]])


@pytest.mark.parametrize(("name", "num"), [("nss", 1836), ("brisque", 36)])
def test_feature_models_have_no_score(name: str, num: int) -> None:
    scorer = registry.build(ModelOptions(name))
    assert (scorer.spec.num_features, scorer.spec.has_score, scorer.spec.card.origin) == (num, False, "handcrafted")
    (found,) = scorer.score([np.ones((1, num), np.float32)])
    assert found.features is not None
    assert found.features.shape == (num,)
    with pytest.raises(SpecError, match="has no weights"):
        registry.describe(ModelOptions(name, "file.pth"))


def test_videval_predicts_what_its_authors_published() -> None:
    found = predict(PICTURES["videval.features"])
    np.testing.assert_allclose(found, PICTURES["videval.mos"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(found[:2], PICTURES["videval.published"][:2], rtol=0, atol=1e-8)


def test_videval_rejects_videos_and_other_features() -> None:
    with pytest.raises(SpecError, match="study --apply videval"):
        registry.describe(ModelOptions("videval"))
    with pytest.raises(SpecError, match="rows of 60 features"):
        predict(np.zeros((2, 59)))
