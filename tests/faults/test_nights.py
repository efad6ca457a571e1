"""A week of nightly runs: the counts of each night are those that the simulation predicts."""

from pathlib import Path

import pytest

from tests.support.nights import STOPPED_BY_BUDGET, WEEK, run_week


@pytest.mark.faults
def test_nightly_counts_match_simulation(tmp_path: Path) -> None:
    for night, (predicted, counts, code, _) in zip(WEEK, run_week(tmp_path, 300), strict=True):
        assert counts == predicted, night
        assert bool(counts.remaining) == (night.budget is not None) == (code == STOPPED_BY_BUDGET)
