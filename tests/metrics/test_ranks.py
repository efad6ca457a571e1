"""Weighted correlations against scipy on values repeated as often as their weight."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kvq_batch.metrics.ranks import Pairs, Ranking, Real, pearson, spearman


def values(seed: int, num: int, has_ties: bool) -> tuple[Real, Real]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=num)
    y = x + generator.normal(size=num)
    return (np.round(x), np.round(2 * y) / 2) if has_ties else (x, y)


def oracle(measure: Callable[[Real, Real], Any], x: Real, y: Real, weights: Real) -> Real:
    times = weights.astype(int)
    return np.array([measure(np.repeat(x, t), np.repeat(y, t)).statistic for t in times])


@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize("num_clusters", [7, 60])
def test_weights_equal_repeated_values(has_ties: bool, num_clusters: int) -> None:
    x, y = values(1, 60, has_ties)
    generator = np.random.default_rng(2)
    # Clusters of different sizes, not sorted.
    cluster_of = generator.permutation(np.arange(60) % num_clusters)
    counts = generator.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=8).astype(np.float64)
    weights = counts[:, cluster_of]
    np.testing.assert_allclose(pearson(x, y, weights), oracle(stats.pearsonr, x, y, weights), atol=1e-12)
    found = spearman(Ranking(x), Ranking(y), weights)
    np.testing.assert_allclose(found, oracle(stats.spearmanr, x, y, weights), atol=1e-12)
    np.testing.assert_allclose(
        Pairs(x, y, cluster_of).kendall(counts), oracle(stats.kendalltau, x, y, weights), atol=1e-6
    )


def test_kendall_over_several_blocks() -> None:
    x, y = values(3, 1300, True)
    tau = Pairs(x, y, np.arange(1300)).kendall(np.ones((1, 1300)))
    assert tau[0] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-9)


def test_constant_values_have_no_correlation() -> None:
    x, y = np.full(6, 0.1), np.arange(6.0)
    ones = np.ones((1, 6))
    assert np.isnan(pearson(x, y, ones)[0])
    assert np.isnan(pearson(x + 1e-17 * y, y, ones)[0])
    assert np.isnan(spearman(Ranking(x), Ranking(y), ones)[0])
    assert np.isnan(Pairs(x, y, np.arange(6)).kendall(ones)[0])
    assert Pairs(x, y, np.arange(6)).concordance(ones)[0] == 0.5
    assert np.isnan(Pairs(y, x, np.arange(6)).concordance(ones)[0])


def test_concordance_of_two_labels_is_auc() -> None:
    """Compared with scipy's Mann-Whitney U over the product of the group sizes, for resamples with ties."""
    generator = np.random.default_rng(4)
    is_good = generator.random(80) < 0.3
    x = np.round(generator.normal(size=80) + is_good, 1)
    cluster_of = np.arange(80) % 9
    counts = generator.multinomial(9, np.full(9, 1 / 9), size=5).astype(np.float64)
    found = Pairs(x, is_good.astype(np.float64), cluster_of).concordance(counts)
    for share, times in zip(found, counts[:, cluster_of].astype(int), strict=True):
        good, bad = (np.repeat(x[chosen], times[chosen]) for chosen in (is_good, ~is_good))
        expected = stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))
        assert share == pytest.approx(expected, abs=1e-6)
