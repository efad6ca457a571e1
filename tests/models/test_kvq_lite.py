"""KVQ-Lite: its card, and its scores and maps on scenes that its training did not use."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kvq_batch.config.recipe import CameraMotion, Cells, Patch, Recipe, Segment, Step
from kvq_batch.domain.frames import Sampling
from kvq_batch.domain.scorer import ModelOptions, Scorer
from kvq_batch.labeling.degradations import make_rendition
from kvq_batch.labeling.scenes import make_scene
from kvq_batch.labeling.segments import segment_of_scene, segment_of_still
from kvq_batch.media.planes import Planes
from kvq_batch.media.resize import splice
from kvq_batch.media.synthesis import ClipShape
from kvq_batch.models import registry
from kvq_batch.models.kvq.config import LITE
from kvq_batch.models.kvq.family import kvq_lite

OPTIONS = ModelOptions("kvq-lite", num_threads=2)
UNSEEN_SEED = 1 << 21
# Of scores of about 0 to 1. docs/model.md states the mean difference over photographs.
MOTION_BOUND = 0.2


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return registry.build(OPTIONS)


@pytest.fixture(scope="module", params=["landscape", "leaves"])
def source(request: pytest.FixtureRequest) -> Planes:
    return segment_of_scene(request.param, UNSEEN_SEED, Segment(num_frames=10, height_px=352, width_px=480))


def clip_of(planes: Planes) -> np.ndarray:
    """Return the frames that the model requests of a video of these planes."""
    request = registry.describe(OPTIONS).frames
    assert request.size is not None
    assert request.fragments is not None
    frames = planes.to_rgb()
    assert isinstance(request.sampling, Sampling)
    indices = request.sampling.indices(len(frames))
    clip = np.empty((len(indices), *request.size, 3), np.uint8)
    for t, index in enumerate(indices):
        splice(frames[index], request.fragments, clip[t])
    return clip


def test_card_describes_the_included_weights() -> None:
    spec = registry.describe(OPTIONS)
    assert spec.card.origin == "trained"
    assert spec.card.name == "kvq-lite"
    assert "VMAF" in spec.card.training_data
    assert "not opinions" in spec.card.summary
    assert "validation" in spec.card.calibrations
    assert spec.frames.fragments == LITE.fragments
    assert kvq_lite.default_weights is not None
    assert Path(kvq_lite.default_weights).stat().st_size <= 20_000_000
    assert "EfficientNet-Lite0" in spec.card.training_data
    assert spec.outputs == ("std",)
    scores, deviations = spec.card.spread
    # Labels are 0 to 100.
    assert len(scores) >= 2
    assert all(0 < deviation < 50 for deviation in deviations)


def test_score_decreases_with_the_bit_rate(scorer: Scorer, source: Planes) -> None:
    ladder = [make_rendition(source, Recipe((Step("h264", crf),))) for crf in (22, 32, 40, 48)]
    scores = [prediction.raw_score for prediction in scorer.score([clip_of(rendition) for rendition in ladder])]
    assert scores == sorted(scores, reverse=True), scores
    assert scores[0] - scores[-1] > 0.1


@pytest.mark.parametrize("step", [Step("blur", 3), Step("pixelate", 4), Step("mjpeg", 30)], ids=str)
def test_texture_is_low_in_a_degraded_region(scorer: Scorer, source: Planes, step: Step) -> None:
    patch = Patch(Cells(0, 0, 11, 8), (step,))
    clean, degraded = scorer.score([clip_of(source), clip_of(make_rendition(source, Recipe((), (patch,))))])
    assert clean.texture is not None
    assert degraded.texture is not None
    change = (degraded.texture - clean.texture).mean(0)
    # Of the seven columns of the map, the left three are fully degraded, and the right three not at all.
    assert change[:, :3].mean() < change[:, 4:].mean() - 0.02


@pytest.mark.parametrize("scene", ["landscape", "leaves", "city"])
def test_a_pristine_picture_scores_alike_at_rest_and_panned(scorer: Scorer, scene: str) -> None:
    picture = make_scene(scene, UNSEEN_SEED, ClipShape(width_px=720, height_px=540, num_frames=1))[0]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    cameras: tuple[CameraMotion, ...] = ("rest", "slow", "moving")
    clips = [
        clip_of(
            segment_of_still(
                file.getvalue(), Segment(num_frames=10, height_px=352, width_px=480, seed=4, camera=camera)
            )
        )
        for camera in cameras
    ]
    scores = [prediction.raw_score for prediction in scorer.score(clips)]
    assert np.ptp(scores) < MOTION_BOUND, scores
