"""Records one run in the tables: its plan, its commits, and its row in `runs`.

Everything that a run writes goes through `RunRecorder`. The order makes a crash between any two steps harmless: first
the inputs (models, catalog), then the plan, then the results, then the outcome.
"""

import json
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import pyarrow as pa

from kvq_batch.config.job import Job, Prices
from kvq_batch.config.labels import LabelJob
from kvq_batch.domain.errors import FatalError
from kvq_batch.engine.work_tracker import FinishedRows, Observer, WorkTracker
from kvq_batch.planning.estimate import Usage, WorkerPool, total_usage
from kvq_batch.planning.plan import store_plan
from kvq_batch.tables.row_types import RunRow
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer

State = Literal["running", "finished", "stopped", "failed", "crashed"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The outcome of one run.

    `num_planned`, `num_scored`, `num_failed`, `num_remaining` and `num_retried` count tasks: (video, model) in a
    scoring run, renditions in a label run. `num_videos` counts the rows of the catalog, or the references;
    `num_videos_planned` those that this run takes, `num_videos_done` those of them without an open task.
    `startup_s` is the time before the first result, None without results. Hours are those of the cores and GPUs that
    the workers held (`planning/estimate.py`); `cost` is None without prices. `work_s` is the time that workers spent
    on what came back, by stage.
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
    num_videos_done: int
    num_videos_failed: int
    seconds: float
    startup_s: float | None
    core_hours: float
    gpu_hours: float
    cost: float | None
    work_s: Mapping[str, float]
    message: str = ""

    def check(self) -> None:
        """Check that planned = scored + failed + remaining, and that a finished run has nothing remaining.

        Raises:
            FatalError: the counts do not add up.
        """
        total = self.num_scored + self.num_failed + self.num_remaining
        if total != self.num_planned or (self.state == "finished" and self.num_remaining):
            raise FatalError(
                f"The counts of run {self.run_id} do not add up: {self.num_planned} tasks planned, but "
                f"{self.num_scored} scored + {self.num_failed} failed + {self.num_remaining} remaining = {total} "
                f"(state {self.state}). Please report this."
            )

    @property
    def failure_share(self) -> float:
        """Share of the planned videos that have a final failure."""
        return self.num_videos_failed / self.num_videos_planned if self.num_videos_planned else 0.0

    @property
    def videos_per_s(self) -> float:
        return self.num_videos_done / self.seconds if self.seconds else 0.0

    @property
    def results_per_worker_hour(self) -> float:
        """Results per hour of a busy worker; on a machine with one core per worker, per core-hour."""
        work_s = sum(self.work_s.values())
        return 3600 * self.num_scored / work_s if work_s else 0.0


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What the table `runs` says about the plan of a run. `job_spec` is the job without secrets."""

    job: Job | LabelJob
    job_spec: Mapping[str, Any]
    catalog_name: str
    catalog_root: str
    tasks: pa.Table
    num_videos: int
    planned_by_reason: Mapping[str, int]
    prices: Prices = field(default_factory=Prices)


class RunRecorder(ABC):
    """Writes the tables of one run and counts what was committed.

    `packages` are the distributions whose versions are recorded, `extras` those that need not be installed.
    """

    packages: ClassVar[tuple[str, ...]]
    extras: ClassVar[tuple[str, ...]] = ("decord",)

    def __init__(self, inputs: RunInputs, tracker: WorkTracker, writer: Writer) -> None:
        self.run_id = writer.run_id
        self.job = inputs.job
        self._inputs = inputs
        self._tracker = tracker
        self._writer = writer
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._committed = time.monotonic()
        self._first_result: float | None = None
        self._num_unsaved_scores = 0
        self._num_unsaved_failures = 0

    @abstractmethod
    def _write_rows(self, rows: FinishedRows) -> None:
        """Commit the rows. Raises: FatalError if the tables cannot be written."""

    def _write_inputs(self) -> None:  # noqa: B027 - optional
        """Write what must be in the tables before the plan."""

    def _pools_with_work(self) -> tuple[WorkerPool, ...]:
        """Return the worker pools with the work that came back from them; empty if hours are not recorded."""
        return ()

    def _package_versions(self) -> list[tuple[str, str]]:
        installed = [name for name in self.extras if find_spec(name) is not None]
        return [(name, version(name)) for name in (*self.packages, *installed)] + [
            ("python", platform.python_version())
        ]

    @property
    def num_left_out(self) -> int:
        """Tasks of the plan that `budget.max_videos` left out of this run."""
        return int(self._inputs.tasks.num_rows) - self._tracker.num_tasks

    @property
    def cost(self) -> float | None:
        """Cost of the machines so far; None without prices."""
        return self._use(time.monotonic() - self._started).cost(self._inputs.prices)

    def open(self) -> None:
        """Record the inputs, the plan, and a row with the state `running`, before any work starts."""
        self._write_inputs()
        store_plan(self._writer.tables, self.run_id, self._inputs.tasks)
        self._write_run(self._summary("running", ""))

    def note_cores(self, num_cores: int) -> None:  # noqa: B027 - optional
        """Note the cores of the machine or cluster that the run uses."""

    def note_result(self) -> None:
        """Note that a result arrived; the first one ends the startup time."""
        if self._first_result is None:
            self._first_result = time.monotonic()

    def commit_when_due(self, observer: Observer) -> None:
        """Commit finished rows, at most every `run.commit_every_s` seconds."""
        if time.monotonic() - self._committed >= self.job.run.commit_every_s:
            self.commit(observer)

    def commit(self, observer: Observer) -> None:
        """Commit finished rows now. Raises: FatalError if the tables cannot be written."""
        rows = self._tracker.take()
        if rows:
            try:
                self._write_rows(rows)
            except FatalError:
                # Results that are not in the tables do not count: a later run computes them again.
                self._num_unsaved_scores += len(rows.scores)
                self._num_unsaved_failures += sum(row["final"] for row in rows.failures)
                raise
            observer.committed(rows.scores, rows.failures)
        self._committed = time.monotonic()

    def close(self, state: State, message: str = "") -> RunSummary:
        """Record the outcome and return the summary."""
        summary = self._summary(state, message)
        self._write_run(summary)
        return summary

    def _summary(self, state: State, message: str) -> RunSummary:
        inputs, tracker = self._inputs, self._tracker
        num_unsaved = self._num_unsaved_scores + self._num_unsaved_failures
        seconds = time.monotonic() - self._started
        use = self._use(seconds)
        return RunSummary(
            run_id=self.run_id,
            state=state,
            num_videos=inputs.num_videos,
            num_planned=inputs.tasks.num_rows,
            planned_by_reason=inputs.planned_by_reason,
            num_scored=tracker.num_scored - self._num_unsaved_scores,
            num_failed=tracker.num_failed - self._num_unsaved_failures,
            num_remaining=tracker.num_open + self.num_left_out + num_unsaved,
            num_retried=tracker.num_retried,
            num_videos_planned=tracker.num_videos,
            num_videos_done=tracker.num_videos_done,
            num_videos_failed=tracker.num_videos_failed,
            seconds=seconds,
            startup_s=None if self._first_result is None else self._first_result - self._started,
            core_hours=use.core_hours,
            gpu_hours=use.gpu_hours,
            cost=use.cost(inputs.prices),
            work_s=dict(tracker.busy_s),
            message=message,
        )

    def _use(self, seconds: float) -> Usage:
        # A run without tasks starts no workers.
        return total_usage(self._pools_with_work(), seconds) if self._tracker.num_tasks else Usage()

    def _write_run(self, summary: RunSummary) -> None:
        self._writer.write_run(make_rows("runs", [self._run_row(summary)]))

    def _run_row(self, summary: RunSummary) -> RunRow:
        """Return the row of `runs`; subclasses add what they know."""
        is_over = summary.state != "running"
        return {
            "job": self.job.name,
            "job_spec": json.dumps(self._inputs.job_spec),
            "catalog": self._inputs.catalog_name,
            "catalog_root": self._inputs.catalog_root,
            "state": summary.state,
            "models": [],
            "num_videos": summary.num_videos,
            "num_planned": summary.num_planned,
            "planned_by_reason": list(summary.planned_by_reason.items()),
            "num_scored": summary.num_scored,
            "num_failed": summary.num_failed,
            "num_remaining": summary.num_remaining,
            "num_removed": 0,
            "started_at": self._started_at,
            "finished_at": datetime.now(UTC) if is_over else None,
            "seconds": summary.seconds if is_over else None,
            "startup_s": summary.startup_s,
            "versions": self._package_versions(),
            "message": summary.message,
        }
