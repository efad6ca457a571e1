"""What earlier runs in these tables measured of themselves, newest first, until they have scored enough for a mean.

This module computes no mean and foretells nothing.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kvq_batch.io.database import connect, reading
from kvq_batch.io.tables import Tables

ENOUGH_SCORES = 100_000
MOST_RUNS = 20

_RUNS = """
SELECT job_spec, models, num_scored, seconds, startup_s, decode_work_s, score_work_s, num_scored_by_model FROM runs
WHERE state IN ('finished', 'stopped') AND seconds > 0 AND num_scored > 0 AND decode_work_s IS NOT NULL
ORDER BY commit_seq DESC
"""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One earlier run: its job as it was stored, its length, and the work of its stages, in seconds of one worker.

    `alike` are those of its models that are wanted: by name, preprocessing and device.
    """

    job_spec: Mapping[str, Any]
    seconds: float
    startup_s: float
    decode_work_s: float
    score_work_s: Mapping[str, float]
    num_scored: Mapping[str, int]
    alike: frozenset[str]


def past_runs(tables: Tables, models: Collection[tuple[str, str, str]]) -> list[RunFacts]:
    """The newest ended runs that scored with one of `models`, (name, fingerprint, device) each, the newest first.

    Raises: SpecError where the tables cannot be read.
    """
    with connect() as connection, reading(tables.uri):
        connection.register("runs", tables.dataset("runs"))
        rows = connection.sql(_RUNS).to_arrow_table().to_pylist(maps_as_pydicts="strict")
    chosen: list[RunFacts] = []
    num_scored = 0
    for row in rows:
        if len(chosen) == MOST_RUNS or num_scored >= ENOUGH_SCORES:
            break
        spec = json.loads(row["job_spec"])
        devices = {model["name"]: model["device"] for model in spec["models"]}
        used = {model["name"]: (model["name"], model["fingerprint"], devices[model["name"]]) for model in row["models"]}
        alike = frozenset(name for name, identity in used.items() if identity in models)
        if not alike:
            continue
        chosen.append(
            RunFacts(
                spec,
                row["seconds"],
                row["startup_s"],
                row["decode_work_s"],
                row["score_work_s"],
                row["num_scored_by_model"],
                alike,
            )
        )
        num_scored += row["num_scored"]
    return chosen
