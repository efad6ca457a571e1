"""Time and memory of a plan over tables with millions of scores: `python -m benchmarks.planning`.

The tables are synthetic, with a commit every 250,000 scores: kvq-tiny in an older and the current model version,
luma-sharpness, and both for older content. Of every 25 videos of the catalog, one is new, one has changed and one has
no score of the newer model; the benchmark checks that the plan finds exactly these. Each plan runs in its own process,
from reading the catalog (Parquet, with content ids) to the estimate, which is all of `plan_job`. No video is
decoded.
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
from kvq_batch.catalog.stored_rows import catalog_changes
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

# Generations of scores: the model, the salt of the content ids, and the values of i % 25 without a score.
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
    """Write a catalog of the videos that match `where` and return their number."""
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
    """Yield rows of `scores` per commit. `order` decides whether a commit has a range of ids or random ids."""
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
    """Create tables with scores, the catalog of a first run and its row; return the number of scores."""
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
    """Appends wall-clock time and CPU time of each log message."""

    def __init__(self, steps: list[tuple[float, float]]) -> None:
        super().__init__()
        self._steps = steps

    def emit(self, record: logging.LogRecord) -> None:
        self._steps.append((time.perf_counter(), time.process_time()))


def plan_once(folder: Path, catalog: Path, name: str) -> dict[str, Any]:
    """Return seconds and peak memory of one plan in this process, which must do nothing else."""
    job = job_of(folder, catalog, name)
    # Start of each step: wall-clock time and CPU time.
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
    """Return the peak memory of this process; getrusage also includes that of its parent before the fork."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def measured(folder: Path, catalog: Path, name: str = "whole") -> dict[str, Any]:
    """Run `plan_once` in its own process."""
    command = [sys.executable, "-m", "benchmarks.planning", "--plan", str(folder), str(catalog), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def compare(folder: Path, num_videos: int, num_generations: int) -> Iterator[dict[str, Any]]:
    """Plan the whole catalog and small ones, over scores in the order of nightly runs and sorted by video."""
    layouts = {"nights": "hash(i)", "sorted by video": "video_id"}
    for layout, order in layouts.items():
        tables_folder = folder / layout.replace(" ", "-")
        tables_folder.mkdir()
        num_scores = make_tables(tables_folder, num_videos, num_generations, order)
        catalogs = {
            "all": "true",
            "ten shows": "i % 1000 BETWEEN 7 AND 16",
            "everywhere": f"hash(i) % {max(1, num_videos // 10_000)} = 0",
        }
        for name, where in catalogs.items():
            if name == "all" and layout != "nights":
                continue
            # Overwritten: another file name would be another catalog root, which is rejected.
            catalog = tables_folder / "catalog.parquet"
            num = make_catalog(catalog, where, num_videos)
            row = measured(tables_folder, catalog, "whole" if name == "all" else "part")
            found = row.pop("found")
            assert row["catalog"] == num
            if name == "all":
                fresh, changed, newer = (len(range(k, num_videos, 25)) for k in (1, 0, 2))
                assert found == {"new": 2 * fresh, "content changed": 2 * changed, "model changed": newer}, found
            yield {"order of scores": layout, "scores": num_scores, "videos of": name, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="videos of the catalog")
    parser.add_argument("--generations", type=int, default=5, help="scores per video, 1 to 5")
    parser.add_argument("--folder", type=Path, help="folder for the temporary tables")
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
