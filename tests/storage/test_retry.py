"""What may pass is tried again, with pauses that grow, up to a number and up to a time."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from kvq_batch.domain.errors import FetchError, TransientError
from kvq_batch.storage.retry import RetryPolicy


class Flaky:
    """Raises what it was given, one after the other, then returns the number of the attempt."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, attempt: int) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return attempt


@pytest.fixture
def pauses() -> list[float]:
    return []


def test_it_returns_the_first_success_and_pauses_longer_each_time(pauses: list[float]) -> None:
    flaky = Flaky(*[TransientError("not now")] * 5)
    policy = RetryPolicy(attempts=6, initial_delay_s=1, max_delay_s=4, sleep=pauses.append)
    assert policy.run(flaky) == 6
    for pause_s, longest_s in zip(pauses, [1, 2, 4, 4, 4], strict=True):
        assert longest_s / 2 <= pause_s <= longest_s


def test_pauses_differ_by_chance(pauses: list[float]) -> None:
    for _ in range(20):
        RetryPolicy(sleep=pauses.append).run(Flaky(TransientError("not now")))
    assert all(first != second for first, second in pairwise(pauses))


@pytest.mark.parametrize("error", [TransientError("x"), ConnectionResetError("x"), TimeoutError("x")])
def test_the_last_error_is_raised_when_the_attempts_are_over(error: Exception, pauses: list[float]) -> None:
    flaky = Flaky(*[error] * 9)
    with pytest.raises(type(error)):
        RetryPolicy(attempts=3, sleep=pauses.append).run(flaky)
    assert (len(pauses), len(flaky.errors)) == (2, 6)


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), FetchError("x", "x")])
def test_what_does_not_pass_is_not_tried_again(error: Exception, pauses: list[float]) -> None:
    with pytest.raises(type(error)):
        RetryPolicy(sleep=pauses.append).run(Flaky(error))
    assert pauses == []


def test_no_attempt_begins_after_the_time_is_over(pauses: list[float]) -> None:
    with pytest.raises(TransientError):
        RetryPolicy(attempts=100, initial_delay_s=1, max_delay_s=64, max_total_s=0.4, sleep=pauses.append).run(
            Flaky(*[TransientError("x")] * 99)
        )
    assert pauses == []


def test_what_is_no_fault_of_a_store_passes_through() -> None:
    fault: Callable[[int], int] = Flaky(ZeroDivisionError("a defect of ours"))
    with pytest.raises(ZeroDivisionError):
        RetryPolicy().run(fault)
