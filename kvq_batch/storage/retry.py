"""How long a store is asked again: exponential pauses with jitter, capped one by one and in sum.

The libraries below repeat a request a few times by themselves (`StorageOptions.attempts`); this is for what must
outlast more than that: a video's bytes, a commit. It decides nothing about what a last failure means.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kvq_batch.domain.errors import TransientError
from kvq_batch.storage.errors import FOREIGN_ERRORS, RETRYABLE, classify_error

T = TypeVar("T")

_PASSING: tuple[type[Exception], ...] = (TransientError, *FOREIGN_ERRORS)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Picklable. `attempts` counts the first one, and none begins later than `total_s` after it.

    Pauses double from `first_pause_s` to at most `longest_pause_s`; each is shortened by chance, by up to a half, so
    that the workers of a cluster do not come back together. `sleep` is what waits.
    """

    attempts: int = 6
    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0
    total_s: float = 240.0
    sleep: Callable[[float], None] = time.sleep

    def repeat(self, action: Callable[[int], T]) -> T:
        """What `action` returns at last; it is called with the number of the attempt, from 1.

        Tried again is after a TransientError, and after a foreign exception that may pass (`trouble.MAY_PASS`).
        Raises what the last attempt raised.
        """
        started = time.monotonic()
        attempt = 1
        while True:
            try:
                return action(attempt)
            except _PASSING as error:
                pause_s = min(self.longest_pause_s, self.first_pause_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                is_late = time.monotonic() + pause_s - started > self.total_s
                may_pass = isinstance(error, TransientError) or classify_error(error) in RETRYABLE
                if attempt >= self.attempts or is_late or not may_pass:
                    raise
            self.sleep(pause_s)
            attempt += 1
