"""Observers of a run: progress bars, event logs, metrics, tests.

A run calls its observer from the driver's main thread only, so observers need no locks. An observer must not change the
tracker. Messages are not part of the interface: they go to `logging`, below the logger "kvq_batch".
"""

from collections.abc import Sequence
from typing import Protocol

from kvq_batch.engine.rows import Row
from kvq_batch.engine.work_tracker import WorkTracker


class Observer(Protocol):
    """Receives the progress of a run."""

    def started(self, run_id: str, num_videos: int) -> None:
        """Called when the run is recorded in the tables and work begins."""

    def progressed(self, tracker: WorkTracker) -> None:
        """Called after results arrived."""

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        """Called after these rows were committed."""


class SilentObserver:
    """Ignores all progress. Base class for observers that need some of the methods."""

    def started(self, run_id: str, num_videos: int) -> None: ...

    def progressed(self, tracker: WorkTracker) -> None: ...

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None: ...
