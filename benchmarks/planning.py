"""How long a plan takes and how much memory, against tables of millions of scores: `python -m benchmarks.planning`.

Tables are made up, a commit every 250,000 scores: kvq-tiny of an older version and of this one, luma-sharpness, and
both for older bytes. Of every 25 videos of the catalog one is new, one has changed and one lacks the score of the newer
model; the plan is checked to find exactly these. Each plan is a process of its own, from reading the catalog (Parquet,
content ids in a column) to the estimate, `plan_job` whole. Nothing is decoded.
"""

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.tables import print_table
from kvq_batch.catalog.changes import catalog_changes
from kvq_batch.config.job import Job
from kvq_batch.config.load import make_job
from kvq_batch.domain.identity import ModelRef
from kvq_batch.planning.job_models import describe_models
from kvq_batch.planning.job_plan import plan_job
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import SCORES, make_rows
from kvq_batch.tables.writer import Batch, Writer

ROWS_A_COMMIT = 250_000
OLDER = "kvq-tiny@older-000000000000"

_VIDEO = "format('show-{:03}/{:09}.mp4', i % 1000, i)"
_BYTES = "'etag:' || md5(i::VARCHAR || {salt})"

# Generations of scores: the model, what salts the bytes, and the remainders of i by 25 that have none.
_GENERATIONS = (
    ("kvq-tiny", "''", (1, 2)),
    ("luma-sharpness", "''", (1,)),
    ("older", "''", (1,)),
    ("kvq-tiny", "'old'", (1, 2)),
    ("luma-sharpness", "'old'", (1,)),
)


def job_of(folder: Path, catalog: Path, name: str = "whole") -> Job:
    values = {
        "name": "benchmark",
        "tables": str(folder / "tables"),
        "catalog": {"source": str(catalog), "name": name},
        "models": [{"name": "kvq-tiny", "weights": "untrained"}, {"name": "luma-sharpness"}],
        "prices": {"core_hour": 0.04},
    }
    return make_job(values, "benchmark")


def make_catalog(path: Path, where: str, num_videos: int) -> int:
    """A catalog file of the videos that meet `where`; returns how many."""
    query = f"""
    SELECT {_VIDEO} AS video_id, 's3://my-bucket/masters/' || {_VIDEO} AS uri,
        CASE WHEN i % 25 = 0 THEN {_BYTES.format(salt="'new'")} ELSE {_BYTES.format(salt="''")} END AS content_id,
        50000000 + i AS size_bytes, ['ch', 'de', 'fr', 'it'][i % 4 + 1] AS country
    FROM range({num_videos}) t(i) WHERE {where} ORDER BY hash(i)
    """
    with (
        duckdb.connect() as connection,
        pq.ParquetWriter(path, connection.sql(query).to_arrow_reader(1).schema) as file,
    ):
        num = 0
        for batch in connection.sql(query).to_arrow_reader(100_000):
            file.write_batch(batch)
            num += batch.num_rows
    return num


def scores(refs: dict[str, ModelRef], num_videos: int, num_generations: int, order: str) -> Iterator[pa.Table]:
    """Rows of `scores`, a commit at a time; `order` is what a commit holds: a range of ids, or ids from everywhere."""
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = '4GB'")
        for name, salt, without in _GENERATIONS[:num_generations]:
            model = refs[name]
            query = f"""
            SELECT {_VIDEO} AS video_id, {_BYTES.format(salt=salt)} AS content_id, '{model.model_id}' AS model_id,
                '{model.name}' AS model_name, '{model.fingerprint}' AS fingerprint, 0.5::DOUBLE AS raw_score,
                1::INTEGER AS num_clips, 0.1::DOUBLE AS fetch_s, 2.0::DOUBLE AS decode_s, 0.5::DOUBLE AS score_s
            FROM range({num_videos}) t(i) WHERE i % 25 NOT IN {(*without, -1)} ORDER BY {order}
            """
            for batch in connection.sql(query).to_arrow_reader(ROWS_A_COMMIT):
                rows = pa.table(batch)
                for field in SCORES.row_schema():
                    if field.name not in rows.column_names:
                        rows = rows.append_column(field.name, pa.nulls(rows.num_rows, field.type))
                yield rows


