"""Compare query times over many small data files, after `tables compact`, and after `optimize` of delta-rs.

    python -m benchmarks.compaction                      20,000 videos in commits of 100
    python -m benchmarks.compaction --videos 100000 --commit 1000

Ids arrive in random order, like results. Each query runs five times in a new session, and the best time counts; times
are ratios of before to after. Maps have the size of a standard clip and are all different. Only the local disk is
measured. Prints Markdown tables.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from deltalake import DeltaTable

from benchmarks.commit_rate import SHAPE
from benchmarks.tables import print_table
from kvq_batch.domain.identity import ModelRef
from kvq_batch.domain.maps import quantise
from kvq_batch.planning.plan import make_plan
from kvq_batch.tables.check import check_tables
from kvq_batch.tables.compaction import TARGET_BYTES, compact
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Batch, Writer
from tests.support.results import make_catalog, make_model, make_run

MODEL = ModelRef("kvq", "kvq@1-0123456789ab", "f" * 64)
TRIALS = 5


def video(number: int) -> str:
    return f"shows/season-1/{number:08d}.mp4"


def fill(uri: str, num_videos: int, commit_size: int) -> None:
    tables = Tables.create(uri)
    writer = Writer(tables, "benchmark")
    generator = np.random.default_rng(0)
    order = generator.permutation(num_videos)
    writer.write_models(make_model(MODEL))
    catalog = make_catalog([video(number) for number in range(num_videos)])
    for name, value in (("catalog", "nightly"), ("in_catalog", True)):
        catalog = catalog.append_column(name, [[value] * num_videos])
    writer.write_catalog(catalog)
    for start in range(0, num_videos, commit_size):
        writer.commit(make_batch([int(number) for number in order[start : start + commit_size]], generator))
    counts = {"num_planned": num_videos, "num_scored": num_videos, "num_failed": 0, "num_remaining": 0}
    row = make_run([MODEL], state="finished").to_pylist(maps_as_pydicts="lossy")[0]
    row = {name: value for name, value in row.items() if name not in ("run_id", "commit_seq")}
    writer.write_run(make_rows("runs", [row | counts]))


def make_batch(numbers: list[int], generator: np.random.Generator) -> Batch:
    scores, clips, maps = [], [], []
    for number in numbers:
        key = {
            "video_id": video(number),
            "content_id": "etag:1",
            "model_id": MODEL.model_id,
            "fingerprint": MODEL.fingerprint,
        }
        texture = generator.normal(0.3, 0.1, SHAPE).astype(np.float32)
        weights = np.exp(generator.normal(0, 1.5, SHAPE))
        saliency = (weights / weights.mean(axis=(1, 2), keepdims=True)).astype(np.float32)
        score = float((texture * saliency).mean())
        scores.append(
            {**key, "uri": f"s3://bucket/{video(number)}", "model_name": MODEL.name, "raw_score": score, "num_clips": 1}
        )
        clips.append({**key, "clip_index": 0, "raw_score": score, "frame_indices": list(range(32))})
        maps.append({**key, "clip_index": 0, **quantise(texture, saliency).row()})
    return Batch(make_rows("maps", maps), make_rows("clips", clips), None, make_rows("scores", scores))


def questions(num_videos: int) -> dict[str, Callable[[str], Any]]:
    """Return {name: query}. Each opens the tables: reading logs and footers is part of the cost of a query."""

    def asked(sql: str) -> Callable[[str], Any]:
        def ask(uri: str) -> Any:
            with Session(Tables.open(uri)) as session:
                return session.sql(sql)

        return ask

    one, catalog = video(num_videos // 2), make_catalog([video(number) for number in range(num_videos)])
    return {
        "count of scores_latest": asked("SELECT count(*), avg(raw_score) FROM scores_latest"),
        "one video's score": asked(f"SELECT * FROM scores_latest WHERE video_id = '{one}'"),
        "one video's maps": asked(f"SELECT texture, saliency FROM maps WHERE video_id = '{one}'"),
        "texture by row, all maps": asked("SELECT model_id, sum(list_sum(texture)) FROM maps GROUP BY ALL"),
        "plan": lambda uri: make_plan(Tables.open(uri), catalog, "nightly", [MODEL]),
        "tables check": lambda uri: check_tables(Tables.open(uri)),
    }


def best_s(question: Callable[[str], Any], uri: str) -> float:
    times = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        question(uri)
        times.append(time.perf_counter() - start)
    return min(times)


def shape_of(uri: str, name: str) -> dict[str, Any]:
    files = Tables.open(uri).data_files(name)
    footers = [pq.read_metadata(Path(uri) / name / file.path) for file in files]
    ids = [pq.ParquetFile(Path(uri) / name / file.path).read(["video_id"]).column(0).to_pylist() for file in files]
    return {
        "files": len(files),
        "MiB": f"{sum(file.size_bytes for file in files) / (1 << 20):.1f}",
        "row groups": sum(footer.num_row_groups for footer in footers),
        "sorted by video": "yes" if all(part == sorted(part) for part in ids) else "no",
    }


def measure(folder: Path, num_videos: int, commit_size: int) -> None:
    ways: dict[str, Callable[[str, str], Any]] = {
        "optimize.compact": lambda uri, name: DeltaTable(f"{uri}/{name}").optimize.compact(target_size=TARGET_BYTES),
        "optimize.z_order(video_id)": lambda uri, name: DeltaTable(f"{uri}/{name}").optimize.z_order(
            ["video_id"], target_size=TARGET_BYTES
        ),
    }
    small = str(folder / "small")
    fill(small, num_videos, commit_size)
    asked = questions(num_videos)
    before = {name: best_s(question, small) for name, question in asked.items()}
    shapes = [{"maps": "as committed", "s": "", **shape_of(small, "maps")}]
    after: dict[str, dict[str, float]] = {}
    for way in ("tables compact", *ways):
        uri = str(folder / way)
        shutil.copytree(small, uri)
        start = time.perf_counter()
        if way == "tables compact":
            list(compact(Tables.open(uri)))
        else:
            for name in ("maps", "clips", "scores"):
                ways[way](uri, name)
        seconds = time.perf_counter() - start
        shapes.append({"maps": way, "s": f"{seconds:.1f}", **shape_of(uri, "maps")})
        after[way] = {name: best_s(question, uri) for name, question in asked.items()}
    print_table(shapes)
    print()
    print_table(
        [
            {"query": name, "as committed, s": f"{before[name]:.3f}"}
            | {f"faster by {way}": f"{before[name] / after[way][name]:.1f} x" for way in after}
            for name in asked
        ]
    )
    print(f"\npeak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--commit", type=int, default=100, help="Videos per commit.")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores; {arguments.videos} videos in commits of {arguments.commit}\n")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.videos, arguments.commit)


if __name__ == "__main__":
    main()
