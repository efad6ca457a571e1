"""Who watches a run: a progress bar, a log, a test.

Called from the driver's thread only, so that watching needs no lock. An observer changes nothing.
"""

from collections.abc import Sequence
from typing import Protocol

from kvq_batch.engine.rows import Row
from kvq_batch.engine.work_tracker import WorkTracker


class Observer(Protocol):
    """Hears of a run as it goes."""

    def started(self, run_id: str, num_videos: int) -> None:
        """The run has its place in the tables; work begins."""

    def progressed(self, tracker: WorkTracker) -> None:
        """Results arrived."""

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        """These rows stand in the tables now."""

    def told(self, text: str) -> None:
        """Something that a person may want to know."""


class SilentObserver:
    """Watches and says nothing."""

    def started(self, run_id: str, num_videos: int) -> None: ...

    def progressed(self, tracker: WorkTracker) -> None: ...

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None: ...

    def told(self, text: str) -> None: ...
