"""Drift of the newest night against earlier ones, with a false-alarm rate that holds when nights differ by chance.

A test of two samples would take videos for independent. Those of one night are not: a night may hold one show or one
encoder. So the nights are the sample. A quantile of the newest night is compared with the prediction interval of that
quantile over k earlier nights (Student's t with k - 1 degrees of freedom):

    |q_new - mean(q)| > t * sqrt(s^2 (1 + 1/k) + max(0, v_new - mean(v)))

s^2 is the variance of q over the earlier nights; it holds the difference between nights and the sampling variance of a
typical night. v is the sampling variance of a quantile within its night: a night with few videos is less certain.
`benchmarks/drift.py` simulates the rate of false alarms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_NIGHTS = 5
MIN_VIDEOS = 100
"""Videos that a night needs: with fewer, its 5th percentile is an extreme value."""

Real = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Prediction interval of a quantile of the newest night, and what was found."""

    low: float
    high: float
    found: float

    @property
    def is_outside(self) -> bool:
        return not self.low <= self.found <= self.high


def predict_quantile(earlier: Sequence[Real], newest: Real, share: float, false_alarm_rate: float) -> Prediction:
    """Compare a quantile of the scores of the newest night with those of earlier nights ([N] each).

    Raises:
        ValueError: fewer than MIN_NIGHTS earlier nights, or a night with fewer than MIN_VIDEOS scores.
    """
    if len(earlier) < MIN_NIGHTS or min(map(len, (*earlier, newest))) < MIN_VIDEOS:
        raise ValueError(f"{MIN_NIGHTS} nights with {MIN_VIDEOS} scores each are needed.")
    nights = np.array([np.quantile(scores, share) for scores in earlier])
    variances = np.array([quantile_variance(scores, share) for scores in earlier])
    found = float(np.quantile(newest, share))
    margin = prediction_margin(nights, variances, quantile_variance(newest, share), false_alarm_rate)
    centre = float(nights.mean())
    return Prediction(centre - margin, centre + margin, found)


def prediction_margin(nights: Real, variances: Real, newest_variance: float, false_alarm_rate: float) -> float:
    """Return half the width of the prediction interval; see the module. `nights` and `variances` are [k]."""
    num = len(nights)
    excess = max(0.0, newest_variance - float(variances.mean()))
    spread = np.sqrt(nights.var(ddof=1) * (1 + 1 / num) + excess)
    # Imported here: `plan` checks guards, and SciPy takes half a second.
    from scipy.stats import t as student_t

    return float(student_t.ppf(1 - false_alarm_rate / 2, num - 1) * spread)


def quantile_variance(values: Real, share: float) -> float:
    """Return the sampling variance of a quantile of independent values, from the order statistics around it.

    The number of values below the quantile is binomial, so its standard deviation is that many ranks.
    """
    reach = np.sqrt(share * (1 - share) / len(values))
    low, high = np.quantile(values, [max(0.0, share - reach), min(1.0, share + reach)])
    return float(((high - low) / 2) ** 2)
