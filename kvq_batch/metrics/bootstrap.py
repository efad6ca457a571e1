"""Cluster bootstrap: metrics with 95% confidence intervals from resampling whole clusters with replacement.

Renditions of one reference are not independent: resampling them one by one would make intervals too narrow. Intervals
are percentile intervals (Efron). The same seed gives the same resamples, whatever is measured.

Axes: R resamples, C clusters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvq_batch.metrics.ranks import Real

LEVEL = 0.95

MIN_CLUSTERS = 5
"""With fewer clusters there is no interval: they do not show how much a metric depends on the clusters."""

CHUNK = 50
"""Resamples that are measured together by default: with 7,000 videos, an array of them takes 3 MB."""

_MAX_UNDEFINED = 0.05
"""Share of resamples in which the metric is undefined (all equal) above which there is no interval."""

Measure = Callable[[Real], dict[str, Real]]
"""Returns metrics by name, [R] each, for counts [R, C]: how often each cluster was drawn. NaN if undefined."""


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric and its interval. `reason` says why one of them is None, or what was left out."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def bootstrap_metrics(
    measure: Measure, num_clusters: int, n_resamples: int, seed: int, chunk: int = CHUNK, unit: str = "references"
) -> dict[str, MetricValue]:
    """Return the metrics of `measure` over all clusters, with percentile intervals over `n_resamples` resamples.

    `measure` gets `chunk` resamples at a time. `unit` names the clusters in reasons. Without resamples there are no
    intervals.
    """
    values = {name: float(found[0]) for name, found in measure(np.ones((1, num_clusters))).items()}
    if n_resamples == 0:
        return {name: _metric_value(value, None, "") for name, value in values.items()}
    if num_clusters < MIN_CLUSTERS:
        reason = _too_few(num_clusters, unit)
        return {name: _metric_value(value, None, reason) for name, value in values.items()}
    generator = np.random.default_rng(seed)
    shares = np.full(num_clusters, 1 / num_clusters)
    resampled: dict[str, list[Real]] = {name: [] for name in values}
    for first in range(0, n_resamples, chunk):
        counts = generator.multinomial(num_clusters, shares, size=min(chunk, n_resamples - first)).astype(np.float64)
        for name, found in measure(counts).items():
            resampled[name].append(found)
    return {name: _metric_value(value, np.concatenate(resampled[name]), "") for name, value in values.items()}


def bootstrap_mean(values: Sequence[float], n_resamples: int, seed: int, unit: str = "references") -> MetricValue:
    """Return the mean of one value per cluster with its interval. NaNs are left out and counted in the reason.

    Without resamples there is no interval.
    """
    defined = np.array([value for value in values if np.isfinite(value)])
    num_undefined = len(values) - len(defined)
    if not len(defined):
        return MetricValue(None, reason=f"all cells or videos of each of the {unit} are equal: no order")
    reasons = [f"{num_undefined} of {len(values)} {unit} are left out: all equal"] if num_undefined else []
    low = high = None
    if n_resamples and len(defined) < MIN_CLUSTERS:
        reasons.append(_too_few(len(defined), unit))
    elif n_resamples:
        means = np.random.default_rng(seed).choice(defined, (n_resamples, len(defined))).mean(axis=1)
        low, high = _percentiles(means)
    return MetricValue(float(defined.mean()), low, high, "; ".join(reasons))


def _too_few(number: int, unit: str) -> str:
    named = f"{number} {unit} are" if number != 1 else f"1 {unit.removesuffix('s')} is"
    return f"{named} too few for an interval"


def _metric_value(value: float, resampled: Real | None, reason: str) -> MetricValue:
    if not np.isfinite(value):
        return MetricValue(None, reason="all equal: no order")
    if resampled is None:
        return MetricValue(value, reason=reason)
    is_defined = np.isfinite(resampled)
    if is_defined.mean() < 1 - _MAX_UNDEFINED:
        share = 1 - is_defined.mean()
        return MetricValue(value, reason=f"no interval: the metric is undefined in {share:.0%} of the resamples")
    low, high = _percentiles(resampled[is_defined])
    return MetricValue(value, low, high)


def _percentiles(resampled: Real) -> tuple[float, float]:
    low, high = np.percentile(resampled, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
