"""Reasons to stop a run early: the circuit breaker, an interrupt, the deadline and the cost budget.

Nothing here stops a run. The retry loop asks, commits finished results, and cancels the pipeline; the next run does the
rest.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from kvq_batch.config.job import Run

INTERRUPTED = "interrupted"
"""Cause of a stop that somebody asked for."""

FIRST_VIDEOS = 500
"""Videos from the start of a run in which the share of failures is counted."""

MIN_SHARE_FAILURES = 50
"""Fewest failures for the share to count: 20% of ten videos are two bad files, not an outage."""


class CircuitBreaker:
    """Stops a run when many videos fail with the same stage and error, before their failures become final.

    For example, expired credentials must not quarantine a million videos. A video counts once, however many of its
    models or renditions fail, so one bad video never stops a run. `cause` says why to stop; None while there is no
    reason.
    """

    def __init__(self, in_a_row: int, share: float) -> None:
        self._in_a_row = in_a_row
        self._share = share
        self._streak: set[str] = set()
        self._streak_key: tuple[str, str] | None = None
        self._num_seen = 0
        self._failed: dict[tuple[str, str], set[str]] = {}
        self.cause: str | None = None

    @classmethod
    def from_spec(cls, run: Run) -> Self:
        return cls(run.breaker_in_a_row, run.breaker_share)

    def record_success(self) -> None:
        """Record a result. It ends the streak of failures."""
        self._num_seen += 1
        self._streak.clear()
        self._streak_key = None

    def record_failure(self, stage: str, error: str, video_id: str) -> None:
        """Record a failed attempt of one task of the video."""
        self._num_seen += 1
        key = (stage, error)
        if key != self._streak_key:
            self._streak.clear()
        self._streak_key = key
        self._streak.add(video_id)
        failed = self._failed.setdefault(key, set())
        if self._num_seen <= FIRST_VIDEOS:
            failed.add(video_id)
        limit = max(MIN_SHARE_FAILURES, self._share * FIRST_VIDEOS)
        if len(self._streak) >= self._in_a_row:
            self.cause = f"{len(self._streak)} videos in a row failed at {stage} with {error}"
        elif len(failed) >= limit:
            self.cause = f"{len(failed)} of the first {self._num_seen} videos failed at {stage} with {error}"


class StopCondition:
    """Is set once a stop is requested, the deadline passes or the budget is spent; `cause` keeps the first reason."""

    def __init__(
        self,
        requested: threading.Event,
        deadline: datetime | None = None,
        max_cost: float | None = None,
        cost: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.cause: str | None = None
        self._requested = requested
        self._deadline = deadline
        self._max_cost = max_cost
        self._cost = cost

    def is_set(self) -> bool:
        if self.cause is None:
            self.cause = self._find_cause()
        return self.cause is not None

    def _find_cause(self) -> str | None:
        if self._requested.is_set():
            return INTERRUPTED
        if self._deadline is not None and datetime.now(UTC) >= self._deadline:
            return f"reached the deadline {self._deadline.isoformat(timespec='minutes').replace('+00:00', 'Z')}"
        if self._max_cost is not None:
            cost = self._cost()
            if cost is not None and cost >= self._max_cost:
                return f"reached budget.max_cost = {self._max_cost:g}"
        return None
