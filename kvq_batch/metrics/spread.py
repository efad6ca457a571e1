"""How far labels scatter around calibrated scores, as a function of the score, measured on held-out clips."""

import numpy as np
from numpy.typing import NDArray

Spread = tuple[tuple[float, ...], tuple[float, ...]]
"""Knots: raw scores in ascending order, and the standard deviation of the label at each of them."""

_CLIPS_PER_KNOT = 40
_MOST_KNOTS = 8


def fit_spread(scores: NDArray[np.float64], errors: NDArray[np.float64]) -> Spread | None:
    """Return the root mean square of `errors` [n] (label minus calibrated score) in groups of equal size by raw score.

    None for fewer than 80 clips: two groups at least are needed.
    """
    count = min(_MOST_KNOTS, len(scores) // _CLIPS_PER_KNOT)
    if count < 2:
        return None
    groups = np.array_split(np.argsort(scores, kind="stable"), count)
    knots = [float(np.median(scores[group])) for group in groups]
    return tuple(knots), tuple(float(np.sqrt(np.mean(errors[group] ** 2))) for group in groups)


def coverage(errors: NDArray[np.float64], deviations: NDArray[np.float64], width: float) -> float:
    """Return the share of clips whose label is within `width` deviations of the calibrated score."""
    return float(np.mean(np.abs(errors) <= width * deviations))
