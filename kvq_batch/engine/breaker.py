"""The breaker: many failures with one cause are one cause, and stop the run before it condemns a catalog.

An expired credential must not quarantine a million videos. This module stops nothing itself; it answers whether to.
"""

from collections import Counter
from typing import Self

from kvq_batch.spec.job import Run

FIRST_VIDEOS = 500
"""Videos over which `share` is judged, from the start of a run (design, section "Failures")."""

SMALLEST_SHARE_COUNT = 50
"""Failures that `share` needs at least: 20% of ten videos are two bad files, not an outage."""


class Breaker:
    """Counts outcomes; `cause` names the reason to stop, once there is one."""

    def __init__(self, in_a_row: int, share: float) -> None:
        self._in_a_row = in_a_row
        self._share = share
        self._streak = 0
        self._streak_of: tuple[str, str] | None = None
        self._seen = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self.cause: str | None = None

    @classmethod
    def from_spec(cls, run: Run) -> Self:
        return cls(run.breaker_in_a_row, run.breaker_share)

    def scored(self) -> None:
        """A video was scored: whatever failed before is not all that there is."""
        self._seen += 1
        self._streak = 0
        self._streak_of = None

    def failed(self, stage: str, error: str) -> None:
        """A video failed at `stage` with `error`."""
        self._seen += 1
        key = (stage, error)
        self._streak = self._streak + 1 if key == self._streak_of else 1
        self._streak_of = key
        if self._seen <= FIRST_VIDEOS:
            self._counts[key] += 1
        limit = max(SMALLEST_SHARE_COUNT, self._share * FIRST_VIDEOS)
        if self._streak >= self._in_a_row:
            self.cause = f"{self._streak} videos in a row failed at {stage} with {error}"
        elif self._counts[key] >= limit:
            self.cause = f"{self._counts[key]} of the first {self._seen} videos failed at {stage} with {error}"
