"""The breaker: many failures with one cause are one cause, and stop the run before it condemns a catalog.

An expired credential must not quarantine a million videos. A video counts once, however many of its models or versions
fail: one bad video never ends a run. This module stops nothing itself; it answers whether to.
"""

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
