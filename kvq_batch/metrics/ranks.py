"""Pearson, Spearman and Kendall correlation and concordance under many weightings at once, as a bootstrap needs them.

Resampling whole clusters with replacement gives every video a weight: the number of times that it was drawn. Weighted
ranks need one sort for all resamples together. Copies of one video are ties, which share their mean rank.

Axes: N videos, R resamples, C clusters.
"""

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]

_BLOCK_ROWS = 512
"""Rows of the matrix of pairs that are in memory at once."""

_RELATIVE_EPS = 1e-12
"""A spread below this share of the magnitude is rounding: the values count as equal."""


class Ranking:
    """The order of N values. Gives ranks under any weights without another sort."""

    def __init__(self, values: NDArray[np.floating]) -> None:
        _, self._group, counts = np.unique(values, return_inverse=True, return_counts=True)
        self._order = np.argsort(self._group, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def ranks(self, weights: Real) -> Real:
        """Return the mean rank of each value, float64 [R, N]. `weights` is [R, N], >= 0; ranks of weight 0 are void."""
        totals = self._totals(weights)
        below = np.cumsum(totals, axis=1) - totals
        return (below + (totals + 1) / 2)[:, self._group]

    def num_tied_pairs(self, weights: Real) -> Real:
        """Return the number of pairs of equal values, float64 [R]."""
        totals = self._totals(weights)
        pairs: Real = (totals * (totals - 1) / 2).sum(axis=1)
        return pairs

    def _totals(self, weights: Real) -> Real:
        """Return the weight of each group of equal values, [R, groups], lowest value first."""
        totals: Real = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return totals


def pearson(x: Real, y: Real, weights: Real) -> Real:
    """Return Pearson's correlation, float64 [R], of `x` and `y` ([N] or [R, N]) under `weights` [R, N].

    NaN where either is constant.
    """
    total = weights.sum(axis=1, keepdims=True)
    dx, squares_x = _centred(x, weights, total)
    dy, squares_y = _centred(y, weights, total)
    products = (weights * dx * dy).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = products / np.sqrt(squares_x * squares_y)
    return np.where((squares_x > 0) & (squares_y > 0), np.clip(r, -1, 1), np.nan)


def _centred(values: Real, weights: Real, total: Real) -> tuple[Real, Real]:
    """Return deviations from the weighted mean [R, N], and their weighted sum of squares [R], 0 if it is rounding."""
    mean = (weights * values).sum(axis=1, keepdims=True) / total
    deviations = values - mean
    squares = (weights * deviations**2).sum(axis=1)
    is_rounding = squares <= total[:, 0] * (_RELATIVE_EPS * np.abs(values).max(axis=-1)) ** 2
    return deviations, np.where(is_rounding, 0.0, squares)


def spearman(x: Ranking, y: Ranking, weights: Real) -> Real:
    """Return Spearman's rank correlation with mean ranks for ties, float64 [R]; NaN where either is constant."""
    return pearson(x.ranks(weights), y.ranks(weights), weights)


class Pairs:
    """All pairs of N videos, counted as concordant, discordant or tied under any resamples of C clusters.

    The sum over pairs of sign(x_i - x_j) * sign(y_i - y_j) is a quadratic form in the counts of the clusters, so all
    resamples together are two matrix products: 1,000 resamples of 7,000 videos take 2 core-seconds, against 4 when
    inversions are counted for each resample. Pass all resamples in one call: each call computes the signs.
    """

    def __init__(self, x: Real, y: Real, cluster_of: NDArray[np.int64]) -> None:
        order = np.argsort(cluster_of, kind="stable")
        # Ranks in float32 are exact, and their signs cost a sixth of those of float64 values.
        self._x, self._y = _dense_ranks(x[order]), _dense_ranks(y[order])
        self._cluster_of = cluster_of[order]

    def kendall(self, counts: Real) -> Real:
        """Return Kendall's tau-b, float64 [R], for `counts` [R, C]; NaN where either is constant."""
        difference, untied_x, untied_y = self._count(counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            tau = difference / np.sqrt(untied_x * untied_y)
        return np.where((untied_x > 0) & (untied_y > 0), np.clip(tau, -1, 1), np.nan)

    def concordance(self, counts: Real) -> Real:
        """Return the share of pairs with unequal `y` that `x` orders alike, ties half, float64 [R]; NaN without pairs.

        If `y` has two distinct values, this is the area under the ROC curve (AUC).
        """
        difference, _, untied_y = self._count(counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (difference / untied_y + 1) / 2
        return np.where(untied_y > 0, share, np.nan)

    def _count(self, counts: Real) -> tuple[Real, Real, Real]:
        """Return concordant minus discordant pairs, pairs untied in x, and pairs untied in y, [R] each."""
        starts = np.concatenate([[0], np.flatnonzero(np.diff(self._cluster_of)) + 1])
        present = counts[:, self._cluster_of[starts]].astype(np.float32)
        weights = counts[:, self._cluster_of]
        difference = np.zeros(len(counts))
        for first in range(0, len(self._x), _BLOCK_ROWS):
            rows = slice(first, first + _BLOCK_ROWS)
            signs = np.subtract(self._x[rows, None], self._x)
            signs *= np.subtract(self._y[rows, None], self._y)
            np.sign(signs, out=signs)
            by_cluster = signs if len(starts) == len(self._x) else np.add.reduceat(signs, starts, axis=1)
            difference += np.einsum("dr,dr->d", weights[:, rows], (present @ by_cluster.T).astype(np.float64))
        num = weights.sum(axis=1)
        pairs = num * (num - 1) / 2
        untied = [pairs - Ranking(ranks).num_tied_pairs(weights) for ranks in (self._x, self._y)]
        return difference / 2, untied[0], untied[1]


def _dense_ranks(values: Real) -> NDArray[np.float32]:
    """Return the rank of each value among the distinct ones, from 0."""
    return np.unique(values, return_inverse=True)[1].astype(np.float32)
