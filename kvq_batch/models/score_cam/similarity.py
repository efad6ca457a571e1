"""Similarity of deep features and saliency (Algorithm 3 of arXiv 2308.06853; STUDY_SPEC section 4.4)."""

import numpy as np
from numpy.typing import NDArray

_SIDE = 45
"""Side of the reduced map: its 2025 cells are compared with windows of the 2048 features."""


def saliency_similarity(
    features: NDArray[np.float32], saliency_HW: NDArray[np.float32]
) -> tuple[float, NDArray[np.float64]]:
    """Return the mean cosine of a saliency map with the windows of a feature vector, and the cosine of each window.

    Args:
        features: the mean ResNet-50 features of a frame, [2048].
        saliency_HW: its saliency, [224, 224].
    """
    small = reduced_map(saliency_HW).astype(np.float64).ravel()
    windows = np.lib.stride_tricks.sliding_window_view(features.astype(np.float64), len(small))
    cosines = windows @ small / (np.linalg.norm(windows, axis=1) * np.linalg.norm(small))
    return float(cosines.mean()), cosines


def reduced_map(saliency_HW: NDArray[np.float32], side: int = _SIDE) -> NDArray[np.float32]:
    """Return a map [side, side]: reduced by antialiased triangles, columns first, float32 between the passes."""
    rows, columns = (_triangles(extent, side) for extent in saliency_HW.shape)
    narrow = (saliency_HW.astype(np.float64) @ columns.T).astype(np.float32)
    small: NDArray[np.float32] = (rows @ narrow.astype(np.float64)).astype(np.float32)
    return small


def _triangles(extent: int, side: int) -> NDArray[np.float64]:
    """Return the weights [side, extent] of one axis, whose rows sum to 1."""
    step = extent / side
    weights = np.zeros((side, extent))
    for index in range(side):
        centre = (index + 0.5) * step
        taps = np.arange(max(0, int(centre - step + 0.5)), min(extent, int(centre + step + 0.5)))
        values = np.maximum(0.0, 1.0 - np.abs((taps - centre + 0.5) / step))
        weights[index, taps] = values / values.sum()
    return weights
