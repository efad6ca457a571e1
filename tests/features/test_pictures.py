"""BRISQUE equals OpenCV's, NIQE and the VIDEVAL regressor equal golden values."""

from pathlib import Path

import numpy as np
import pytest

from kvq_batch.features.brisque import live_features, opencv_features
from kvq_batch.features.niqe import niqe_distance, niqe_features, pristine_model
from tests.goldens.study import recipe

FOLDER = Path(recipe.__file__).parent
GOLDEN = np.load(FOLDER / "golden_pictures.npz", allow_pickle=False)


@pytest.mark.parametrize("name", sorted(recipe.BRISQUE))
def test_brisque_equals_opencv(name: str) -> None:
    found = opencv_features(recipe.natural(*recipe.BRISQUE[name]))
    # OpenCV computes in float32.
    np.testing.assert_allclose(found, GOLDEN[f"brisque_cv.{name}.features"], rtol=0, atol=1e-5)


def test_live_features_agree_with_opencv_at_full_size() -> None:
    picture = recipe.natural(41, 400, 500)
    # Only borders differ at full size. The release names the same statistics.
    np.testing.assert_allclose(live_features(picture)[:18], opencv_features(picture)[:18], rtol=0.05, atol=0.02)


def test_flat_picture_has_undefined_features() -> None:
    assert np.isnan(live_features(np.zeros((40, 40), np.uint8))[3])


@pytest.mark.parametrize("name", sorted(recipe.NIQE))
def test_niqe_equals_golden(name: str) -> None:
    found = niqe_features(recipe.natural(*recipe.NIQE[name]))
    np.testing.assert_allclose(found, GOLDEN[f"niqe.{name}.features"], rtol=0, atol=1e-9)
    distance = niqe_distance(found, *pristine_model())
    assert distance == pytest.approx(float(GOLDEN[f"niqe.{name}.score"]), abs=1e-8)


def test_niqe_rejects_small_pictures_and_black_ones() -> None:
    with pytest.raises(ValueError, match="192x192"):
        niqe_features(np.zeros((100, 300), np.uint8))
    features = niqe_features(np.zeros((192, 192), np.uint8))
    assert np.isnan(niqe_distance(features, np.zeros(36), np.eye(36)))
