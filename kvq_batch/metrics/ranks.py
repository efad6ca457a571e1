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


class Pairs:
    """All pairs of N videos, counted by whether scores and labels order them alike, under any draws of S sources.

    The sum over pairs of sign times sign is a quadratic form in the draws, so that all of them are two matrix
    products: 1,000 draws of 7,000 videos take 2 core-seconds, and 4 by counting inversions once a draw. Hand over all
    draws in one call: the signs are made in each.
    """

    def __init__(self, x: Real, y: Real, source_of: NDArray[np.int64]) -> None:
        order = np.argsort(source_of, kind="stable")
        # Ranks in float32 are exact, and cost a sixth of what the signs of float64 values do.
        self._x, self._y = _places(x[order]), _places(y[order])
        self._source_of = source_of[order]

    def kendall(self, draws: Real) -> Real:
        """Kendall's tau-b, float64 [D], of `draws` [D, S]; NaN where either is constant."""
        agreeing, unequal_x, unequal_y = self._counted(draws)
        with np.errstate(invalid="ignore", divide="ignore"):
            tau = agreeing / np.sqrt(unequal_x * unequal_y)
        return np.where((unequal_x > 0) & (unequal_y > 0), np.clip(tau, -1, 1), np.nan)

    def concordance(self, draws: Real) -> Real:
        """Share of the pairs of unequal `y` that `x` orders alike, ties half, float64 [D]; NaN where there are none.

        Of two different labels, the area under the ROC curve.
        """
        agreeing, _, unequal_y = self._counted(draws)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (agreeing / unequal_y + 1) / 2
        return np.where(unequal_y > 0, share, np.nan)

    def _counted(self, draws: Real) -> tuple[Real, Real, Real]:
        """Pairs ordered alike less those ordered against, pairs of unequal x, and of unequal y, [D] each."""
        starts = np.concatenate([[0], np.flatnonzero(np.diff(self._source_of)) + 1])
        present = draws[:, self._source_of[starts]].astype(np.float32)
        weights = draws[:, self._source_of]
        agreeing = np.zeros(len(draws))
        for first in range(0, len(self._x), _BLOCK):
            rows = slice(first, first + _BLOCK)
            signs = np.subtract(self._x[rows, None], self._x)
            signs *= np.subtract(self._y[rows, None], self._y)
            np.sign(signs, out=signs)
            by_source = signs if len(starts) == len(self._x) else np.add.reduceat(signs, starts, axis=1)
            agreeing += np.einsum("dr,dr->d", weights[:, rows], (present @ by_source.T).astype(np.float64))
        num = weights.sum(axis=1)
        pairs = num * (num - 1) / 2
        unequal = [pairs - Ranking(places).num_tied_pairs(weights) for places in (self._x, self._y)]
        return agreeing / 2, unequal[0], unequal[1]


def _places(values: Real) -> NDArray[np.float32]:
    """The place of each value among the different ones, from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.float32)