def make_tables(folder: Path, num_videos: int, num_generations: int, order: str) -> int:
    """Tables with scores, the catalog of a first run, and that run's row; returns the number of scores."""
    catalog = folder / "catalog.parquet"
    make_catalog(catalog, "true", num_videos)
    job = job_of(folder, catalog)
    refs = {model.ref.name: model.ref for model in describe_models(job).models}
    refs["older"] = ModelRef("kvq-tiny", OLDER, refs["kvq-tiny"].fingerprint)
    tables = Tables.create(job.tables)
    writer = Writer(tables, "run-1")
    known = pq.read_table(catalog)
    for name in ("start_s", "end_s"):
        known = known.append_column(name, pa.nulls(known.num_rows, pa.float64()))
    writer.write_catalog(catalog_changes(tables, known, job.catalog_name))
    del known
    num_scores = 0
    for rows in scores(refs, num_videos, num_generations, order):
        writer.commit(Batch(scores=rows))
        num_scores += rows.num_rows
    run = {
        "job": job.name, "job_spec": job.model_dump_json(), "catalog": job.catalog_name, "catalog_root": str(catalog),
        "state": "finished", "num_scored": num_scores, "seconds": 3600.0 * 24, "startup_s": 20.0,
        "decode_work_s": 80000.0, "score_work_s": {"kvq-tiny": 40000.0, "luma-sharpness": 4000.0},
        "num_scored_by_model": {"kvq-tiny": num_videos, "luma-sharpness": num_videos},
        "models": [
            {"name": ref.name, "model_id": ref.model_id, "fingerprint": ref.fingerprint}
            for ref in (refs["kvq-tiny"], refs["luma-sharpness"])
        ],
    }  # fmt: skip
    writer.write_run(make_rows("runs", [run]))
    return num_scores


class _StepHandler(logging.Handler):
    """Appends the time of each message, by the clock and by the work of all cores."""

    def __init__(self, steps: list[tuple[float, float]]) -> None:
        super().__init__()
        self._steps = steps

    def emit(self, record: logging.LogRecord) -> None:
        self._steps.append((time.perf_counter(), time.process_time()))


def plan_once(folder: Path, catalog: Path, name: str) -> dict[str, Any]:
    """Seconds and peak memory of one plan in this process, which must do nothing else."""
    job = job_of(folder, catalog, name)
    # When each step began, by the clock and by the work of all cores.
    steps: list[tuple[float, float]] = []
    handler = _StepHandler(steps)
    logger = logging.getLogger("kvq_batch.planning")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    planned = plan_job(job)
    seconds, core_seconds = time.perf_counter() - steps[0][0], time.process_time() - steps[-1][1]
    num, counts = planned.catalog.num_rows, planned.plan.by_reason
    found = {reason: count for reason, count in counts.items() if count}
    return {
        "catalog": num,
        "seconds": round(seconds, 1),
        "core-seconds": round(time.process_time(), 1),
        "of these for the tables": round(core_seconds, 1),
        "peak MiB": peak_mib(),
        "found": found,
    }


def peak_mib() -> int:
    """Most memory that this process has held; getrusage tells that of the process it was forked from, if it is more."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def measured(folder: Path, catalog: Path, name: str = "whole") -> dict[str, Any]:
    """`plan_once` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.planning", "--plan", str(folder), str(catalog), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def compare(folder: Path, num_videos: int, num_generations: int) -> Iterator[dict[str, Any]]:
    """Plans of the whole catalog and of small ones, against scores in the order of nights and sorted by video."""
    layouts = {"nights": "hash(i)", "sorted by video": "video_id"}
    for layout, order in layouts.items():
        index = folder / layout.replace(" ", "-")
        index.mkdir()
        num_scores = make_tables(index, num_videos, num_generations, order)
        catalogs = {
            "all": "true",
            "ten shows": "i % 1000 BETWEEN 7 AND 16",
            "everywhere": f"hash(i) % {max(1, num_videos // 10_000)} = 0",
        }
        for name, where in catalogs.items():
            if name == "all" and layout != "nights":
                continue
            # Written over: a catalog by another name is another root, and would be refused.
            catalog = index / "catalog.parquet"
            num = make_catalog(catalog, where, num_videos)
            row = measured(index, catalog, "whole" if name == "all" else "part")
            found = row.pop("found")
            assert row["catalog"] == num
            if name == "all":
                fresh, changed, newer = (len(range(k, num_videos, 25)) for k in (1, 0, 2))
                assert found == {"new": 2 * fresh, "content changed": 2 * changed, "model changed": newer}, found
            yield {"parts hold": layout, "scores": num_scores, "videos of": name, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="videos of the catalog")
    parser.add_argument("--generations", type=int, default=5, help="scores a video, 1 to 5")
    parser.add_argument("--folder", type=Path, help="where the tables are made for the time being")
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--plan", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan:
        folder, catalog, name = arguments.plan
        print(json.dumps(plan_once(Path(folder), Path(catalog), name)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print_table(list(compare(Path(folder), arguments.rows, arguments.generations)), arguments.output)


if __name__ == "__main__":
    main()
