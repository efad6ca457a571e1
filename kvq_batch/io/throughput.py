"""What earlier runs in these tables measured: their lengths, and how long their videos took in each stage.

The newest runs are asked, until they have scored enough for a mean; a table of millions of scores is not read whole.
This module computes no mean and foretells nothing.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kvq_batch.io.database import connect, reading
from kvq_batch.io.schemas import COUNTER_BITS
from kvq_batch.io.tables import Tables

ENOUGH_SCORES = 100_000
MOST_RUNS = 20

_RUNS = """
SELECT run_id, min(commit_seq) AS first_seq, arg_max(job_spec, commit_seq) AS job_spec,
    arg_max(models, commit_seq) AS models, arg_max(num_scored, commit_seq) AS num_scored,
    arg_max(seconds, commit_seq) AS seconds, arg_max(startup_s, commit_seq) AS startup_s
FROM runs GROUP BY run_id HAVING arg_max(state, commit_seq) IN ('finished', 'stopped')
ORDER BY max(commit_seq) DESC
"""

# All models of a run share a decode: the one with the most videos tells of it.
_SCORES = """
SELECT run_id, model_name, count(*) AS num_videos, sum(num_clips)::BIGINT AS num_clips, sum(score_s) AS score_s,
    sum(decode_s) AS decode_s, sum(fetch_s) AS fetch_s
FROM scores SEMI JOIN asked USING (run_id) WHERE commit_seq >= $first_seq AND score_s IS NOT NULL
GROUP BY ALL
"""


@dataclass(frozen=True, slots=True)
class StageSums:
    """Sums over the videos that one run scored with one model; seconds are those of one worker."""

    num_videos: int
    num_clips: int
    fetch_s: float
    decode_s: float
    score_s: float


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One earlier run: its job as it was stored, its length, and the sums of its models by name.

    `alike` are those of its models that are wanted: by name, preprocessing and device.
    """

    job_spec: Mapping[str, Any]
    seconds: float
    startup_s: float
    by_model: Mapping[str, StageSums]
    alike: frozenset[str]


def past_runs(tables: Tables, models: Collection[tuple[str, str, str]]) -> list[RunFacts]:
    """The newest ended runs that scored with one of `models`, (name, fingerprint, device) each, the newest first.

    Raises: SpecError where the tables cannot be read.
    """
    wanted = set(models)
    with connect() as connection, reading(tables.uri):
        connection.register("runs", tables.dataset("runs"))
        rows = connection.sql(_RUNS).to_arrow_table().to_pylist()
        chosen: list[tuple[dict[str, Any], dict[str, Any], set[str]]] = []
        num_scored = 0
        for row in rows:
            if len(chosen) == MOST_RUNS or num_scored >= ENOUGH_SCORES:
                break
            spec = json.loads(row["job_spec"])
            devices = {model["name"]: model["device"] for model in spec.get("models", [])}
            used = {m["name"] for m in row["models"] if (m["name"], m["fingerprint"], devices.get(m["name"])) in wanted}
            if used and row["num_scored"] and row["seconds"]:
                chosen.append((row, spec, used))
                num_scored += row["num_scored"]
        if not chosen:
            return []
        connection.register("scores", tables.dataset("scores"))
        connection.execute("CREATE TABLE asked (run_id VARCHAR)")
        connection.executemany("INSERT INTO asked VALUES (?)", [[row["run_id"]] for row, _, _ in chosen])
        # Parts older than the oldest of these runs are left out by their bounds.
        first_seq = min(row["first_seq"] for row, _, _ in chosen) >> COUNTER_BITS << COUNTER_BITS
        found = connection.sql(_SCORES, params={"first_seq": first_seq}).to_arrow_table().to_pylist()
    sums: dict[str, dict[str, StageSums]] = {}
    for row in found:
        values = (row[name] or 0 for name in StageSums.__slots__)
        sums.setdefault(row["run_id"], {})[row["model_name"]] = StageSums(*values)
    return [
        RunFacts(spec, row["seconds"], row["startup_s"] or 0.0, sums.get(row["run_id"], {}), frozenset(used))
        for row, spec, used in chosen
    ]
