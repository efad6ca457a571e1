"""Order on ladders equals a count by hand."""

import itertools

import numpy as np
import pytest

from kvq_batch.metrics.ladders import share_in_level, share_of_neighbours


def test_shares_equal_a_plain_count() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 6, 24).astype(float), rng.integers(0, 6, 24).astype(float)
    levels = [str(number % 4) for number in range(24)]
    found = [
        0.5 if scores[i] == scores[j] else float((scores[i] < scores[j]) == (labels[i] < labels[j]))
        for i, j in itertools.combinations(range(24), 2)
        if levels[i] == levels[j] and labels[i] != labels[j]
    ]
    assert share_in_level(scores, labels, levels) == pytest.approx(np.mean(found))


def test_neighbours_are_of_one_reference() -> None:
    labels, scores = np.array([10.0, 30, 20, 5, 50]), np.array([1.0, 2, 3, 9, 9])
    # Reference a: 10, 20, 30 with scores 1, 3, 2; b: a tie.
    assert share_of_neighbours(scores, labels, ["a", "a", "a", "b", "b"]) == pytest.approx((1 + 0 + 0.5) / 3)


def test_unknown_levels_have_no_share() -> None:
    values = np.array([1.0, 2.0])
    assert share_in_level(values, values, ["a", None]) is None
    assert share_of_neighbours(values, values, ["a", "b"]) is None
