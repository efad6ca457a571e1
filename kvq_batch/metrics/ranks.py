"""Correlation of values and of ranks under many weightings at once: what a bootstrap asks for a thousand times.

Drawing whole sources with replacement gives every video a weight, the number of times that it was drawn, and a
weighted rank needs one sort for all draws together. Copies of one video are ties, which share their mean rank. This
module needs numpy alone; it decides neither what is drawn nor what is reported.

Legend: N videos, D draws, S sources.
"""

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]

_BLOCK = 512
"""Rows of the pair matrix that stand in memory at once."""

_TINY = 1e-12
"""A spread below this share of the magnitude is rounding, and the values are equal."""


class Ranking:
    """The order of N values, from which ranks under any weights follow without another sort."""

    def __init__(self, values: NDArray[np.floating]) -> None:
        _, self._group, counts = np.unique(values, return_inverse=True, return_counts=True)
        self._order = np.argsort(self._group, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def ranks(self, weights: Real) -> Real:
        """Mean rank of each value, float64 [D, N], from `weights` [D, N] >= 0; ranks of weight 0 mean nothing."""
        totals = self._totals(weights)
        below = np.cumsum(totals, axis=1) - totals
        return (below + (totals + 1) / 2)[:, self._group]

    def num_tied_pairs(self, weights: Real) -> Real:
        """Pairs of equal values, float64 [D]."""
        totals = self._totals(weights)
        pairs: Real = (totals * (totals - 1) / 2).sum(axis=1)
        return pairs

    def _totals(self, weights: Real) -> Real:
        """Weight of each group of equal values, [D, groups], lowest first."""
        totals: Real = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return totals


def pearson(x: Real, y: Real, weights: Real) -> Real:
    """Pearson's correlation, float64 [D], of `x` and `y` ([N] or [D, N]) under `weights` [D, N].

    NaN where either is constant: the caller says what that means.
    """
    total = weights.sum(axis=1, keepdims=True)
    dx, spread_x = _centred(x, weights, total)
    dy, spread_y = _centred(y, weights, total)
    together = (weights * dx * dy).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = together / np.sqrt(spread_x * spread_y)
    return np.where((spread_x > 0) & (spread_y > 0), np.clip(r, -1, 1), np.nan)


def _centred(values: Real, weights: Real, total: Real) -> tuple[Real, Real]:
    """Distances from the weighted mean [D, N], and the weighted sum of their squares [D], 0 where it is rounding."""
    mean = (weights * values).sum(axis=1, keepdims=True) / total
    distance = values - mean
    squares = (weights * distance**2).sum(axis=1)
    is_rounding = squares <= total[:, 0] * (_TINY * np.abs(values).max(axis=-1)) ** 2
    return distance, np.where(is_rounding, 0.0, squares)


def spearman(x: Ranking, y: Ranking, weights: Real) -> Real:
    """Spearman's rank correlation with mean ranks for ties, float64 [D]; NaN where either is constant."""
    return pearson(x.ranks(weights), y.ranks(weights), weights)


def _ranked(values: Real) -> NDArray[np.float32]:
    """The place of each value among the different ones, from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.float32)


def kendall(x: Real, y: Real, source_of: NDArray[np.int64], draws: Real) -> Real:
    """Kendall's tau-b, float64 [D]; NaN where either is constant.

    `source_of` int64 [N] is the source of each video, `draws` [D, S] how often each was drawn. The sum over pairs of
    sign times sign is a quadratic form in the draws, so that all of them are two matrix products: 1,000 draws of
    7,000 videos take 2 core-seconds, and 4 by counting inversions once a draw.
    """
    order = np.argsort(source_of, kind="stable")
    # Ranks in float32 are exact, and cost a sixth of what the signs of float64 values do.
    places_x, places_y, source_of = _ranked(x[order]), _ranked(y[order]), source_of[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(source_of)) + 1])
    present = draws[:, source_of[starts]].astype(np.float32)
    weights = draws[:, source_of]
    agreeing = np.zeros(len(draws))
    for first in range(0, len(x), _BLOCK):
        rows = slice(first, first + _BLOCK)
        signs = np.subtract(places_x[rows, None], places_x)
        signs *= np.subtract(places_y[rows, None], places_y)
        np.sign(signs, out=signs)
        by_source = signs if len(starts) == len(x) else np.add.reduceat(signs, starts, axis=1)
        agreeing += np.einsum("dr,dr->d", weights[:, rows], (present @ by_source.T).astype(np.float64))
    num = weights.sum(axis=1)
    pairs = num * (num - 1) / 2
    unequal_x = pairs - Ranking(places_x).num_tied_pairs(weights)
    unequal_y = pairs - Ranking(places_y).num_tied_pairs(weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        tau = agreeing / 2 / np.sqrt(unequal_x * unequal_y)
    return np.where((unequal_x > 0) & (unequal_y > 0), np.clip(tau, -1, 1), np.nan)
