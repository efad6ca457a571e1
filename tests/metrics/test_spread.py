"""Spread of labels around scores: known deviations are found, and intervals cover what they should."""

import numpy as np
import pytest

from kvq_batch.metrics.spread import coverage, fit_spread


def test_known_deviations_are_found() -> None:
    rng = np.random.default_rng(1)
    scores = rng.uniform(0, 1, 8000)
    deviations = 10 - 8 * scores
    errors = deviations * rng.standard_normal(len(scores))
    fitted = fit_spread(scores, errors)
    assert fitted is not None
    knots, found = (np.array(values) for values in fitted)
    assert np.all(np.diff(knots) > 0)
    assert found == pytest.approx(10 - 8 * knots, rel=0.06)
    # A normal distribution has 68.3% within one deviation and 95.4% within two.
    expected = np.interp(scores, knots, found)
    assert coverage(errors, expected, 1) == pytest.approx(0.683, abs=0.02)
    assert coverage(errors, expected, 2) == pytest.approx(0.954, abs=0.01)


def test_few_clips_have_no_spread() -> None:
    assert fit_spread(np.arange(79.0), np.ones(79)) is None
    fitted = fit_spread(np.arange(80.0), np.r_[np.zeros(40), np.full(40, 2.0)])
    assert fitted == ((19.5, 59.5), (0.0, 2.0))
