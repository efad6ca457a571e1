"""Retry policy for storage requests: exponential backoff with jitter, limited in attempts and in total time.

The storage libraries retry a request a few times on their own (`StorageOptions.attempts`). This policy is for
operations that must survive longer faults: fetching a video, storing a file, a commit.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kvq_batch.domain.errors import TransientError
from kvq_batch.storage.errors import FOREIGN_ERRORS, RETRYABLE, classify_error, retry_after_s

T = TypeVar("T")

_CAUGHT: tuple[type[Exception], ...] = (TransientError, *FOREIGN_ERRORS)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retry policy with exponential backoff; picklable.

    `attempts` includes the first one. No attempt begins later than `max_total_s` after the first. Delays double from
    `initial_delay_s` to at most `max_delay_s`. Jitter shortens each delay by up to a half, so that the workers of a
    cluster do not retry at the same moment. A server that asks for a longer delay (Retry-After) gets it, but
    one longer than `max_retry_after_s` ends the retries. `sleep` is the function that waits.
    """

    attempts: int = 6
    initial_delay_s: float = 0.5
    max_delay_s: float = 8.0
    max_total_s: float = 240.0
    max_retry_after_s: float = 240.0
    sleep: Callable[[float], None] = time.sleep

    def run(self, action: Callable[[int], T]) -> T:
        """Call `action` with the attempt number (from 1) until it succeeds, and return its result.

        Retries after a TransientError and after a foreign exception of a kind in `errors.RETRYABLE`.

        Raises:
            Exception: the exception of the last attempt, or the first one that is not retryable.
        """
        started = time.monotonic()
        attempt = 1
        while True:
            try:
                return action(attempt)
            except _CAUGHT as error:
                delay_s = min(self.max_delay_s, self.initial_delay_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                asked_s = retry_after_s(error)
                delay_s = max(delay_s, asked_s)
                is_late = time.monotonic() + delay_s - started > self.max_total_s or asked_s > self.max_retry_after_s
                is_retryable = isinstance(error, TransientError) or classify_error(error) in RETRYABLE
                if attempt >= self.attempts or is_late or not is_retryable:
                    raise
            self.sleep(delay_s)
            attempt += 1
