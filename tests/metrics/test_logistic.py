"""The four-parameter logistic: recovered from its labels, equal to scipy's fit, bounded by a scale."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from kvq_batch.metrics.logistic import Logistic, fit_logistic
from kvq_batch.metrics.ranks import Real


def formula(x: Real, b1: float, b2: float, b3: float, b4: float) -> Real:
    """The formula of the studies, written independently of the implementation."""
    return b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4)))


def fitted(scores: Real, labels: Real) -> Logistic:
    curve = fit_logistic(scores, labels)
    assert isinstance(curve, Logistic), curve
    return curve


@pytest.mark.parametrize("b", [(80.0, 20.0, 3.0, 0.7), (4.5, 1.5, -120.0, 35.0), (10.0, 90.0, 0.002, 0.0005)])
def test_parameters_are_recovered(b: tuple[float, float, float, float]) -> None:
    x = b[2] + b[3] * np.linspace(-4, 4, 60)
    curve = fitted(x, formula(x, *b))
    np.testing.assert_allclose(curve.parameters, b, rtol=1e-5)
    np.testing.assert_allclose(curve(x), formula(x, *b), rtol=1e-6)


def test_fit_matches_scipy_on_noisy_labels() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=300)
    y = formula(x, 75, 25, 0.2, 0.6) + generator.normal(size=300) * 6
    expected, _ = curve_fit(formula, x, y, p0=(y.max(), y.min(), x.mean(), x.std() / 4))
    curve = fitted(x, y)
    np.testing.assert_allclose(curve(x), formula(x, *expected), atol=1e-3)
    weights = generator.integers(0, 4, 300).astype(np.float64)
    times = weights.astype(int)
    weighted = fit_logistic(x, y, weights)
    repeated = fitted(np.repeat(x, times), np.repeat(y, times))
    assert isinstance(weighted, Logistic)
    np.testing.assert_allclose(weighted(x), repeated(x), atol=1e-3)


@pytest.mark.parametrize("slope", [3.0, -3.0])
def test_straight_relation_fits_like_a_line(slope: float) -> None:
    generator = np.random.default_rng(1)
    x = generator.uniform(-1, 1, 200)
    y = 50 + slope * x + generator.normal(size=200) * 0.3
    line = np.polyval(np.polyfit(x, y, 1), x)
    curve = fitted(x, y)
    assert ((curve(x) - y) ** 2).sum() <= 1.001 * ((line - y) ** 2).sum()


@pytest.mark.parametrize("seed", [0, 2])
def test_slightly_bent_relation_converges(seed: int) -> None:
    """The path to the minimum is long and flat: 500 evaluations are not enough."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(0, 1, 400)
    y = 100 * np.expm1(-0.6 * x) / np.expm1(-0.6) + generator.normal(0, 15, 400)
    line = np.polyval(np.polyfit(x, y, 1), x)
    assert ((fitted(x, y)(x) - y) ** 2).sum() <= 1.001 * ((line - y) ** 2).sum()


def test_two_label_values_do_not_overflow() -> None:
    x = np.concatenate([np.linspace(-500, -400, 10), np.linspace(400, 500, 10)])
    y = np.repeat([1.0, 5.0], 10)
    curve = fitted(x, y)
    np.testing.assert_allclose(curve(x), y, atol=1e-3)


def test_few_distinct_scores_return_a_reason() -> None:
    reason = fit_logistic(np.array([1.0, 2, 3, 4, 4, 4]), np.arange(6.0))
    assert reason == "fewer than 5 distinct scores: too few to fit 4 parameters"


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_bounded_fit_is_the_best_on_the_scale(slope: float) -> None:
    generator = np.random.default_rng(3)
    x = generator.uniform(0, 1, 300)
    y = np.clip(50 + slope * (85 * np.sqrt(x) - 45) + generator.normal(0, 6, 300), 0, 100)
    free = fitted(x, y)
    assert min(free.b1, free.b2) < 0
    bounded = fit_logistic(x, y, scale=(0, 100))
    assert isinstance(bounded, Logistic)
    assert min(bounded.b1, bounded.b2) >= 0
    assert max(bounded.b1, bounded.b2) <= 100
    expected, _ = curve_fit(
        formula, x, y, p0=(*bounded.parameters[:2], 0.5, 0.2), bounds=([0, 0, -9, 0.01], [100, 100, 9, 9])
    )
    np.testing.assert_allclose(bounded(x), formula(x, *expected), atol=0.1)


def test_wide_scale_does_not_change_the_fit() -> None:
    x = np.linspace(-3, 3, 60)
    y = formula(x, 80, 20, 0.1, 0.7) + np.sin(40 * x)
    bounded = fit_logistic(x, y, scale=(0, 100))
    assert isinstance(bounded, Logistic)
    np.testing.assert_allclose(bounded(x), fitted(x, y)(x), atol=1e-3)
