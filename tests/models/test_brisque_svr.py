"""BRISQUE with support vector regression scores clips, and its score falls with degradation."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.features.brisque import live_features
from kvq_batch.features.nss_maps import video_luma
from kvq_batch.metrics.logistic import Logistic
from kvq_batch.models import registry
from tests.goldens.study import recipe

OPTIONS = ModelOptions("brisque-svr")


def clip(num: int = 2) -> NDArray[np.uint8]:
    return np.stack([np.repeat(recipe.natural(50 + t, 160, 200)[..., None], 3, -1) for t in range(num)])


def test_scores_are_on_the_scale_of_opinions() -> None:
    found = registry.build(OPTIONS).score([clip()])[0]
    assert 1 <= found.raw_score <= 5
    assert found.features is not None
    expected = np.mean([live_features(video_luma(frame)) for frame in clip()], axis=0)
    np.testing.assert_allclose(found.features, expected, rtol=1e-6)


def test_score_does_not_depend_on_the_batch() -> None:
    scorer = registry.build(OPTIONS)
    clips = [clip(1), clip(2), clip(3)[:, :100]]
    assert [p.raw_score for p in scorer.score(clips)] == [scorer.score([c])[0].raw_score for c in clips]


def test_black_video_gets_a_finite_score() -> None:
    assert np.isfinite(registry.build(OPTIONS).score([np.zeros((2, 64, 64, 3), np.uint8)])[0].raw_score)


def test_luma_is_that_of_a_video() -> None:
    frame = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]]], np.uint8)
    # BT.601, video range: 16 + 65.481 for red, 16 + 24.966 for blue.
    assert video_luma(frame).tolist() == [[16.0, 235.0, 81.0, 41.0]]


def test_card_names_training_data_and_licence() -> None:
    card = registry.describe(OPTIONS).card
    assert card.origin == "trained"
    assert "KoNViD-1k" in card.training_data
    assert "MIT" in card.licence


def test_weights_are_rejected() -> None:
    with pytest.raises(SpecError, match="includes its regressor"):
        registry.describe(ModelOptions("brisque-svr", weights="other.npz"))


def test_mos_is_the_raw_score_on_0_to_100() -> None:
    curve = Logistic(*registry.describe(OPTIONS).card.calibrations["opinion-scale"])
    np.testing.assert_allclose(curve(np.array([1.0, 2.0, 3.0, 4.5, 5.0])), [0, 25, 50, 87.5, 100], atol=1e-4)


def test_calibration_does_not_change_the_model_id() -> None:
    assert registry.describe(OPTIONS).card.model_id == "brisque-svr@1-090b417c55a1"
