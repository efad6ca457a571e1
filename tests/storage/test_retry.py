"""Retry policy: which errors are retried, the delays, and the limits in attempts and in time."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from kvq_batch.domain.errors import FetchError, TransientError
from kvq_batch.storage.errors import RetryPolicy


class Flaky:
    """Raises the given errors one after the other, then returns the attempt number."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self, attempt: int) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return attempt


@pytest.fixture
def delays() -> list[float]:
    return []


def test_delays_double_until_success(delays: list[float]) -> None:
    flaky = Flaky(*[TransientError("not now")] * 5)
    policy = RetryPolicy(attempts=6, initial_delay_s=1, max_delay_s=4, sleep=delays.append)
    assert policy.run(flaky) == 6
    for delay_s, max_s in zip(delays, [1, 2, 4, 4, 4], strict=True):
        assert max_s / 2 <= delay_s <= max_s


def test_delays_have_jitter(delays: list[float]) -> None:
    for _ in range(20):
        RetryPolicy(sleep=delays.append).run(Flaky(TransientError("not now")))
    assert all(first != second for first, second in pairwise(delays))


@pytest.mark.parametrize("error", [TransientError("x"), ConnectionResetError("x"), TimeoutError("x")])
def test_last_error_is_raised_after_all_attempts(error: Exception, delays: list[float]) -> None:
    flaky = Flaky(*[error] * 9)
    with pytest.raises(type(error)):
        RetryPolicy(attempts=3, sleep=delays.append).run(flaky)
    assert (len(delays), len(flaky.errors)) == (2, 6)


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), FetchError("x", "x")])
def test_permanent_errors_are_not_retried(error: Exception, delays: list[float]) -> None:
    with pytest.raises(type(error)):
        RetryPolicy(sleep=delays.append).run(Flaky(error))
    assert delays == []


def test_no_attempt_begins_after_the_time_limit(delays: list[float]) -> None:
    with pytest.raises(TransientError):
        RetryPolicy(attempts=100, initial_delay_s=1, max_delay_s=64, max_total_s=0.4, sleep=delays.append).run(
            Flaky(*[TransientError("x")] * 99)
        )
    assert delays == []


def test_other_exceptions_are_not_caught() -> None:
    fault: Callable[[int], int] = Flaky(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        RetryPolicy().run(fault)
