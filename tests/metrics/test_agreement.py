"""All figures against scipy, intervals against the plain bootstrap, and what has no figure says why."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import curve_fit

from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.agreement import FIGURES, agree
from kvq_batch.metrics.ranks import Real


def videos(num: int, seed: int = 0) -> tuple[Real, Real]:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=num)
    return scores, np.round(50 + 25 * np.tanh(1.5 * scores) + generator.normal(size=num) * 6, 1)


def logistic(x: Real, b1: float, b2: float, b3: float, b4: float) -> Real:
    return b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4)))


def test_every_figure_is_scipys() -> None:
    x, y = videos(150)
    found = {name: figure.value for name, figure in agree(x, y, n_resamples=20).figures.items()}
    b, _ = curve_fit(logistic, x, y, p0=(y.max(), y.min(), x.mean(), x.std() / 4))
    curve = logistic(x, *b)
    # The published code's own lines (KVQ_SPEC section 5).
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
    assert set(found) == set(FIGURES)
    assert found == {
        name: None if value is None else pytest.approx(value, abs=1e-4) for name, value in expected.items()
    }


def test_intervals_are_those_of_drawing_whole_sources() -> None:
    """12 versions of each source that hang together: drawn one by one they would look three times as sure."""
    generator = np.random.default_rng(5)
    sources = np.repeat(np.arange(20), 12)
    shift = generator.normal(size=20)[sources] * 2
    labels = generator.normal(size=240) + shift
    scores = labels + generator.normal(size=20)[sources] * 2 + generator.normal(size=240) * 0.2
    found = agree(scores, labels, [f"s{source}" for source in sources], n_resamples=2000, seed=1).figures["srcc"]
    drawn = []
    for _ in range(2000):
        chosen = generator.integers(0, 20, 20)
        places = np.concatenate([np.flatnonzero(sources == source) for source in chosen])
        drawn.append(stats.spearmanr(scores[places], labels[places]).statistic)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)
    alone = agree(scores, labels, n_resamples=500).figures["srcc"]
    assert alone.low is not None
    assert alone.high is not None
    assert found.high is not None
    assert found.low is not None
    assert alone.high - alone.low < 0.6 * (found.high - found.low)


def test_the_same_seed_gives_the_same_intervals_and_they_hold_the_figure() -> None:
    x, y = videos(80)
    first, second, other = (agree(x, y, n_resamples=200, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first.figures != other.figures
    for name in ("srcc", "krcc", "plcc", "rmse", "plcc_linear", "rmse_linear"):
        figure = first.figures[name]
        assert figure.value is not None
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high, name
        assert figure.reason == ""


def test_order_within_sources_is_the_mean_of_their_own() -> None:
    generator = np.random.default_rng(2)
    sources = np.repeat(np.arange(8), 6)
    labels = generator.normal(size=48)
    scores = labels + generator.normal(size=48) * 0.4 + 10 * generator.normal(size=8)[sources]
    own = [stats.spearmanr(scores[sources == s], labels[sources == s]).statistic for s in range(8)]
    figure = agree(scores, labels, [str(s) for s in sources], n_resamples=300).figures["srcc_within"]
    assert figure.value == pytest.approx(np.mean(own))
    assert figure.low is not None
    assert figure.low <= np.mean(own)
    # A source whose scores are all one has no order; it is left out by name, not counted as one.
    scores[sources == 0] = 1.0
    flat = agree(scores, labels, [str(s) for s in sources], n_resamples=300).figures["srcc_within"]
    assert flat.value == pytest.approx(np.mean(own[1:]))
    assert flat.reason == "1 of 8 sources are left out: all equal"


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        ([1.0, 2, 3], [1.0, 2, 3], "3 videos; at least 4 are needed"),
        ([], [], "0 videos; at least 4 are needed"),
        ([2.5] * 6, range(6), "all 6 scores are 2.5: they have no order"),
        (range(6), [80.0] * 6, "all 6 labels are 80: they have no order"),
    ],
)
def test_what_has_no_agreement_says_why(scores: list[float], labels: list[float], reason: str) -> None:
    agreement = agree(np.array(list(scores)), np.array(list(labels)))
    assert {figure.value for figure in agreement.figures.values()} == {None}
    assert agreement.curve is None
    row = agreement.row()
    assert row["remarks"] == reason
    assert row["videos"] == len(list(scores))


def test_few_sources_give_figures_without_intervals() -> None:
    x, y = videos(40)
    row = agree(x, y, [str(i % 4) for i in range(40)]).row()
    assert row["srcc"] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert row["srcc_low"] is None
    assert "4 sources are too few for an interval" in row["remarks"]


def test_few_different_scores_keep_the_figures_that_need_no_curve() -> None:
    x = np.tile([1.0, 2.0], 6)
    y = np.arange(12.0)
    row = agree(x, y, n_resamples=50).row()
    assert row["plcc"] is None
    assert row["rmse"] is None
    assert row["b1"] is None
    assert row["plcc_linear"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert "plcc, rmse: fewer than 5 different scores" in row["remarks"]


def test_an_order_that_hangs_on_one_source_has_no_interval() -> None:
    """Five of six sources score the same: a third of the draws has no order."""
    x = np.zeros(12)
    x[:2] = [1.0, 2.0]
    row = agree(x, np.arange(12.0), [str(i // 2) for i in range(12)], n_resamples=300).row()
    assert row["srcc"] is not None
    assert row["srcc_low"] is None
    assert "of the draws have no such figure" in row["remarks"]


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(SpecError, match="2 scores are no finite numbers"):
        agree(np.array([1.0, np.nan, np.inf, 2, 3]), np.arange(5.0))


def test_a_curve_that_is_a_step_is_named() -> None:
    """Two clouds of videos without an order in either: the least error is a step between them."""
    generator = np.random.default_rng(3)
    x = np.concatenate([generator.normal(size=40) - 20, generator.normal(size=40) + 20])
    y = np.repeat([20.0, 80.0], 40) + generator.normal(size=80)
    agreement = agree(x, y, n_resamples=50)
    assert agreement.is_step
    assert agreement.row()["plcc"] > 0.99
    assert "the best curve is a step at a score of" in agreement.row()["remarks"]
    x, y = videos(80)
    assert not agree(x, y, n_resamples=50).is_step
