"""The curve between a model's number and a label: four parameters, monotone, as video quality studies fit it.

    f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|))

The same four numbers are a model's calibration (`ModelCard.calibrations`). This module fits; whether a fit is worth
anything is for `agreement`.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import leastsq
from scipy.special import expit

from kvq_batch.metrics.ranks import Real

MIN_SCORES = 5
"""Different scores that a fit of four parameters needs to say anything."""

_MAX_EVALUATIONS = 2000
_TOLERANCE = 1e-8
# A curve that gives all but 5% of the scores its lowest or its highest label, to 1% of its range, is a step. What bends
# once (one end far outside of the scores) is none.
_FLAT, _MIN_ON_SLOPE = 0.01, 0.05
# MINPACK's codes for a minimum that was found.
_CONVERGED = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Logistic:
    """The fitted curve; `b4` is positive."""

    b1: float
    b2: float
    b3: float
    b4: float

    def __call__(self, scores: Real) -> Real:
        """Labels that the curve gives to `scores`."""
        curve: Real = self.b2 + (self.b1 - self.b2) * expit((scores - self.b3) / abs(self.b4))
        return curve

    def is_step(self, scores: Real) -> bool:
        """Whether it gives nearly all of `scores` one of two labels: it says which half, and no more."""
        fitted = self(scores)
        low, high = float(fitted.min()), float(fitted.max())
        margin = _FLAT * (high - low)
        return bool(np.mean((fitted > low + margin) & (fitted < high - margin)) < _MIN_ON_SLOPE)

    @property
    def parameters(self) -> tuple[float, float, float, float]:
        return self.b1, self.b2, self.b3, self.b4


def fit_logistic(
    scores: Real,
    labels: Real,
    weights: Real | None = None,
    start: Logistic | None = None,
    tolerance: float = _TOLERANCE,
) -> Logistic | str:
    """The curve of least squared error, or a sentence why there is none.

    Begins where studies after VQEG do, at b1 = max, b2 = min of the labels, b3 = mean and |b4| = std / 4 of the
    scores, and at wider curves beside it, because a nearly straight relation has its minimum far from there; the best
    end counts. With `start`, from there alone.
    """
    if len(np.unique(scores)) < MIN_SCORES:
        return f"fewer than {MIN_SCORES} different scores: a curve of 4 parameters says nothing"
    centre, spread = float(scores.mean()), float(scores.std())
    x = (scores - centre) / spread
    root = np.ones_like(x) if weights is None else np.sqrt(weights)
    low, high = float(labels.min()), float(labels.max())
    if start is not None:
        starts = [(start.b1, start.b2, (start.b3 - centre) / spread, start.b4 / spread)]
    else:
        is_rising = float(np.corrcoef(scores, labels)[0, 1]) >= 0
        ends = (high, low) if is_rising else (low, high)
        starts = [(*ends, 0.0, width) for width in (0.25, 1.0, 4.0)]
    # A curve may pass far beyond the labels where they show no bend; in units of their range nothing overflows.
    scale = high - low
    ended = [
        end
        for begin in starts
        if (end := _descend(x, (labels - low) / scale, root, _inner(begin, low, scale), tolerance))
    ]
    if not ended:
        return f"the logistic did not converge within {_MAX_EVALUATIONS} evaluations from any of {len(starts)} starts"
    b1, b2, b3, b4 = min(ended, key=lambda end: end[0])[1]
    return Logistic(low + scale * b1, low + scale * b2, centre + spread * b3, spread * abs(b4))


def _inner(begin: tuple[float, float, float, float], low: float, scale: float) -> tuple[float, float, float, float]:
    b1, b2, b3, b4 = begin
    return (b1 - low) / scale, (b2 - low) / scale, b3, b4


def _descend(
    x: Real, y: Real, root: Real, begin: tuple[float, float, float, float], tolerance: float
) -> tuple[float, tuple[float, float, float, float]] | None:
    """Squared error and parameters where Levenberg and Marquardt's way ends; None where it does not."""

    def rest(b: Real) -> Real:
        curve: Real = root * (b[1] + (b[0] - b[1]) * expit((x - b[2]) / abs(b[3])) - y)
        return curve

    def slope(b: Real) -> Real:
        width = abs(b[3])
        z = (x - b[2]) / width
        share = expit(z)
        steep = root * (b[0] - b[1]) * share * (1 - share) / width
        return np.stack([root * share, root * (1 - share), -steep, -steep * z * np.sign(b[3])])

    # Steps that leave the numbers (a width of 0) are answered by a larger error, and taken back.
    with np.errstate(all="ignore"):
        end, _, _, _, code = leastsq(
            rest, begin, Dfun=slope, col_deriv=True, full_output=True,
            ftol=tolerance, xtol=tolerance, maxfev=_MAX_EVALUATIONS,
        )  # fmt: skip
        error = float((rest(end) ** 2).sum())
    if code not in _CONVERGED or not np.isfinite([*end, error]).all() or end[3] == 0:
        return None
    return error, (float(end[0]), float(end[1]), float(end[2]), float(end[3]))
