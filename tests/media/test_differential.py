"""Odd files are decoded as the command line of ffmpeg decodes them, or refused because they are damaged."""

from collections import Counter

import pytest

from tests.support.differential import compare_all
from tests.support.odd_files import odd_files

FILES = odd_files()
NUM_CHOSEN = 30


def assert_as_ffmpeg(first: int, last: int) -> None:
    outcomes = compare_all(FILES[first:last])
    wrong = [outcome for outcome in outcomes if not outcome.is_right]
    assert not wrong, "\n".join(map(str, wrong))
    assert Counter(outcome.verdict for outcome in outcomes).most_common(1)[0][0] == "equal"


def test_a_choice_of_odd_files() -> None:
    assert_as_ffmpeg(0, NUM_CHOSEN)


@pytest.mark.faults
@pytest.mark.parametrize("first", range(NUM_CHOSEN, len(FILES), 40))
def test_all_odd_files(first: int) -> None:
    assert_as_ffmpeg(first, first + 40)
