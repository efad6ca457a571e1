"""Time and memory of each question of `kvq-batch analyze`, over synthetic tables: `python -m benchmarks.questions`.

Each video has one clip of four time slots with maps of 7 x 7 cells, as KVQ-Lite makes them. The ids of a commit are
random, as those of nightly runs are, and a tenth of the videos have an older score, too. Each question runs in its own
process on two threads, from opening the tables to the answer.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from benchmarks.planning import peak_mib
from benchmarks.tables import print_table
from kvq_batch.analysis.questions import QUESTIONS, ask
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.domain.identity import ModelRef
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.sandbox import QueryLimits
from kvq_batch.tables.schemas import find_schema, make_rows
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Batch, Writer

MODEL = ModelRef("kvq-lite", "kvq-lite@5-c0e8ed9d6625", "f" * 64)
SLOTS, ROWS, COLS = 4, 7, 7
VIDEOS_A_COMMIT = 50_000
BUDGET_S = 10.0

_CODECS = ("h264", "hevc", "vp9", "av1")
_COUNTRIES = ("CH", "DE", "FR", "IT")


def make_tables(uri: str, num_videos: int, num_runs: int = 4) -> int:
    """Create tables with scores of `num_videos` videos; return the number of bytes."""
    tables = Tables.create(uri)
    generator = np.random.default_rng(0)
    order = generator.permutation(num_videos)
    writer = Writer(tables, "run-0")
    writer.write_catalog(catalog_changes(tables, _catalog(num_videos), "nightly"))
    card = {
        "model_id": MODEL.model_id, "model_name": MODEL.name, "version": "3", "origin": "trained", "digest": "0" * 64,
        "calibration": "validation", "b1": 95.0, "b2": 5.0, "b3": 0.35, "b4": 0.2, "is_default": True,
    }  # fmt: skip
    writer.write_models(make_rows("models", [card]))
    older = order[: num_videos // 10]
    for rows in _blocks(older):
        writer.commit(_results(rows, generator, "etag:0"))
    num_bytes = 0
    for run, share in enumerate(np.array_split(order, num_runs), 1):
        writer = Writer(tables, f"run-{run}")
        writer.write_run(_run(len(share)))
        for rows in _blocks(share):
            writer.commit(_results(rows, generator, "etag:1"))
            num_bytes += writer.last_commit.size_bytes
        tables.refresh()
    return num_bytes


def _blocks(videos: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(videos), VIDEOS_A_COMMIT):
        yield videos[start : start + VIDEOS_A_COMMIT]


def _ids(videos: NDArray[np.int64]) -> pa.Array:
    numbers = pc.utf8_lpad(pa.array(videos).cast(pa.string()), 9, "0")
    return pc.binary_join_element_wise("show/", numbers, ".mp4", "")


def _catalog(num_videos: int) -> pa.Table:
    videos = np.arange(num_videos)
    ids = _ids(videos)
    return pa.table({
        "video_id": ids,
        "uri": pc.binary_join_element_wise("s3://my-bucket/masters/", ids, ""),
        "content_id": pa.repeat("etag:1", num_videos),
        "size_bytes": pa.array(50_000_000 + videos),
        "start_s": pa.nulls(num_videos, pa.float64()),
        "end_s": pa.nulls(num_videos, pa.float64()),
        "country": pa.array(np.array(_COUNTRIES)[videos % 4]),
    })  # fmt: skip


def _run(num: int) -> pa.Table:
    row = {
        "job": "nightly", "job_spec": "{}", "catalog": "nightly", "catalog_root": "s3://my-bucket", "state": "finished",
        "models": [{"name": MODEL.name, "model_id": MODEL.model_id, "fingerprint": MODEL.fingerprint}],
        "num_scored": num, "num_failed": 0, "seconds": 3600.0, "message": "",
    }  # fmt: skip
    return make_rows("runs", [row])


def _results(videos: NDArray[np.int64], generator: np.random.Generator, content: str) -> Batch:
    num = len(videos)
    raw = generator.normal(0.6, 0.15, num)
    duration = generator.uniform(5, 60, num)
    key: dict[str, Any] = {
        "video_id": _ids(videos),
        "content_id": pa.repeat(content, num),
        "model_id": pa.repeat(MODEL.model_id, num),
        "fingerprint": pa.repeat(MODEL.fingerprint, num),
    }
    clip = {**key, "clip_index": pa.array(np.zeros(num, np.int32))}
    slots = raw[:, None] + generator.normal(0, 0.05, (num, SLOTS))
    starts = duration[:, None] * np.arange(SLOTS) / SLOTS
    clips = clip | {
        "start_s": pa.array(np.zeros(num)), "end_s": pa.array(duration), "raw_score": pa.array(raw),
        "slot_start_s": _lists(starts), "slot_scores": _lists(slots.astype(np.float32)),
        "frame_indices": _lists(np.tile(np.arange(2 * SLOTS, dtype=np.int32), (num, 1))),
    }  # fmt: skip
    cells = ROWS * COLS
    texture = generator.normal(0, 40, (num, SLOTS, cells)).clip(-127, 127).astype(np.int8)
    saliency = generator.normal(0, 40, (num, SLOTS, cells)).clip(-127, 127).astype(np.int8)
    maps = clip | {
        "num_slots": _constant(SLOTS, num), "num_rows": _constant(ROWS, num), "num_cols": _constant(COLS, num),
        "texture": _lists(texture.reshape(num, -1)), "texture_offset": pa.array(raw),
        "texture_scale": pa.array(np.full(num, 0.002)),
        "saliency": _lists(saliency.reshape(num, -1)), "saliency_offset": pa.array(np.ones(num)),
        "saliency_scale": pa.array(np.full(num, 0.004)),
        "texture_mean": _lists(texture.mean(axis=1).round().astype(np.int8)),
        "saliency_mean": _lists(saliency.mean(axis=1).round().astype(np.int8)),
    }  # fmt: skip
    scores = key | {
        "uri": pc.binary_join_element_wise("s3://my-bucket/masters/", key["video_id"], ""),
        "model_name": pa.repeat(MODEL.name, num), "model_origin": pa.repeat("trained", num),
        "raw_score": pa.array(raw), "num_clips": _constant(1, num), "duration_s": pa.array(duration),
        "codec": pa.array(np.array(_CODECS)[videos % 4]), "fetch_s": pa.array(np.full(num, 0.1)),
        "decode_s": pa.array(np.full(num, 2.0)), "score_s": pa.array(np.full(num, 0.5)),
    }  # fmt: skip
    return Batch(_table("maps", maps), _table("clips", clips), None, _table("scores", scores))


def _lists(values: NDArray[Any]) -> pa.ListArray:
    """Return the rows of an array [N, L] as lists."""
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))


def _constant(value: int, num: int) -> pa.Array:
    return pa.array(np.full(num, value, np.int32))


def _table(name: str, columns: dict[str, Any]) -> pa.Table:
    num = len(columns["video_id"])
    schema = find_schema(name).row_schema()
    return pa.table([columns.get(f.name, pa.nulls(num, f.type)) for f in schema], schema=schema)


def ask_once(uri: str, name: str, by: str | None) -> dict[str, Any]:
    """Return seconds, peak memory and rows of one question in this process."""
    started = time.perf_counter()
    with Session(Tables.open(uri), QueryLimits("4GB", None), num_threads=2) as session:
        opened = time.perf_counter()
        answer = ask(session, name, by=by)
        done = time.perf_counter()
    return {
        "seconds": round(done - started, 2),
        "of these to open": round(opened - started, 2),
        "core-seconds": round(time.process_time(), 1),
        "peak MiB": peak_mib(),
        "rows": answer.num_rows,
    }


def measure(uri: str, name: str, by: str | None) -> dict[str, Any]:
    """Run `ask_once` in its own process."""
    command = [sys.executable, "-m", "benchmarks.questions", "--ask", uri, name, by or ""]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=float, nargs="+", default=[1e4, 1e5, 1e6])
    parser.add_argument("--questions", nargs="+", default=list(QUESTIONS))
    parser.add_argument("--by", help="group by this column")
    parser.add_argument("--folder", help="folder for the tables, which are kept and used again")
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        uri, name, by = arguments.ask
        print(json.dumps(ask_once(uri, name, by or None)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in map(int, arguments.videos):
            folder = Path(arguments.folder or scratch) / f"{number}"
            if not folder.exists():
                started = time.perf_counter()
                num_bytes = make_tables(str(folder), number)
                made = time.perf_counter() - started
                print(f"{number:,} videos: {num_bytes / 2**20:,.0f} MiB, made in {made:.0f} s", file=sys.stderr)
            for name in arguments.questions:
                by = None if name == "by-run" else arguments.by
                rows.append({"videos": f"{number:,}", "question": name} | measure(str(folder), name, by))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print_table(rows, arguments.output)
    return int(any(row["seconds"] > BUDGET_S for row in rows))


if __name__ == "__main__":
    sys.exit(main())
