"""The books of one run: which (video, model) pairs are open, what came back, and what is ready to be committed.

A pair is closed once, by a score or by a final failure; what arrives for a closed pair, or twice, changes nothing.
That is what makes a block that Ray ran twice harmless. The ledger lives in the driver; it starts no work and writes
no table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvq_batch.engine.breaker import Breaker
from kvq_batch.engine.models import JobModel
from kvq_batch.engine.rows import ClipResult, Failure, Row, clip_row, failure_row, map_row, score_row
from kvq_batch.engine.stream import ITEMS

REPRODUCED_ALONE = frozenset({"decoder_crashed"})
"""Errors that are a property of the bytes once they came a second time, with the video alone."""

WORKER_DIED = "worker_died"

NOT_WORTH_ANOTHER_TRY = frozenset(
    {"missing", "forbidden", "credentials_expired", "no_credentials", "not_a_file", "content_changed"}
)
"""Errors that a second try in the same run meets again; the next run tries them. Held back until the round ends, so
that none of them is final when it was the first of many with one cause."""

Pair = tuple[int, int]


@dataclass(slots=True)
class Rows:
    """Finished rows, per table, as plain values."""

    maps: list[dict[str, Any]] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.scores or self.failures)


def items_of(pairs: pa.Table, models: Sequence[JobModel]) -> pa.Table:
    """The plan's pairs as one row a video, with the models that want it as a bit mask; in the order of the plan.

    Pairs of one video stand together there.
    """
    keys = ["video_id", "uri", "content_id", "size_bytes", "start_s", "end_s"]
    if not pairs.num_rows:
        return ITEMS.empty_table()
    names = pa.array([model.ref.name for model in models], pa.string())
    bits = 1 << pc.index_in(pairs["model_name"].cast(pa.string()), value_set=names).to_numpy().astype(np.int64)
    ids = pairs["video_id"]
    is_first = np.ones(pairs.num_rows, bool)
    is_first[1:] = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy()
    starts = np.flatnonzero(is_first)
    table = pairs.select(keys).take(pa.array(starts)).append_column("wanted", pa.array(np.add.reduceat(bits, starts)))
    table = table.append_column("item", pa.array(np.arange(table.num_rows)))
    table = table.append_column("attempt", pa.array(np.ones(table.num_rows, np.int32)))
    return table.select(ITEMS.names).cast(ITEMS)


def first_items(pairs: pa.Table, models: Sequence[JobModel], most: int | None) -> pa.Table:
    """As `items_of`, at most the first `most` videos."""
    if most is None:
        return items_of(pairs, models)
    # Pairs of one video stand together, so that these hold the first `most` of them.
    return items_of(pairs.slice(0, most * len(models)), models).slice(0, most)


class Ledger:
    """Every pair of the run: open, or closed by exactly one score or final failure."""

    def __init__(self, items: pa.Table, models: Sequence[JobModel], max_attempts: int, breaker: Breaker) -> None:
        self._items = items
        self._named = {name: items[name].combine_chunks() for name in ("video_id", "uri", "content_id")}
        self._models = models
        self._max_attempts = max_attempts
        self.breaker = breaker
        self._open: NDArray[np.int64] = items["wanted"].to_numpy().copy()
        self.num_pairs = self.num_open
        self._has_failed = np.zeros(items.num_rows, bool)
        self._failed_this_round: set[Pair] = set()
        self._clips: dict[Pair, dict[int, ClipResult]] = {}
        self._held: list[tuple[Pair, Failure]] = []
        self._rows = Rows()
        self.num_failed = 0
        self.num_retried = 0
        self.fetch_s = 0.0
        self.decode_s = 0.0
        self.score_s_by_model = [0.0] * len(models)
        self.num_scored_by_model = [0] * len(models)

    @property
    def num_scored(self) -> int:
        return sum(self.num_scored_by_model)

    @property
    def score_s(self) -> float:
        """Seconds that scoring workers spent on the videos that were scored."""
        return sum(self.score_s_by_model)

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
        """Pairs without a score and without a final failure."""
        return int(np.bitwise_count(self._open).sum())

    def open_items(self, attempt: int) -> pa.Table:
        """The videos with open pairs, asking only for those pairs; a new round starts with them."""
        self._failed_this_round.clear()
        self._clips.clear()
        rows = np.flatnonzero(self._open)
        table = self._items.take(pa.array(rows))
        columns = {"wanted": self._open[rows], "attempt": np.full(len(rows), attempt, np.int32)}
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), ITEMS.field(name), pa.array(values))
        return table

    def add(self, results: pa.Table) -> None:
        """Take in what the pipeline yielded."""
        for row in results.to_pylist():
            self.decode_s += row["decode_s"] or 0.0
            if row["clip_index"] == 0:
                self.fetch_s += row["fetch_s"]
            for bit in _bits(int(row["wanted"] & self._open[row["item"]])):
                self._add_pair(row, bit)

    def settle(self, attempt: int) -> int:
        """At the end of a round: what was held back is final, and what never came back lost its worker.

        Returns how many pairs never came back.
        """
        held, self._held = self._held, []
        for pair, failure in held:
            self._close_failed(pair, failure)
        missing = [
            (int(item), bit)
            for item in np.flatnonzero(self._open)
            for bit in _bits(int(self._open[item]))
            if (int(item), bit) not in self._failed_this_round
        ]
        for item, bit in missing:
            self._fail((item, bit), Failure(attempt, "decode", WORKER_DIED, "the process that held it died", False))
        return len(missing)

    def give_up(self) -> None:
        """The run ends before its time: what was held back is written down, but settles nothing."""
        held, self._held = self._held, []
        for pair, failure in held:
            self._append_failure(pair, failure, is_final=False)

    def take(self) -> Rows:
        """The rows that are ready, handed over once."""
        rows, self._rows = self._rows, Rows()
        return rows

    def _add_pair(self, row: dict[str, Any], bit: int) -> None:
        pair = (int(row["item"]), bit)
        if pair in self._failed_this_round:
            return
        if row["error"] is not None:
            told = (row[name] for name in ("stage", "error", "message", "permanent", "exit_signal"))
            self._fail(pair, Failure(row["attempt"], *told))
            return
        result = row[f"result_{bit}"]
        if result is None:
            return
        if result["error"] is not None:
            self._fail(pair, Failure(row["attempt"], "score", result["error"], result["message"], False))
            return
        clips = self._clips.setdefault(pair, {})
        clips[row["clip_index"]] = ClipResult(row, result, self._models[bit].request)
        if len(clips) == row["num_clips"]:
            self._score(pair, [clips[index] for index in sorted(clips)])

    def _score(self, pair: Pair, clips: Sequence[ClipResult]) -> None:
        item, model = self._item(pair[0]), self._models[pair[1]]
        self._rows.scores.append(score_row(item, model, clips))
        for clip in clips:
            self._rows.clips.append(clip_row(item, model, clip))
            if clip.result["maps"] is not None:
                self._rows.maps.append(map_row(item, model, clip))
        self.num_scored_by_model[pair[1]] += 1
        self.score_s_by_model[pair[1]] += sum(clip.result["score_s"] for clip in clips)
        self._close(pair)
        self.breaker.scored()

    def _fail(self, pair: Pair, failure: Failure) -> None:
        if failure.error in REPRODUCED_ALONE and failure.attempt > 1:
            failure = replace(failure, permanent=True)
        self._failed_this_round.add(pair)
        self._clips.pop(pair, None)
        if failure.permanent or failure.attempt >= self._max_attempts:
            self._close_failed(pair, failure)
        elif failure.error in NOT_WORTH_ANOTHER_TRY:
            self._held.append((pair, failure))
        else:
            self._append_failure(pair, failure, is_final=False)
            self.num_retried += 1
        # What goes with a node in the first round may be hundreds of videos, and says nothing of them: they are tried
        # alone next. Workers that die on video after video then are one cause again.
        if failure.error != WORKER_DIED or failure.attempt > 1:
            self.breaker.failed(failure.stage, failure.error)

    def _close_failed(self, pair: Pair, failure: Failure) -> None:
        self._append_failure(pair, failure, is_final=True)
        self.num_failed += 1
        self._has_failed[pair[0]] = True
        self._close(pair)

    def _append_failure(self, pair: Pair, failure: Failure, is_final: bool) -> None:
        row = failure_row(self._item(pair[0]), self._models[pair[1]], failure, is_final)
        self._rows.failures.append(row)

    def _close(self, pair: Pair) -> None:
        self._open[pair[0]] &= ~(1 << pair[1])
        self._clips.pop(pair, None)

    def _item(self, item: int) -> Row:
        return {name: column[item].as_py() for name, column in self._named.items()}


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
