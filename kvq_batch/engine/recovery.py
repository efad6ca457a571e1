"""Recovery after crashed runs: find them, close their rows in `runs`, and count what must be computed again.

A run crashed if its newest row in `runs` still says `running` although its driver is dead. Only the holder of the lease
can know that, and only for runs that this lease excludes; crashed runs of other shards are left to the runs of those
shards. Committed results are not touched. Results that a driver had received but not committed are lost with it. Their
number is unknown afterwards, but the commit interval and the capacity of the pipeline bound it.
"""

import json
import logging
import math
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from kvq_batch.config.labels import RENDITIONS_PER_BLOCK
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.engine.executor.base import BLOCKS_IN_FLIGHT
from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.row_types import RunRow, StoredRunRow
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer

_LOG = logging.getLogger(__name__)

_COMMIT_S = 2.0
"""Time allowed for a commit, during which results keep arriving."""

_UNFINISHED = """
SELECT * FROM runs QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY commit_seq DESC) = 1 AND state = 'running'
ORDER BY commit_seq
"""

# The results of a run have a later commit_seq than its first row, so the bounds of older data files exclude them.
_COMMITTED = """
SELECT
    (SELECT count(*) FROM scores WHERE commit_seq > $seq AND run_id = $run_id)
        + (SELECT count(*) FROM labels WHERE commit_seq > $seq AND run_id = $run_id),
    (SELECT count(DISTINCT (video_id, model_id)) FROM failures WHERE commit_seq > $seq AND run_id = $run_id AND final),
    coalesce((SELECT min(scored_at) FROM scores WHERE commit_seq > $seq AND run_id = $run_id),
        (SELECT min(labelled_at) FROM labels WHERE commit_seq > $seq AND run_id = $run_id)),
    coalesce((SELECT max(scored_at) FROM scores WHERE commit_seq > $seq AND run_id = $run_id),
        (SELECT max(labelled_at) FROM labels WHERE commit_seq > $seq AND run_id = $run_id))
"""


@dataclass(frozen=True, slots=True)
class CrashedRun:
    """A crashed run: its newest row in `runs`, and what the tables hold of it. Times are those of its workers."""

    row: StoredRunRow
    num_scored: int
    num_failed: int
    first_scored_at: datetime | None
    last_scored_at: datetime | None

    @property
    def run_id(self) -> str:
        return str(self.row["run_id"])

    @property
    def num_open(self) -> int:
        """Number of planned tasks without a committed score or final failure."""
        return int(self.row["num_planned"]) - self.num_scored - self.num_failed

    @property
    def tasks_per_s(self) -> float | None:
        """Rate of its results; None if fewer than two were committed."""
        if self.first_scored_at is None or self.last_scored_at is None or self.num_scored < 2:
            return None
        seconds = (self.last_scored_at - self.first_scored_at).total_seconds()
        return self.num_scored / seconds if seconds > 0 else None

    @property
    def max_repeated(self) -> int:
        """Upper bound of the results that were computed but never committed.

        It is what arrived since the last commit, at the run's rate, plus the capacity of its scoring pools. Without a
        rate, as after a crash before the second result, it is everything that was open.
        """
        rate = self.tasks_per_s
        if rate is None:
            return self.num_open
        spec = json.loads(self.row["job_spec"])
        interval_s: float = spec["run"]["commit_every_s"]
        num_uncommitted = math.ceil(rate * (interval_s + _COMMIT_S))
        # A label run has no models; its workers hold blocks of renditions.
        if "make" in spec:
            capacity: int = spec["make"]["workers"]["max"] * RENDITIONS_PER_BLOCK
        else:
            capacity = sum(model["workers"]["max"] * model["batch_size"] for model in spec.get("models", ()))
        return min(self.num_open, num_uncommitted + capacity * BLOCKS_IN_FLIGHT)


def close_crashed_runs(writer: Writer) -> list[CrashedRun]:
    """Close the row of every crashed run as `crashed`, log a warning for each, and return them.

    Call this only while holding the lease.

    Raises:
        FatalError: the tables cannot be written.
        SpecError: the tables cannot be read.
    """
    crashed = find_crashed_runs(writer.tables, writer.shard)
    for run in crashed:
        message = (
            f"its process died; {run.num_scored + run.num_failed} of {run.row['num_planned']} results were committed, "
            f"at most {run.max_repeated} more were computed and are computed again"
        )
        # The writer adds these two.
        values = {name: value for name, value in run.row.items() if name not in ("run_id", "commit_seq")}
        row: RunRow = {
            **cast(RunRow, values),
            "state": "crashed",
            "num_scored": run.num_scored,
            "num_failed": run.num_failed,
            "num_remaining": run.num_open,
            "max_repeated": run.max_repeated,
            "message": message,
        }
        writer.write_run(make_rows("runs", [row]), run_id=run.run_id)
        _LOG.warning("run %s crashed: %s", run.run_id, message)
    return crashed


def find_crashed_runs(tables: Tables, shard: Shard) -> list[CrashedRun]:
    """Return the crashed runs that the holder of `shard` excludes, oldest first.

    Raises:
        SpecError: the tables cannot be read.
    """
    with connect() as connection:
        connection.register("runs", tables.dataset("runs"))
        with translate_read_errors(tables.uri):
            unfinished = connection.sql(_UNFINISHED).to_arrow_table().to_pylist(maps_as_pydicts="strict")
            rows: list[StoredRunRow] = [row for row in unfinished if shard.excludes(_shard_of(row))]
            if not rows:
                return []
            connection.register("scores", tables.dataset("scores"))
            connection.register("failures", tables.dataset("failures"))
            connection.register("labels", tables.dataset("labels"))
            crashed = []
            for row in rows:
                key = {"seq": row["commit_seq"], "run_id": row["run_id"]}
                counts = connection.execute(_COMMITTED, key).fetchone()
                assert counts is not None
                crashed.append(CrashedRun(row, *counts))
            return crashed


def _shard_of(row: StoredRunRow) -> Shard:
    """Return the shard of a run; label runs, and runs of earlier versions, name none."""
    text = json.loads(row["job_spec"]).get("select", {}).get("shard")
    return WHOLE if text is None else Shard.parse(text)
