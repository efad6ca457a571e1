"""What a run owes to one that died before it: the dead run's row is closed, and what must be made again is counted.

Nothing that was committed is touched. What a driver had in hand died with it; how much that was, nobody can know
afterwards, but the rhythm of commits and the room in the pipeline bound it.
"""

import json
import math
from typing import Any

from kvq_batch.engine.label_stream import VERSIONS_PER_BLOCK
from kvq_batch.engine.pipeline import BLOCKS_IN_FLIGHT
from kvq_batch.io.dead_runs import DeadRun, dead_runs
from kvq_batch.io.schemas import make_rows
from kvq_batch.io.writer import Writer

_COMMIT_S = 2.0
"""Allowed for a commit itself, during which results go on arriving."""


def close_dead_runs(writer: Writer) -> list[str]:
    """Gives every run that died its last row, and returns a sentence about each. Only for who holds the lease.

    Raises: FatalError where the tables cannot be written; SpecError where they cannot be read.
    """
    told = []
    for dead in dead_runs(writer.tables, writer.shard):
        at_most = most_repeated(dead)
        message = (
            f"its process died; {dead.num_scored + dead.num_failed} of {dead.row['num_planned']} results were "
            f"committed, at most {at_most} more were made and are made again"
        )
        row: dict[str, Any] = {name: value for name, value in dead.row.items() if name not in ("run_id", "commit_seq")}
        row |= {
            "state": "died",
            "num_scored": dead.num_scored,
            "num_failed": dead.num_failed,
            "num_not_reached": dead.num_open,
            "num_repeated_at_most": at_most,
            "message": message,
        }
        writer.write_run(make_rows("runs", [row]), run_id=dead.run_id)
        told.append(f"run {dead.run_id}: {message}")
    return told


def most_repeated(dead: DeadRun) -> int:
    """How many results a dead run may have made that were never committed, in pairs of video and model.

    What arrived since its last commit, at the rate it had, and what its scoring pools could hold. Without a rate, as
    when it died before its second result, everything that it left open.
    """
    rate = dead.pairs_per_s
    if rate is None:
        return dead.num_open
    spec = json.loads(dead.row["job_spec"])
    interval_s: float = spec["run"]["commit_every_s"]
    in_hand = math.ceil(rate * (interval_s + _COMMIT_S))
    # A run that made labels has no models; its workers hold blocks of versions.
    rooms: list[int] = [model["workers"]["max"] * model["batch_size"] for model in spec.get("models", ())]
    if "make" in spec:
        rooms = [spec["make"]["workers"]["max"] * VERSIONS_PER_BLOCK]
    in_flight = sum(rooms) * BLOCKS_IN_FLIGHT
    return min(dead.num_open, in_hand + in_flight)
