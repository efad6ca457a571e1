"""What a run did, in numbers that must add up.

Sums are checked, not assumed: planned = scored + finally failed + not reached, in pairs of video and model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kvq_batch.domain.errors import FatalError

State = Literal["running", "finished", "stopped", "failed", "crashed"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The outcome of one run. Counts of `num_planned` and what follows it are pairs of video and model.

    Hours are those of cores and GPUs that its workers held (`engine.estimate`); `cost` is None without prices.
    """

    run_id: str
    state: State
    num_videos: int
    num_planned: int
    planned_by_reason: Mapping[str, int]
    num_scored: int
    num_failed: int
    num_remaining: int
    num_retried: int
    num_videos_planned: int
    num_videos_failed: int
    seconds: float
    startup_s: float
    core_hours: float
    gpu_hours: float
    cost: float | None
    decode_s: float
    score_s: float
    message: str = ""

    def check(self) -> None:
        """Raises FatalError where the books do not balance."""
        total = self.num_scored + self.num_failed + self.num_remaining
        if total != self.num_planned or (self.state == "finished" and self.num_remaining):
            raise FatalError(
                f"run {self.run_id}: {self.num_planned} pairs were planned, but {self.num_scored} scored, "
                f"{self.num_failed} failed and {self.num_remaining} not reached make {total}: please report this"
            )

    @property
    def failure_share(self) -> float:
        """Share of the planned videos with a final failure."""
        return self.num_videos_failed / self.num_videos_planned if self.num_videos_planned else 0.0

    @property
    def videos_per_s(self) -> float:
        return (self.num_videos_planned * self.reached_share) / self.seconds if self.seconds else 0.0

    @property
    def reached_share(self) -> float:
        return 1 - self.num_remaining / self.num_planned if self.num_planned else 0.0
