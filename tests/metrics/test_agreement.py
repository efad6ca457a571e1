"""Metrics against scipy, intervals against a plain bootstrap, and reasons for undefined metrics."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import curve_fit

from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.agreement import METRICS, agree
from kvq_batch.metrics.ranks import Real


def videos(num: int, seed: int = 0) -> tuple[Real, Real]:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=num)
    return scores, np.round(50 + 25 * np.tanh(1.5 * scores) + generator.normal(size=num) * 6, 1)


def logistic(x: Real, b1: float, b2: float, b3: float, b4: float) -> Real:
    return b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4)))


def test_metrics_match_scipy() -> None:
    x, y = videos(150)
    found = {name: metric.value for name, metric in agree(x, y, n_resamples=20).metrics.items()}
    b, _ = curve_fit(logistic, x, y, p0=(y.max(), y.min(), x.mean(), x.std() / 4))
    curve = logistic(x, *b)
    # As in the published code (KVQ_SPEC section 5).
    moved = (x - x.mean()) / x.std() * y.std() + y.mean()
    expected = {
        "srcc": stats.spearmanr(x, y).statistic,
        "krcc": stats.kendalltau(x, y).statistic,
        "plcc": stats.pearsonr(curve, y).statistic,
        "rmse": np.sqrt(((curve - y) ** 2).mean()),
        "plcc_linear": stats.pearsonr(x, y).statistic,
        "rmse_linear": np.sqrt(((moved - y) ** 2).mean()),
        "srcc_within": None,
    }
    assert set(found) == set(METRICS)
    assert found == {
        name: None if value is None else pytest.approx(value, abs=1e-4) for name, value in expected.items()
    }


def test_intervals_come_from_a_cluster_bootstrap() -> None:
    """12 correlated renditions per reference: resampled one by one, the interval would be far too narrow."""
    generator = np.random.default_rng(5)
    references = np.repeat(np.arange(20), 12)
    shift = generator.normal(size=20)[references] * 2
    labels = generator.normal(size=240) + shift
    scores = labels + generator.normal(size=20)[references] * 2 + generator.normal(size=240) * 0.2
    found = agree(scores, labels, [f"s{reference}" for reference in references], n_resamples=2000, seed=1).metrics[
        "srcc"
    ]
    resampled = []
    for _ in range(2000):
        chosen = generator.integers(0, 20, 20)
        indices = np.concatenate([np.flatnonzero(references == reference) for reference in chosen])
        resampled.append(stats.spearmanr(scores[indices], labels[indices]).statistic)
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)
    per_video = agree(scores, labels, n_resamples=500).metrics["srcc"]
    assert per_video.low is not None
    assert per_video.high is not None
    assert found.high is not None
    assert found.low is not None
    assert per_video.high - per_video.low < 0.6 * (found.high - found.low)


def test_same_seed_gives_same_intervals() -> None:
    x, y = videos(80)
    first, second, other = (agree(x, y, n_resamples=200, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first.metrics != other.metrics
    for name in ("srcc", "krcc", "plcc", "rmse", "plcc_linear", "rmse_linear"):
        metric = first.metrics[name]
        assert metric.value is not None
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low < metric.value < metric.high, name
        assert metric.reason == ""


def test_srcc_within_is_the_mean_over_references() -> None:
    generator = np.random.default_rng(2)
    references = np.repeat(np.arange(8), 6)
    labels = generator.normal(size=48)
    scores = labels + generator.normal(size=48) * 0.4 + 10 * generator.normal(size=8)[references]
    own = [stats.spearmanr(scores[references == s], labels[references == s]).statistic for s in range(8)]
    metric = agree(scores, labels, [str(s) for s in references], n_resamples=300).metrics["srcc_within"]
    assert metric.value == pytest.approx(np.mean(own))
    assert metric.low is not None
    assert metric.low <= np.mean(own)
    # A reference whose scores are all equal has no order. It is left out and counted in the reason.
    scores[references == 0] = 1.0
    flat = agree(scores, labels, [str(s) for s in references], n_resamples=300).metrics["srcc_within"]
    assert flat.value == pytest.approx(np.mean(own[1:]))
    assert flat.reason == "1 of 8 references are left out: all equal"


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        ([1.0, 2, 3], [1.0, 2, 3], "3 videos; at least 4 are needed"),
        ([], [], "0 videos; at least 4 are needed"),
        ([2.5] * 6, range(6), "all 6 scores are 2.5: no order"),
        (range(6), [80.0] * 6, "all 6 labels are 80: no order"),
    ],
)
def test_undefined_agreement_has_a_reason(scores: list[float], labels: list[float], reason: str) -> None:
    agreement = agree(np.array(list(scores)), np.array(list(labels)))
    assert {metric.value for metric in agreement.metrics.values()} == {None}
    assert agreement.curve is None
    row = agreement.row()
    assert row["remarks"] == reason
    assert row["videos"] == len(list(scores))


def test_few_references_give_no_intervals() -> None:
    x, y = videos(40)
    row = agree(x, y, [str(i % 4) for i in range(40)]).row()
    assert row["srcc"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert row["srcc_low"] is None
    assert "4 references are too few for an interval" in row["remarks"]
    one = agree(x, y, ["0"] * 40).row()
    assert "1 reference is too few for an interval" in one["remarks"]


def test_few_distinct_scores_give_no_curve() -> None:
    x = np.tile([1.0, 2.0], 6)
    y = np.arange(12.0)
    row = agree(x, y, n_resamples=50).row()
    assert row["plcc"] is None
    assert row["rmse"] is None
    assert row["b1"] is None
    assert row["plcc_linear"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert "plcc, rmse: fewer than 5 distinct scores" in row["remarks"]


def test_often_undefined_metric_has_no_interval() -> None:
    """Five of six references have equal scores: a third of the resamples has no order."""
    x = np.zeros(12)
    x[:2] = [1.0, 2.0]
    row = agree(x, np.arange(12.0), [str(i // 2) for i in range(12)], n_resamples=300).row()
    assert row["srcc"] is not None
    assert row["srcc_low"] is None
    assert "the metric is undefined in" in row["remarks"]


def test_non_finite_values_are_rejected() -> None:
    with pytest.raises(SpecError, match="2 scores are not finite numbers"):
        agree(np.array([1.0, np.nan, np.inf, 2, 3]), np.arange(5.0))


def test_step_curve_is_reported() -> None:
    """Two clusters of videos without an order in either: the best curve is a step between them."""
    generator = np.random.default_rng(3)
    x = np.concatenate([generator.normal(size=40) - 20, generator.normal(size=40) + 20])
    y = np.repeat([20.0, 80.0], 40) + generator.normal(size=80)
    agreement = agree(x, y, n_resamples=50)
    assert agreement.is_step
    assert agreement.row()["plcc"] > 0.99
    assert "the best curve is a step at a score of" in agreement.row()["remarks"]
    x, y = videos(80)
    assert not agree(x, y, n_resamples=50).is_step
