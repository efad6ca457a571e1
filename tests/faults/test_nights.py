"""A week of nights: each night's counts are those that the rules foretell."""

from pathlib import Path

import pytest

from tests.support.nights import STOPPED_BY_BUDGET, WEEK, live


@pytest.mark.faults
def test_every_night_of_a_week_comes_to_what_was_foretold(tmp_path: Path) -> None:
    for night, (predicted, counts, code, _) in zip(WEEK, live(tmp_path, 300), strict=True):
        assert counts == predicted, night
        assert bool(counts.not_reached) == (night.budget is not None) == (code == STOPPED_BY_BUDGET)
