"""The curve between a model's number and a label: four parameters, monotone, as video quality studies fit it.

    f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|))

The same four numbers are a model's calibration (`ModelCard.calibrations`). This module fits; whether a fit is worth
anything is for `agreement`.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from kvq_batch.metrics.ranks import Real

MIN_SCORES = 5
"""Different scores that a fit of four parameters needs to say anything."""

_MAX_EVALUATIONS = 2000
_TOLERANCE = 1e-8
# A curve that gives all but 5% of the scores its lowest or its highest label, to 1% of its range, is a step. What bends
# once (one end far outside of the scores) is none.
_FLAT, _MIN_ON_SLOPE = 0.01, 0.05


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
    scale: tuple[float, float] | None = None,
) -> Logistic | str:
    """The curve of least squared error, or a sentence why there is none.

    Begins where studies after VQEG do, at b1 = max, b2 = min of the labels, b3 = mean and |b4| = std / 4 of the
    scores, and at wider curves beside it, because a nearly straight relation has its minimum far from there; the best
    end counts. With `start`, from there alone. With `scale`, which holds the labels, both ends of the curve stay on it:
    what studies report is the free curve, what a column `mos` shows should be none below the lowest of opinions.
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
    unit = high - low
    ends = (-np.inf, np.inf) if scale is None else ((scale[0] - low) / unit, (scale[1] - low) / unit)
    ended = [
        end
        for begin in starts
        if (end := _descend(x, (labels - low) / unit, root, _inner(begin, low, unit), tolerance, ends))
    ]
    if not ended:
        return f"the logistic did not converge within {_MAX_EVALUATIONS} evaluations from any of {len(starts)} starts"
    b1, b2, b3, b4 = min(ended, key=lambda end: end[0])[1]
    return Logistic(low + unit * b1, low + unit * b2, centre + spread * b3, spread * abs(b4))


def _inner(begin: tuple[float, float, float, float], low: float, unit: float) -> tuple[float, float, float, float]:
    b1, b2, b3, b4 = begin
    return (b1 - low) / unit, (b2 - low) / unit, b3, b4


def _descend(
    x: Real,
    y: Real,
    root: Real,
    begin: tuple[float, float, float, float],
    tolerance: float,
    ends: tuple[float, float],
) -> tuple[float, tuple[float, float, float, float]] | None:
    """Squared error and parameters where the way down ends (Levenberg and Marquardt's; with bounds, by a trust region).

    None where it does not end.
    """

    def rest(b: Real) -> Real:
        curve: Real = root * (b[1] + (b[0] - b[1]) * expit((x - b[2]) / abs(b[3])) - y)
        return curve

    def slope(b: Real) -> Real:
        width = abs(b[3])
        z = (x - b[2]) / width
        share = expit(z)
        steep = root * (b[0] - b[1]) * share * (1 - share) / width
        return np.stack([root * share, root * (1 - share), -steep, -steep * z * np.sign(b[3])], axis=1)

    free = [-np.inf, np.inf]
    low, high = zip(ends, ends, free, free, strict=True)
    # Steps that leave the numbers (a width of 0) are answered by a larger error, and taken back.
    with np.errstate(all="ignore"):
        end = least_squares(
            rest, begin, slope, (low, high), method="trf" if np.isfinite(ends).all() else "lm",
            ftol=tolerance, xtol=tolerance, gtol=tolerance, max_nfev=_MAX_EVALUATIONS,
        )  # fmt: skip
    if not end.success or not np.isfinite([*end.x, end.cost]).all() or end.x[3] == 0:
        return None
    return 2 * end.cost, (float(end.x[0]), float(end.x[1]), float(end.x[2]), float(end.x[3]))
