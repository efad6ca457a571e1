"""Least-squares fit of the four-parameter logistic between scores and labels, as in video quality studies.

    f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|))

The same four numbers are a model's calibration (`ModelCard.calibrations`).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from kvq_batch.metrics.ranks import Real

MIN_SCORES = 5
"""Distinct scores that a fit of four parameters needs."""

_MAX_EVALUATIONS = 2000
_TOLERANCE = 1e-8
# A curve is a step if fewer than 5% of the scores get a label more than 1% of its range away from both its lowest and
# its highest label. A curve that bends once (one end far outside the scores) is not a step.
_FLAT_MARGIN, _MIN_SHARE_ON_SLOPE = 0.01, 0.05


@dataclass(frozen=True, slots=True)
class Logistic:
    """A fitted curve; `b4` is positive."""

    b1: float
    b2: float
    b3: float
    b4: float

    def __call__(self, scores: Real) -> Real:
        """Return the labels of `scores` by the curve."""
        curve: Real = self.b2 + (self.b1 - self.b2) * expit((scores - self.b3) / abs(self.b4))
        return curve

    def is_step(self, scores: Real) -> bool:
        """Return whether nearly all of `scores` get one of two labels, so that the curve only separates two halves."""
        fitted = self(scores)
        low, high = float(fitted.min()), float(fitted.max())
        margin = _FLAT_MARGIN * (high - low)
        return bool(np.mean((fitted > low + margin) & (fitted < high - margin)) < _MIN_SHARE_ON_SLOPE)

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
    """Return the curve of least squared error, or the reason why there is none.

    Starts where VQEG studies do, at b1 = max and b2 = min of the labels, b3 = mean and |b4| = std / 4 of the scores,
    and at 4 and 16 times that width, because a nearly straight relation has its minimum far from the first start. The
    best result is returned. With `start`, only that start is used. With `scale`, a range that holds the labels, both
    ends of the curve stay within it: studies report the free curve, but a column `mos` must not leave the scale.
    """
    if len(np.unique(scores)) < MIN_SCORES:
        return f"fewer than {MIN_SCORES} distinct scores: too few to fit 4 parameters"
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
    # The ends of a curve without a bend may be far outside the labels; in units of their range nothing overflows.
    unit = high - low
    ends = (-np.inf, np.inf) if scale is None else ((scale[0] - low) / unit, (scale[1] - low) / unit)
    fits = [
        fit
        for candidate in starts
        if (fit := _fit(x, (labels - low) / unit, root, _scaled(candidate, low, unit), tolerance, ends))
    ]
    if not fits:
        return f"the logistic fit did not converge in {_MAX_EVALUATIONS} evaluations from any of {len(starts)} starts"
    b1, b2, b3, b4 = min(fits, key=lambda fit: fit[0])[1]
    return Logistic(low + unit * b1, low + unit * b2, centre + spread * b3, spread * abs(b4))


def _scaled(start: tuple[float, float, float, float], low: float, unit: float) -> tuple[float, float, float, float]:
    b1, b2, b3, b4 = start
    return (b1 - low) / unit, (b2 - low) / unit, b3, b4


def _fit(
    x: Real,
    y: Real,
    root: Real,
    start: tuple[float, float, float, float],
    tolerance: float,
    ends: tuple[float, float],
) -> tuple[float, tuple[float, float, float, float]] | None:
    """Return squared error and parameters of the fit (Levenberg-Marquardt; with bounds, trust region reflective).

    None if it does not converge.
    """

    def residuals(b: Real) -> Real:
        curve: Real = root * (b[1] + (b[0] - b[1]) * expit((x - b[2]) / abs(b[3])) - y)
        return curve

    def jacobian(b: Real) -> Real:
        width = abs(b[3])
        z = (x - b[2]) / width
        share = expit(z)
        gradient = root * (b[0] - b[1]) * share * (1 - share) / width
        return np.stack([root * share, root * (1 - share), -gradient, -gradient * z * np.sign(b[3])], axis=1)

    free = [-np.inf, np.inf]
    low, high = zip(ends, ends, free, free, strict=True)
    # Steps to invalid numbers (a width of 0) overflow; the solver rejects them because their error is larger.
    with np.errstate(all="ignore"):
        result = least_squares(
            residuals, start, jacobian, (low, high), method="trf" if np.isfinite(ends).all() else "lm",
            ftol=tolerance, xtol=tolerance, gtol=tolerance, max_nfev=_MAX_EVALUATIONS,
        )  # fmt: skip
    if not result.success or not np.isfinite([*result.x, result.cost]).all() or result.x[3] == 0:
        return None
    return 2 * result.cost, (float(result.x[0]), float(result.x[1]), float(result.x[2]), float(result.x[3]))
