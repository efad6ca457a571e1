"""Runs that ended without a word: their newest row in `runs` still says `running`, though nobody runs.

True only for who holds the lease, and of runs that this lease excludes: none of them is alive then. Runs of other
shards are left to who follows them. This module reads; what is said about them is the engine's.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.io.database import connect, reading
from kvq_batch.io.tables import Tables

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
class DeadRun:
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
    def pairs_per_s(self) -> float | None:
        """How fast it scored; None where too little was committed to tell."""
        if self.first_scored_at is None or self.last_scored_at is None or self.num_scored < 2:
            return None
        seconds = (self.last_scored_at - self.first_scored_at).total_seconds()
        return self.num_scored / seconds if seconds > 0 else None


def dead_runs(tables: Tables, shard: Shard) -> list[DeadRun]:
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
                found.append(DeadRun(row, *counts))
            return found


def _shard_of(row: dict[str, Any]) -> Shard:
    """The shard that the run said it works off; runs that make labels, and those of earlier versions, say none."""
    text = json.loads(row["job_spec"]).get("select", {}).get("shard")
    return WHOLE if text is None else Shard.parse(text)
