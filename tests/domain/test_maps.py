"""Quantised maps: bounds of the error, the exact score, and rejected maps."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kvq_batch.domain.maps import LEVELS, StoredMaps, dequantise, quantise, quantise_causes
from tests.support.results import make_maps


def recomputed(stored: StoredMaps) -> float:
    """Return mean(texture * saliency) in double precision, as SQL computes it."""
    row = stored.row()
    texture = row["texture"] * row["texture_scale"] + row["texture_offset"]
    saliency = (row["saliency"] * row["saliency_scale"] + row["saliency_offset"]) ** 2
    return float(np.mean(texture * saliency))


@pytest.mark.parametrize("seed", range(5))
def test_error_is_at_most_half_a_step(seed: int) -> None:
    texture, saliency = make_maps(seed, 16, 14, 14)
    stored = quantise(texture, saliency)
    texture_again, saliency_again = dequantise(stored)
    assert texture_again is not None
    assert saliency_again is not None
    assert texture_again.shape == saliency_again.shape == (16, 14, 14)
    assert texture_again.dtype == saliency_again.dtype == np.float32
    step = np.ptp(texture.astype(np.float64)) / LEVELS
    # Half a step of rounding, plus the shift that makes the score exact.
    assert np.abs(texture_again - texture).max() <= 0.6 * step
    root_step = np.ptp(np.sqrt(saliency.astype(np.float64))) / LEVELS
    assert np.abs(np.sqrt(saliency_again) - np.sqrt(saliency)).max() <= 0.501 * root_step


@pytest.mark.parametrize("seed", range(5))
def test_score_of_stored_maps_is_exact(seed: int) -> None:
    texture, saliency = make_maps(seed, 16, 14, 14)
    score = float(np.mean(texture.astype(np.float64) * saliency))
    assert recomputed(quantise(texture, saliency)) == pytest.approx(score, abs=1e-12, rel=1e-12)


def test_constant_map_has_scale_zero() -> None:
    texture = np.full((2, 3, 4), 0.25, np.float32)
    stored = quantise(texture, np.ones_like(texture))
    assert stored.texture_scale == stored.saliency_scale == 0
    texture_again, saliency_again = dequantise(stored)
    np.testing.assert_array_equal(texture_again, texture)
    np.testing.assert_array_equal(saliency_again, np.ones_like(texture))


def test_zero_saliency_does_not_shift_texture() -> None:
    texture, _ = make_maps(1)
    stored = quantise(texture, np.zeros_like(texture))
    assert stored.texture_offset == quantise(texture, None).texture_offset


def test_single_map_is_stored() -> None:
    texture, saliency = make_maps(3)
    only_texture = quantise(texture, None)
    assert only_texture.saliency is None
    assert dequantise(only_texture)[1] is None
    only_saliency = quantise(None, saliency)
    assert only_saliency.row()["texture_scale"] is None
    assert dequantise(only_saliency)[0] is None


def test_range_may_exceed_float32() -> None:
    texture: NDArray[np.float32] = np.array([[[-3.4e38, 3.4e38]]], np.float32)
    again, _ = dequantise(quantise(texture, None))
    assert again is not None
    np.testing.assert_allclose(again, texture, rtol=1e-6)


@pytest.mark.parametrize(
    ("texture", "saliency"),
    [
        (None, None),
        (np.zeros((2, 2), np.float32), None),
        (np.zeros((0, 2, 2), np.float32), None),
        (np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 3), np.float32)),
        (np.full((1, 2, 2), np.nan, np.float32), None),
        (None, np.full((1, 2, 2), np.inf, np.float32)),
        (None, np.full((1, 2, 2), -1, np.float32)),
    ],
)
def test_invalid_maps_are_rejected(texture: NDArray[np.float32] | None, saliency: NDArray[np.float32] | None) -> None:
    with pytest.raises(ValueError):
        quantise(texture, saliency)


def test_causes_are_stored_in_percent_and_only_if_found() -> None:
    blur = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    stored = quantise_causes({"blur": blur, "freeze": np.array([0, 1], np.float32), "black": np.zeros(2, np.float32)})
    assert stored.shape == (2, 3, 4)
    assert set(stored.causes) == {"blur", "freeze"}
    np.testing.assert_allclose(stored.causes["blur"].reshape(2, 3, 4) / 100, blur, atol=0.005 + 1e-6)
    assert stored.causes["freeze"].tolist() == [0, 100]
    assert stored.row()["texture"] is None


@pytest.mark.parametrize(
    "causes",
    [
        {},
        {"freeze": np.zeros(2, np.float32)},
        {"blur": np.zeros((2, 3, 4), np.float32), "noise": np.zeros((2, 4, 4), np.float32)},
        {"blur": np.zeros((2, 3, 4), np.float32), "freeze": np.zeros(3, np.float32)},
        {"blur": np.full((2, 3, 4), 1.2, np.float32)},
        {"blur": np.full((2, 3, 4), np.nan, np.float32)},
    ],
)
def test_invalid_causes_are_rejected(causes: dict[str, NDArray[np.float32]]) -> None:
    with pytest.raises(ValueError, match=r"grid|severity"):
        quantise_causes(causes)
