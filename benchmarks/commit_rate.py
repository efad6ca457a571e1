"""Measure how many results per second one driver commits, to a local folder or any address.

    python benchmarks/commit_rate.py                     a temporary folder
    python benchmarks/commit_rate.py s3://bucket/prefix --endpoint-url URL

Rows are like those of a standard KVQ run: one clip, maps of 16 x 14 x 14. Quantisation is timed separately, because
workers do it. Decoding and models are not measured. Prints a Markdown table.
"""

import argparse
import os
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.domain.maps import quantise
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Batch, Writer

SHAPE = (16, 14, 14)
BATCH_SIZES = (64, 256, 1024, 2048)


def make_batch(start: int, num_videos: int, stored: list[dict[str, Any]]) -> Batch:
    scores, clips, maps = [], [], []
    for number in range(num_videos):
        key = {
            "video_id": f"shows/season-1/{start + number:08d}.mp4",
            "content_id": f"etag:{start + number:032x}",
            "model_id": "kvq@1-0123456789ab",
            "fingerprint": "f" * 64,
        }
        scores.append({**key, "uri": f"s3://bucket/{key['video_id']}", "model_name": "kvq", "raw_score": 0.5})
        clips.append({**key, "clip_index": 0, "raw_score": 0.5, "frame_indices": list(range(32))})
        maps.append({**key, "clip_index": 0, **stored[number % len(stored)]})
    return Batch(make_rows("maps", maps), make_rows("clips", clips), None, make_rows("scores", scores))


def measure(uri: str, options: StorageOptions, num_commits: int) -> None:
    generator = np.random.default_rng(0)
    # As many different maps as in the largest commit: repeated maps would compress too well.
    texture = generator.normal(0.3, 0.1, (max(BATCH_SIZES), *SHAPE)).astype(np.float32)
    logits = generator.normal(0, 1.5, texture.shape)
    saliency = (np.exp(logits) / np.exp(logits).mean(axis=(2, 3), keepdims=True)).astype(np.float32)
    start = time.perf_counter()
    stored = [quantise(t, s).row() for t, s in zip(texture, saliency, strict=True)]
    quantise_ms = (time.perf_counter() - start) / len(stored) * 1000
    print(f"quantise: {quantise_ms:.2f} ms per video\n")
    print("| videos per commit | commits | s per commit | videos/s | bytes per video |")
    print("|---:|---:|---:|---:|---:|")
    for size in BATCH_SIZES:
        tables = Tables.create(f"{uri}/{size}", options)
        writer = Writer(tables, "benchmark")
        batches = [make_batch(number * size, size, stored) for number in range(min(num_commits, 4))]
        start = time.perf_counter()
        for number in range(num_commits):
            writer.commit(batches[number % len(batches)])
        seconds = time.perf_counter() - start
        actions = [pa.table(tables.delta(name).get_add_actions()) for name in ("maps", "clips", "scores")]
        num_bytes = sum(pc.sum(action.column("size_bytes")).as_py() for action in actions)
        videos = size * num_commits
        print(
            f"| {size} | {num_commits} | {seconds / num_commits:.3f} | {videos / seconds:.0f} "
            f"| {num_bytes / videos:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", nargs="?", help="Where to write. Default: a temporary folder.")
    parser.add_argument("--endpoint-url")
    parser.add_argument("--region")
    parser.add_argument("--commits", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    if arguments.uri:
        measure(arguments.uri, StorageOptions(arguments.endpoint_url, arguments.region), arguments.commits)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(folder, StorageOptions(), arguments.commits)


if __name__ == "__main__":
    main()
