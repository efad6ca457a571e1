"""Progress bars on stderr: of runs, trainings and evaluations. Without a terminal nothing is drawn.

Messages appear above the bar through `logging`.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from kvq_batch.cli.logs import terminal_console
from kvq_batch.cli.stdio import escape_controls

if TYPE_CHECKING:
    from kvq_batch.engine.rows import Row
    from kvq_batch.engine.work_tracker import WorkTracker
    from kvq_batch.training.validation import Validation

_logger = logging.getLogger(__name__)

_POLL_INTERVAL_S = 2.0
"""How often a training in other processes is looked at."""


class ProgressBar:
    """A bar with a count, a description and the time left."""

    def __init__(self, description: str = "starting", total: int | None = None) -> None:
        console = terminal_console()
        # In 80 columns the whole description is shown; the bar takes the space that is left.
        self._bar = Progress(
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            MofNCompleteColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            TextColumn("ETA", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
            # The engine redirects Ray's output at the same time; two redirections of one stream break each other.
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(description, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, completed: int | None = None, total: int | None = None, description: str | None = None) -> None:
        if description is not None:
            description = escape_controls(description)
        self._bar.update(self._task, completed=completed, total=total, description=description)


class RunProgress(ProgressBar):
    """Observer of a run: counts, throughput, time left, and the stage that limits the throughput.

    `workers` is the largest number of workers of each stage that the tracker measures.
    """

    def __init__(self, workers: Mapping[str, int], unit: str = "videos", done: str = "scored") -> None:
        super().__init__()
        self._workers = workers
        self._unit = unit
        self._done = done
        self._started_s: float | None = None

    def started(self, run_id: str, num_videos: int) -> None:
        self.update(description="starting workers", total=num_videos)

    def progressed(self, tracker: "WorkTracker") -> None:
        now = time.monotonic()
        if self._started_s is None:
            # The start of the workers does not count: the clock starts when work on the first result began.
            self._started_s = now - sum(tracker.busy_s.values())
        elapsed_s = max(now - self._started_s, 1e-9)
        busy = {stage: busy_s / elapsed_s / self._workers[stage] for stage, busy_s in tracker.busy_s.items()}
        slowest = max(busy, key=lambda stage: busy[stage])
        rate = tracker.num_videos_done / elapsed_s
        description = (
            f"{tracker.num_scored} {self._done}, {tracker.num_failed} failed, {rate:.3g} {self._unit}/s, "
            f"{slowest}-bound {min(busy[slowest], 1):.0%}"
        )
        self.update(completed=tracker.num_videos_done, description=description)

    def committed(self, scores: "Sequence[Row]", failures: "Sequence[Row]") -> None:
        """Do nothing: the bar follows results, not commits."""


class TrainProgress(ProgressBar):
    """Observer of a training: what comes before the steps, then steps with their loss; logs each validation."""

    def prepared(self, what: str, done: int, total: int) -> None:
        self.update(description=what, completed=done, total=total)

    def started(self, step: int, steps: int, num_train: int, num_validation: int) -> None:
        self.update(description="training", completed=step, total=steps)
        _logger.info("training on %d clips, %d held out; step %d of %d", num_train, num_validation, step, steps)

    def stepped(self, step: int, row: Mapping[str, float]) -> None:
        self.update(description=f"loss {row['loss']:.4f}", completed=step)

    def validated(self, validation: "Validation", is_best: bool) -> None:
        _log_validation(validation.step, validation.srcc, validation.plcc, is_best)

    @contextmanager
    def following(self, folder: Path, steps: int) -> Iterator[None]:
        """Show a training that other processes write into `folder`."""
        from kvq_batch.training.state import read_curve
        from kvq_batch.training.trainer import CURVE, VALIDATION

        ended = threading.Event()

        def rows(name: str) -> list[dict[str, float]]:
            path = folder / name
            return read_curve(path) if path.exists() else []

        num_logged = len(rows(VALIDATION))

        def follow() -> None:
            nonlocal num_logged
            while not ended.wait(_POLL_INTERVAL_S):
                if curve := rows(CURVE):
                    self.update(total=steps)
                    self.stepped(int(curve[-1]["step"]), curve[-1])
                for row in (validations := rows(VALIDATION))[num_logged:]:
                    _log_validation(int(row["step"]), row["srcc"], row["plcc"], bool(row["is_best"]))
                num_logged = max(num_logged, len(validations))

        thread = threading.Thread(target=follow, name="follow-training", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _log_validation(step: int, srcc: float, plcc: float, is_best: bool) -> None:
    best = ", the best so far" if is_best else ""
    _logger.info("step %d: SRCC %.4f, PLCC %.4f on held-out scenes%s", step, srcc, plcc, best)
