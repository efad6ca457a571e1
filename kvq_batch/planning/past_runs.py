"""Reads the timings of earlier runs from the tables: the newest runs, until they have enough scores for a mean."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvq_batch.planning.estimate import DECODE, PastRun, Throughput, WorkerPool, mean_throughput
from kvq_batch.planning.job_models import JobModels
from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import COUNTER_BITS

ENOUGH_SCORES = 100_000
MAX_RUNS = 20

_RUNS = """
SELECT run_id, commit_seq, job_spec, models, num_scored, seconds, startup_s, decode_work_s, score_work_s,
    num_scored_by_model
FROM runs
WHERE state IN ('finished', 'stopped') AND seconds > 0 AND num_scored > 0 AND decode_work_s IS NOT NULL
ORDER BY commit_seq DESC
"""

# Fits one line per model with a common slope, because models need different frames of a video, whose decoding time has
# a different offset. Models that were scored together share one decode; each of their rows has its time.
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

MIN_SPREAD = 0.05
"""Spread of sizes, as a share of their mean, below which the slope would be noise."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One earlier run as stored in `runs`: its job, its length, and the work of its stages in seconds of one worker.

    A worker fetches and decodes at the same time, so `decode_work_s` counts the longer of the two. `matching_models`
    are those of its models that match a requested one by name, fingerprint and device.
    """

    job_spec: Mapping[str, Any]
    seconds: float
    startup_s: float
    decode_work_s: float
    score_work_s: Mapping[str, float]
    num_scored: Mapping[str, int]
    matching_models: frozenset[str]
    run_id: str
    commit_seq: int


def measured_throughput(tables: Tables | None, models: JobModels, megapixels: float | None = None) -> Throughput:
    """Return the throughput of earlier runs with these models, optionally for videos of the mean size `megapixels`.

    Raises:
        SpecError: the tables cannot be read, or the earlier runs have decoded videos of one size only.
    """
    if tables is None:
        return Throughput()
    identities = [(model.ref.name, model.ref.fingerprint, model.section.device) for model in models.models]
    runs = read_past_runs(tables, identities)
    found = mean_throughput([_to_past_run(run) for run in runs])
    if megapixels is None or not found.num_runs:
        return found
    mean, slope_s = decode_time_by_size(tables, runs) or (None, None)
    return replace(found, megapixels=mean, decode_megapixel_s=slope_s).at_megapixels(megapixels)


def read_past_runs(tables: Tables, models: Collection[tuple[str, str, str]]) -> list[RunRecord]:
    """Return the newest ended runs with one of `models`, each a (name, fingerprint, device); the newest first.

    Raises:
        SpecError: the tables cannot be read.
    """
    with connect() as connection, translate_read_errors(tables.uri):
        connection.register("runs", tables.dataset("runs"))
        rows = connection.sql(_RUNS).to_arrow_table().to_pylist(maps_as_pydicts="strict")
    chosen: list[RunRecord] = []
    num_scored = 0
    for row in rows:
        if len(chosen) == MAX_RUNS or num_scored >= ENOUGH_SCORES:
            break
        spec = json.loads(row["job_spec"])
        devices = {model["name"]: model["device"] for model in spec["models"]}
        used = {model["name"]: (model["name"], model["fingerprint"], devices[model["name"]]) for model in row["models"]}
        matching_models = frozenset(name for name, identity in used.items() if identity in models)
        if not matching_models:
            continue
        chosen.append(
            RunRecord(
                spec,
                row["seconds"],
                row["startup_s"],
                row["decode_work_s"],
                row["score_work_s"],
                row["num_scored_by_model"],
                matching_models,
                row["run_id"],
                row["commit_seq"],
            )
        )
        num_scored += row["num_scored"]
    return chosen


def decode_time_by_size(tables: Tables, runs: Sequence[RunRecord]) -> tuple[float, float] | None:
    """Return the mean size of the videos of `runs` in megapixels (frames times area), and the decoding s per megapixel.

    None if all videos had the same size.

    Raises:
        SpecError: the tables cannot be read.
    """
    if not runs:
        return None
    last_seqs = [run.commit_seq for run in runs]
    values = {
        "run_ids": [run.run_id for run in runs],
        # From the first commit of the oldest run: data files of other runs are not opened.
        "low": min(last_seqs) >> COUNTER_BITS << COUNTER_BITS,
        "high": max(last_seqs),
    }
    with connect() as connection, translate_read_errors(tables.uri):
        connection.register("scores", tables.dataset("scores"))
        row = connection.execute(_SIZES, values).fetchone()
    megapixels, slope_s, spread = row or (None, None, None)
    if megapixels is None or slope_s is None or spread < MIN_SPREAD * megapixels:
        return None
    return float(megapixels), max(0.0, float(slope_s))


def _to_past_run(run: RunRecord) -> PastRun:
    sections: list[Mapping[str, Any]] = run.job_spec["models"]
    stages = [_stored_stage(DECODE, run.job_spec["decode"]["workers"], run.decode_work_s)]
    stages += [_stored_stage(model["name"], model["workers"], run.score_work_s[model["name"]]) for model in sections]
    num_videos = {name: num for name, num in run.num_scored.items() if name in run.matching_models}
    block_size = max(model["batch_size"] for model in sections)
    return PastRun(run.seconds, run.startup_s, tuple(stages), num_videos, max(run.num_scored.values()), block_size)


def _stored_stage(name: str, workers: Mapping[str, Any], work_s: float) -> WorkerPool:
    return WorkerPool(name, workers["min"], workers["max"], workers["num_cpus"], workers["num_gpus"], work_s)
