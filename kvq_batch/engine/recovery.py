"""Runs that ended without a word: their newest row in `runs` still says `running`, though nobody runs.

True only for who holds the lease, and of runs that this lease excludes: none of them is alive then. Runs of other
shards are left to who follows them. This module reads; what is said about them is the engine's.

What a run owes to one that died before it: the dead run's row is closed, and what must be made again is counted.

Nothing that was committed is touched. What a driver had in hand died with it; how much that was, nobody can know
afterwards, but the rhythm of commits and the room in the pipeline bound it.
"""

import json
import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kvq_batch.config.labels import RENDITIONS_PER_BLOCK
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.engine.pipeline import BLOCKS_IN_FLIGHT
from kvq_batch.tables.database import connect, reading
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer

_UNFINISHED = """
SELECT * FROM runs QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY commit_seq DESC) = 1 AND state = 'running'
ORDER BY commit_seq
"""

# A run's results carry a later commit_seq than its first row, so that older parts are left out by their bounds.
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
    """`row` is its newest row in `runs`; the rest is counted in the tables, times are those of its own workers."""

    row: dict[str, Any]
    num_scored: int
    num_failed: int
    first_scored_at: datetime | None
    last_scored_at: datetime | None

    @property
    def run_id(self) -> str:
        return str(self.row["run_id"])

    @property
    def num_open(self) -> int:
        """Pairs that it planned and left without a score or a final failure."""
        return int(self.row["num_planned"]) - self.num_scored - self.num_failed

    @property
    def tasks_per_s(self) -> float | None:
        """How fast it scored; None where too little was committed to tell."""
        if self.first_scored_at is None or self.last_scored_at is None or self.num_scored < 2:
            return None
        seconds = (self.last_scored_at - self.first_scored_at).total_seconds()
        return self.num_scored / seconds if seconds > 0 else None


def crashed_runs(tables: Tables, shard: Shard) -> list[CrashedRun]:
    """The runs that died, oldest first, of those that the holder of `shard` excludes.

    Raises: SpecError where the tables are out of reach.
    """
    with connect() as connection:
        connection.register("runs", tables.dataset("runs"))
        with reading(tables.uri):
            rows = connection.sql(_UNFINISHED).to_arrow_table().to_pylist(maps_as_pydicts="strict")
            rows = [row for row in rows if shard.excludes(_shard_of(row))]
            if not rows:
                return []
            connection.register("scores", tables.dataset("scores"))
            connection.register("failures", tables.dataset("failures"))
            connection.register("labels", tables.dataset("labels"))
            found = []
            for row in rows:
                key = {"seq": row["commit_seq"], "run_id": row["run_id"]}
                counts = connection.execute(_COMMITTED, key).fetchone()
                assert counts is not None
                found.append(CrashedRun(row, *counts))
            return found


def _shard_of(row: dict[str, Any]) -> Shard:
    """The shard that the run said it works off; runs that make labels, and those of earlier versions, say none."""
    text = json.loads(row["job_spec"]).get("select", {}).get("shard")
    return WHOLE if text is None else Shard.parse(text)


_COMMIT_S = 2.0
"""Allowed for a commit itself, during which results go on arriving."""


def close_crashed_runs(writer: Writer) -> list[str]:
    """Gives every run that died its last row, and returns a sentence about each. Only for who holds the lease.

    Raises: FatalError where the tables cannot be written; SpecError where they cannot be read.
    """
    told = []
    for dead in crashed_runs(writer.tables, writer.shard):
        at_most = max_repeated_results(dead)
        message = (
            f"its process died; {dead.num_scored + dead.num_failed} of {dead.row['num_planned']} results were "
            f"committed, at most {at_most} more were made and are made again"
        )
        row: dict[str, Any] = {name: value for name, value in dead.row.items() if name not in ("run_id", "commit_seq")}
        row |= {
            "state": "crashed",
            "num_scored": dead.num_scored,
            "num_failed": dead.num_failed,
            "num_remaining": dead.num_open,
            "max_repeated": at_most,
            "message": message,
        }
        writer.write_run(make_rows("runs", [row]), run_id=dead.run_id)
        told.append(f"run {dead.run_id}: {message}")
    return told


def max_repeated_results(dead: CrashedRun) -> int:
    """How many results a dead run may have made that were never committed, in pairs of video and model.

    What arrived since its last commit, at the rate it had, and what its scoring pools could hold. Without a rate, as
    when it died before its second result, everything that it left open.
    """
    rate = dead.tasks_per_s
    if rate is None:
        return dead.num_open
    spec = json.loads(dead.row["job_spec"])
    interval_s: float = spec["run"]["commit_every_s"]
    in_hand = math.ceil(rate * (interval_s + _COMMIT_S))
    # A run that made labels has no models; its workers hold blocks of versions.
    rooms: list[int] = [model["workers"]["max"] * model["batch_size"] for model in spec.get("models", ())]
    if "make" in spec:
        rooms = [spec["make"]["workers"]["max"] * RENDITIONS_PER_BLOCK]
    in_flight = sum(rooms) * BLOCKS_IN_FLIGHT
    return min(dead.num_open, in_hand + in_flight)
