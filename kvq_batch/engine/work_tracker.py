"""Tracks the tasks of a run: which are open, which attempts failed, and when a task is closed.

A task is one item of the run and one model, which is a bit of the item's `model_mask`. It is closed exactly once, by a
result or by a final failure. Results that arrive twice, or for a closed task, are ignored, so a block that Ray runs
twice does no harm.

Names follow the table `runs`: items are called videos and results are called scores. In a label run they are renditions
and labels. The subclasses `ScoreTracker` and `LabelTracker` know what a result is.

An `Observer` follows the tracker: progress bars, event logs, metrics, tests. A run calls it from the driver's main
thread only, so observers need no locks. An observer must not change the tracker. Messages are not part of the
interface: they go to `logging`, below the logger "kvq_batch".
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvq_batch.engine.rows import Failure, Row
from kvq_batch.engine.stopping import CircuitBreaker
from kvq_batch.engine.stream import FAILURE_COLUMNS
from kvq_batch.storage.redact import DataMask
from kvq_batch.tables.row_types import ClipRow, FailureRow, FeatureRow, MapRow

PERMANENT_IF_REPEATED = frozenset({"decoder_crashed", "ffmpeg_crashed"})
"""Errors that are permanent if they happen again when the item runs alone."""

WORKER_DIED = "worker_died"
"""Error of a task whose result never came back."""

NODE_PREEMPTED = "node_preempted"
"""Error of a task whose result never came back while nodes were preempted. It does not count as an attempt."""

MAX_PREEMPTED_ATTEMPTS = 10
"""Attempts that do not count because nodes were preempted. The limit makes every run end."""

BAD_ADDRESS = "bad_address"
"""Error of an address that cannot be opened, such as one with an unknown scheme. Many of them do not mean an outage."""

DEFERRED_ERRORS = frozenset(
    {"missing", "forbidden", "credentials_expired", "no_credentials", "not_a_file", "content_changed", BAD_ADDRESS}
)
"""Errors that a retry in the same run would only repeat; the next run retries them. They become final at the end of the
attempt, so that the circuit breaker can still stop the run before the first of many is final."""

Task = tuple[int, int]
"""Item number and model index."""

Work = tuple[str, str]
"""Stage and model name; the name is "" for work that all models share."""


@dataclass(slots=True)
class FinishedRows:
    """Rows that are ready to be committed. `scores` are rows of `scores` (ScoreRow), or of `labels` (LabelRow)."""

    maps: list[MapRow] = field(default_factory=list)
    clips: list[ClipRow] = field(default_factory=list)
    features: list[FeatureRow] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.scores or self.failures)


class WorkTracker(ABC):
    """State of every task of the run: open, or closed by one result or one final failure.

    `items` has the columns `item` (0, 1, ...), `attempt`, `model_mask` (one bit per model) and those of the item.
    `lost_stage` is the stage that failures of lost tasks name.
    """

    def __init__(self, items: pa.Table, max_attempts: int, breaker: CircuitBreaker, lost_stage: str) -> None:
        self._items = items
        self._columns = {name: items[name].combine_chunks() for name in items.column_names}
        self.max_attempts = max_attempts
        self._mask = DataMask.of_this_process()
        self._preempted_attempts_left = MAX_PREEMPTED_ATTEMPTS
        self._lost_stage = lost_stage
        self.breaker = breaker
        self._open: NDArray[np.int64] = items["model_mask"].to_numpy().copy()
        self.num_tasks = self.num_open
        self._has_failed = np.zeros(items.num_rows, bool)
        self._failed_this_attempt: set[Task] = set()
        self._deferred: list[tuple[Task, Failure]] = []
        self._rows = FinishedRows()
        self.num_scored = 0
        self.num_failed = 0
        self.num_retried = 0
        self.fetched_bytes = 0

    @property
    @abstractmethod
    def work_s(self) -> Mapping[Work, float]:
        """Seconds of work that came back, by stage and model."""

    @property
    @abstractmethod
    def busy_s(self) -> Mapping[str, float]:
        """Seconds of work that came back, by stage."""

    @abstractmethod
    def add(self, results: pa.Table) -> None:
        """Add a table of results from the pipeline."""

    @abstractmethod
    def failure_row(self, task: Task, failure: Failure, is_final: bool) -> FailureRow:
        """Return the row of `failures` for one failed attempt of the task."""

    @property
    def num_videos(self) -> int:
        return int(self._items.num_rows)

    @property
    def num_videos_done(self) -> int:
        return int((self._open == 0).sum())

    @property
    def num_videos_failed(self) -> int:
        return int(self._has_failed.sum())

    @property
    def num_open(self) -> int:
        """Number of tasks without a result and without a final failure."""
        return int(np.bitwise_count(self._open).sum())

    def item_values(self, item: int, names: Sequence[str]) -> Row:
        """Return the values of one item in the columns `names`."""
        return {name: self._columns[name][item].as_py() for name in names}

    def open_items(self, attempt: int) -> pa.Table:
        """Start an attempt: return the items with open tasks, with only those tasks in `model_mask`."""
        self._failed_this_attempt.clear()
        rows = np.flatnonzero(self._open)
        table = self._items.take(pa.array(rows))
        columns = {"model_mask": self._open[rows], "attempt": np.full(len(rows), attempt, np.int32)}
        for name, values in columns.items():
            index = table.column_names.index(name)
            table = table.set_column(index, table.schema.field(index), pa.array(values))
        return table

    def open_models(self, item: int, model_mask: int) -> list[int]:
        """Return the indices of `model_mask` whose tasks are open and did not fail in this attempt."""
        open_mask = int(model_mask & self._open[item])
        return [index for index in _bit_indices(open_mask) if (item, index) not in self._failed_this_attempt]

    def close(self, task: Task) -> None:
        """Close the task: it has its result."""
        self.num_scored += 1
        self._close(task)
        self.breaker.record_success()

    def fail(self, task: Task, failure: Failure) -> None:
        """Record a failed attempt; close the task if the failure is permanent or the attempts are used up."""
        # Observers log the message before the writer masks it.
        failure = replace(failure, message=self._mask.message(failure.message))
        if failure.error in PERMANENT_IF_REPEATED and failure.attempt > 1:
            failure = replace(failure, permanent=True)
        self._failed_this_attempt.add(task)
        if failure.permanent or failure.attempt >= self.max_attempts:
            self._close_failed(task, failure)
        elif failure.error in DEFERRED_ERRORS:
            self._deferred.append((task, failure))
        else:
            self._rows.failures.append(self.failure_row(task, failure, False))
            self.num_retried += 1
        # A lost node can take hundreds of videos with it in the first attempt, which says nothing about them: they are
        # retried alone. If workers then still die on one video after the other, that is one cause again.
        is_lost_in_first_attempt = failure.error == WORKER_DIED and failure.attempt == 1
        if failure.error not in (NODE_PREEMPTED, BAD_ADDRESS) and not is_lost_in_first_attempt:
            self.breaker.record_failure(failure.stage, failure.error, self._columns["video_id"][task[0]].as_py())

    def finish_attempt(self, attempt: int, was_preempted: bool = False) -> int:
        """End an attempt: make deferred failures final, and record tasks that never came back as lost.

        `was_preempted` says that nodes were preempted during the attempt. It is then unknown which tasks went with a
        node and which ones killed their worker, so the attempt does not count for lost tasks, and the run gets
        one more. Returns the number of lost tasks.
        """
        deferred, self._deferred = self._deferred, []
        for task, failure in deferred:
            self._close_failed(task, failure)
        lost = [
            (int(item), model_index)
            for item in np.flatnonzero(self._open)
            for model_index in self.open_models(int(item), int(self._open[item]))
        ]
        error, message = WORKER_DIED, "the worker process died, or was killed after limits.worker_timeout_s"
        if lost and was_preempted and self._preempted_attempts_left:
            self._preempted_attempts_left -= 1
            self.max_attempts += 1
            error, message = NODE_PREEMPTED, "a node of the cluster was preempted during the attempt"
        for task in lost:
            self.fail(task, Failure(attempt, self._lost_stage, error, message, False))
        return len(lost)

    def abort(self) -> None:
        """End the run early: record deferred failures, but not as final."""
        deferred, self._deferred = self._deferred, []
        self._rows.failures += [self.failure_row(task, failure, False) for task, failure in deferred]

    def take(self) -> FinishedRows:
        """Return the finished rows and forget them."""
        rows, self._rows = self._rows, FinishedRows()
        return rows

    def _close_failed(self, task: Task, failure: Failure) -> None:
        self._rows.failures.append(self.failure_row(task, failure, True))
        self.num_failed += 1
        self._has_failed[task[0]] = True
        self._close(task)

    def _close(self, task: Task) -> None:
        self._open[task[0]] &= ~(1 << task[1])


def failure_of_row(row: dict[str, Any]) -> Failure:
    """Return the failure that a row of a stream describes."""
    return Failure(row["attempt"], *(row[name] for name in FAILURE_COLUMNS))


def _bit_indices(mask: int) -> Iterator[int]:
    """Yield the indices of the bits that are set, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


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
