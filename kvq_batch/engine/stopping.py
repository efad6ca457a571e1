"""The breaker: many failures with one cause are one cause, and stop the run before it condemns a catalog.

An expired credential must not quarantine a million videos. A video counts once, however many of its models or versions
fail: one bad video never ends a run. This module stops nothing itself; it answers whether to.

Whether a run goes on: asked in its loop, and answered by whoever stopped it, the clock, or the money.

What is finished when the answer is no is committed, what is in flight is let go: the next run takes it. This module
stops nothing itself.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from kvq_batch.config.job import Run

FIRST_VIDEOS = 500
"""Videos over which `share` is judged, from the start of a run (design, section "Failures")."""

SMALLEST_SHARE_COUNT = 50
"""Failures that `share` needs at least: 20% of ten videos are two bad files, not an outage."""


class Breaker:
    """Counts outcomes; `cause` names the reason to stop, once there is one."""

    def __init__(self, in_a_row: int, share: float) -> None:
        self._in_a_row = in_a_row
        self._share = share
        self._streak: set[str] = set()
        self._streak_of: tuple[str, str] | None = None
        self._seen = 0
        self._failed: dict[tuple[str, str], set[str]] = {}
        self.cause: str | None = None

    @classmethod
    def from_spec(cls, run: Run) -> Self:
        return cls(run.breaker_in_a_row, run.breaker_share)

    def scored(self) -> None:
        """A video was scored: whatever failed before is not all that there is."""
        self._seen += 1
        self._streak.clear()
        self._streak_of = None

    def failed(self, stage: str, error: str, video_id: str) -> None:
        """A video failed at `stage` with `error`, or one of the things that are wanted of it did."""
        self._seen += 1
        key = (stage, error)
        if key != self._streak_of:
            self._streak.clear()
        self._streak_of = key
        self._streak.add(video_id)
        failed = self._failed.setdefault(key, set())
        if self._seen <= FIRST_VIDEOS:
            failed.add(video_id)
        limit = max(SMALLEST_SHARE_COUNT, self._share * FIRST_VIDEOS)
        if len(self._streak) >= self._in_a_row:
            self.cause = f"{len(self._streak)} videos in a row failed at {stage} with {error}"
        elif len(failed) >= limit:
            self.cause = f"{len(failed)} of the first {self._seen} videos failed at {stage} with {error}"


INTERRUPTED = "interrupted"


class StopCondition:
    """Set once somebody asks, the deadline comes or the money is spent; `cause` keeps the first of these."""

    def __init__(
        self,
        asked: threading.Event,
        deadline: datetime | None = None,
        max_cost: float | None = None,
        cost: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.cause: str | None = None
        self._asked = asked
        self._deadline = deadline
        self._max_cost = max_cost
        self._cost = cost

    def is_set(self) -> bool:
        if self.cause is None:
            self.cause = self._find_cause()
        return self.cause is not None

    def _find_cause(self) -> str | None:
        if self._asked.is_set():
            return INTERRUPTED
        if self._deadline is not None and datetime.now(UTC) >= self._deadline:
            return f"the deadline came: {self._deadline.isoformat(timespec='minutes').replace('+00:00', 'Z')}"
        if self._max_cost is not None:
            spent = self._cost()
            if spent is not None and spent >= self._max_cost:
                return f"budget.max_cost = {self._max_cost:g} is spent"
        return None
