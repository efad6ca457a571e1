"""What earlier runs in these tables measured of themselves, newest first, until they have scored enough for a mean.

This module foretells nothing; the only mean that it takes is that of its videos' sizes, of which there are too many to
hand over.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvq_batch.tables.database import connect, reading
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import COUNTER_BITS

ENOUGH_SCORES = 100_000
MOST_RUNS = 20

_RUNS = """
SELECT run_id, commit_seq, job_spec, models, num_scored, seconds, startup_s, decode_work_s, score_work_s,
    num_scored_by_model
FROM runs
WHERE state IN ('finished', 'stopped') AND seconds > 0 AND num_scored > 0 AND decode_work_s IS NOT NULL
ORDER BY commit_seq DESC
"""

# A line for each model, all of one slope: models want different frames of a video, of which decoding takes its time.
# Those that were scored together name their decode once each, with one and the same time.
_SIZES = """
WITH sizes AS (
    SELECT run_id, video_id, model_id, decode_s, width_px * height_px / 1e6 * num_frames AS megapixels FROM scores
    WHERE list_contains($run_ids, run_id) AND commit_seq BETWEEN $low AND $high
),
apart AS (
    SELECT megapixels, decode_s - avg(decode_s) OVER of_model AS more_s,
        megapixels - avg(megapixels) OVER of_model AS more_megapixels
    FROM sizes WINDOW of_model AS (PARTITION BY model_id)
)
SELECT (SELECT avg(megapixels) FROM (SELECT DISTINCT run_id, video_id, megapixels FROM sizes)),
    regr_slope(more_s, more_megapixels), stddev_pop(more_megapixels)
FROM apart
"""

LEAST_SPREAD = 0.05
"""Spread of sizes, as a share of their mean, below which a slope would be made of chance."""


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
    run_id: str
    commit_seq: int


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
                row["run_id"],
                row["commit_seq"],
            )
        )
        num_scored += row["num_scored"]
    return chosen


def decode_by_size(tables: Tables, runs: Sequence[RunFacts]) -> tuple[float, float] | None:
    """Mean megapixels (frames times their area) of the videos that `runs` scored, and seconds to decode one more.

    None where they were of one size. Raises: SpecError where the tables cannot be read.
    """
    if not runs:
        return None
    last = [run.commit_seq for run in runs]
    values = {
        "run_ids": [run.run_id for run in runs],
        # From the first commit of the oldest of them on: parts of other times are not opened.
        "low": min(last) >> COUNTER_BITS << COUNTER_BITS,
        "high": max(last),
    }
    with connect() as connection, reading(tables.uri):
        connection.register("scores", tables.dataset("scores"))
        found = connection.execute(_SIZES, values).fetchone()
    megapixels, slope_s, spread = found or (None, None, None)
    if megapixels is None or slope_s is None or spread < LEAST_SPREAD * megapixels:
        return None
    return float(megapixels), max(0.0, float(slope_s))
