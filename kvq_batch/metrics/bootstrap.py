"""Figures with intervals: whole sources drawn with replacement, as many as there are, and percentiles of what comes.

Versions of one source hang together; drawing them one by one would make every figure look surer than it is. The same
seed gives the same draws, whatever is measured. This module knows no figure by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvq_batch.metrics.ranks import Real

LEVEL = 0.95

MIN_SOURCES = 5
"""Fewer sources than this say nothing of how much a figure depends on them."""

CHUNK = 50
"""Draws that are measured together, where no more are asked for: what 7,000 videos make of them is 3 MB an array."""

_MAX_UNDEFINED = 0.05
"""Share of draws without the figure (all equal) above which there is no interval."""

Measure = Callable[[Real], dict[str, Real]]
"""Figures by name, [D] each, of draws [D, S]: how often each of S sources was drawn. NaN where there is none."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure and its interval; `reason` says why one of both is None, or what was left out."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def bootstrap_figures(
    measure: Measure, num_sources: int, n_resamples: int, seed: int, chunk: int = CHUNK, unit: str = "sources"
) -> dict[str, Figure]:
    """Each figure that `measure` gives of every source once, with the percentiles of `n_resamples` draws.

    `measure` gets `chunk` draws at a time. Where a figure does not exist, or its interval, the reason says why.
    """
    values = {name: float(found[0]) for name, found in measure(np.ones((1, num_sources))).items()}
    if num_sources < MIN_SOURCES:
        reason = f"{num_sources} {unit} are too few for an interval"
        return {name: _figure(value, None, reason) for name, value in values.items()}
    generator = np.random.default_rng(seed)
    shares = np.full(num_sources, 1 / num_sources)
    drawn: dict[str, list[Real]] = {name: [] for name in values}
    for first in range(0, n_resamples, chunk):
        bootstrap = generator.multinomial(num_sources, shares, size=min(chunk, n_resamples - first)).astype(np.float64)
        for name, found in measure(bootstrap).items():
            drawn[name].append(found)
    return {name: _figure(value, np.concatenate(drawn[name]), "") for name, value in values.items()}


def mean_figure(values: Sequence[float], n_resamples: int, seed: int, unit: str = "sources") -> Figure:
    """The mean of one value for each source, with its interval; NaN among them is left out and counted."""
    there = np.array([value for value in values if np.isfinite(value)])
    left_out = len(values) - len(there)
    if not len(there):
        return Figure(None, reason=f"all cells or videos of each of the {unit} are equal: no order")
    reasons = [f"{left_out} of {len(values)} {unit} are left out: all equal"] if left_out else []
    low = high = None
    if len(there) < MIN_SOURCES:
        reasons.append(f"{len(there)} {unit} are too few for an interval")
    else:
        means = np.random.default_rng(seed).choice(there, (n_resamples, len(there))).mean(axis=1)
        low, high = _percentiles(means)
    return Figure(float(there.mean()), low, high, "; ".join(reasons))


def _figure(value: float, drawn: Real | None, reason: str) -> Figure:
    """The value with the percentiles of its draws."""
    if not np.isfinite(value):
        return Figure(None, reason="all equal: no order")
    if drawn is None:
        return Figure(value, reason=reason)
    is_there = np.isfinite(drawn)
    if is_there.mean() < 1 - _MAX_UNDEFINED:
        return Figure(value, reason=f"no interval: {1 - is_there.mean():.0%} of the draws have no such figure")
    low, high = _percentiles(drawn[is_there])
    return Figure(value, low, high)


def _percentiles(drawn: Real) -> tuple[float, float]:
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
