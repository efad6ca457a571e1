"""The account of a run's work: which pairs are open, which tries failed, and when a pair is given up.

A pair is an item and one of the things that are wanted of it, by a bit. It is closed once, by a result or by a final
failure; what arrives for a closed pair, or twice, changes nothing. That is what makes a block that Ray ran twice
harmless. Items are called videos and results scores here, as in the table `runs`; for a run that makes labels they are
versions and labels. This module knows no result: whoever keeps the account says what one is.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvq_batch.engine.rows import Failure, Row
from kvq_batch.engine.stopping import Breaker

PERMANENT_IF_REPEATED = frozenset({"decoder_crashed", "ffmpeg_crashed"})
"""Errors that are a property of the bytes once they came a second time, with the item alone."""

WORKER_DIED = "worker_died"

NODE_PREEMPTED = "node_preempted"
"""What is missing after a round in which the cluster lost machines by somebody's order: no try."""

MAX_PREEMPTED_ATTEMPTS = 10
"""Rounds of a run that count as no try. More of them are no bad luck, and a run must end."""

DEFERRED_ERRORS = frozenset(
    {"missing", "forbidden", "credentials_expired", "no_credentials", "not_a_file", "content_changed"}
)
"""Errors that a second try in the same run meets again; the next run tries them. Held back until the round ends, so
that none of them is final when it was the first of many with one cause."""

Task = tuple[int, int]

Work = tuple[str, str]
"""A kind of work: the stage that does it, and the model, "" for what all models share."""


class WorkTracker(ABC):
    """Every pair of the run: open, or closed by exactly one result or final failure.

    `items` are the items' columns, among them `item` (their number, from 0), `attempt` and `model_mask` (a bit mask).
    `lost_stage` is the stage at which a pair whose worker died is said to have failed.
    """

    def __init__(self, items: pa.Table, max_attempts: int, breaker: Breaker, lost_stage: str) -> None:
        self._items = items
        self.max_attempts = max_attempts
        self._preempted_attempts_left = MAX_PREEMPTED_ATTEMPTS
        self._lost_stage = lost_stage
        self.breaker = breaker
        self._open: NDArray[np.int64] = items["model_mask"].to_numpy().copy()
        self.num_tasks = self.num_open
        self._has_failed = np.zeros(items.num_rows, bool)
        self._failed_this_round: set[Task] = set()
        self._deferred: list[tuple[Task, Failure]] = []
        self._failures: list[Row] = []
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
        """Take in what the pipeline yielded."""

    @abstractmethod
    def failure_row(self, task: Task, failure: Failure, is_final: bool) -> Row:
        """The row of `failures` for one failed try of the pair."""

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
        """Pairs without a result and without a final failure."""
        return int(np.bitwise_count(self._open).sum())

    def open_items(self, attempt: int) -> pa.Table:
        """The items with open pairs, asking only for those pairs; a new round starts with them."""
        self._failed_this_round.clear()
        rows = np.flatnonzero(self._open)
        table = self._items.take(pa.array(rows))
        columns = {"model_mask": self._open[rows], "attempt": np.full(len(rows), attempt, np.int32)}
        for name, values in columns.items():
            index = table.column_names.index(name)
            table = table.set_column(index, table.schema.field(index), pa.array(values))
        return table

    def open_models(self, item: int, model_mask: int) -> list[int]:
        """Those of the `model_mask` things of an item that are open and have not failed in this round."""
        return [b for b in _indices(int(model_mask & self._open[item])) if (item, b) not in self._failed_this_round]

    def close(self, task: Task) -> None:
        """The pair has its result."""
        self.num_scored += 1
        self._close(task)
        self.breaker.scored()

    def fail(self, task: Task, failure: Failure) -> None:
        """A try of the pair failed: it is tried again, or given up."""
        if failure.error in PERMANENT_IF_REPEATED and failure.attempt > 1:
            failure = replace(failure, permanent=True)
        self._failed_this_round.add(task)
        if failure.permanent or failure.attempt >= self.max_attempts:
            self._close_failed(task, failure)
        elif failure.error in DEFERRED_ERRORS:
            self._deferred.append((task, failure))
        else:
            self._failures.append(self.failure_row(task, failure, False))
            self.num_retried += 1
        # What goes with a node in the first round may be hundreds of videos, and says nothing of them: they are tried
        # alone next. Workers that die on video after video then are one cause again.
        went_with_a_node = failure.error == WORKER_DIED and failure.attempt == 1
        if failure.error != NODE_PREEMPTED and not went_with_a_node:
            self.breaker.failed(failure.stage, failure.error, self._items["video_id"][task[0]].as_py())

    def finish_attempt(self, attempt: int, was_preempted: bool = False) -> int:
        """At the end of a round: what was held back is final, and what never came back lost its worker.

        With `was_preempted` nodes were preempted meanwhile. Nobody can tell then which task went with them and which
        one killed its worker, so the round is no try of any that is missing, and there is one more of them.
        Returns how many pairs never came back.
        """
        deferred, self._deferred = self._deferred, []
        for task, failure in deferred:
            self._close_failed(task, failure)
        missing = [
            (int(item), model_index)
            for item in np.flatnonzero(self._open)
            for model_index in self.open_models(int(item), int(self._open[item]))
        ]
        error, told = WORKER_DIED, "the process that held it died"
        if missing and was_preempted and self._preempted_attempts_left:
            self._preempted_attempts_left -= 1
            self.max_attempts += 1
            error, told = NODE_PREEMPTED, "a machine of the cluster was taken back meanwhile"
        for task in missing:
            self.fail(task, Failure(attempt, self._lost_stage, error, told, False))
        return len(missing)

    def abort(self) -> None:
        """The run ends before its time: what was held back is written down, but settles nothing."""
        deferred, self._deferred = self._deferred, []
        self._failures += [self.failure_row(task, failure, False) for task, failure in deferred]

    def take_failures(self) -> list[Row]:
        """The rows of failures so far, handed over once."""
        rows, self._failures = self._failures, []
        return rows

    def _close_failed(self, task: Task, failure: Failure) -> None:
        self._failures.append(self.failure_row(task, failure, True))
        self.num_failed += 1
        self._has_failed[task[0]] = True
        self._close(task)

    def _close(self, task: Task) -> None:
        self._open[task[0]] &= ~(1 << task[1])


def failure_of(row: dict[str, Any]) -> Failure:
    """The failure that a row of the stream tells of."""
    told = (row[name] for name in ("stage", "error", "message", "permanent", "exit_signal"))
    return Failure(row["attempt"], *told)


def named_columns(items: pa.Table, names: Sequence[str]) -> dict[str, Any]:
    """Columns of the items that are asked for one row at a time."""
    return {name: items[name].combine_chunks() for name in names}


def _indices(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
