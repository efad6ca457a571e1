"""Compare CPU scorers that keep freed memory with ones that return it: core-seconds and peak memory.

    python -m benchmarks.kept_memory [--models kvq-lite kvq-tiny] [--clips 6] [--rounds 3]

Both score the same random clips with one thread, in separate processes that take turns. The best of each is reported,
in core-seconds, which include the time that the system needs to clear pages. Random weights of kvq-tiny cost the same.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.tables import print_table
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.models import registry

WAYS = ("returned", "kept")


def score(model: str, way: str, clips: int) -> dict[str, float]:
    """Return core-seconds per clip and peak memory of this process."""
    options = ModelOptions(model, "untrained" if model == "kvq-tiny" else None, num_threads=1)
    if way == "kept":
        scorer = registry.build(options)
    else:
        with patch("kvq_batch.models.torch_device.keep_freed_memory"):
            scorer = registry.build(options)
    request = scorer.spec.frames
    assert request.size is not None
    assert request.sampling.num_frames is not None
    clip = np.random.default_rng(0).integers(0, 256, (request.sampling.num_frames, *request.size, 3), np.uint8)
    scorer.score([clip])
    started = time.process_time()
    for _ in range(clips):
        scorer.score([clip])
    spent = (time.process_time() - started) / clips
    return {"core_s": spent, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["kvq-lite", "kvq-tiny"])
    parser.add_argument("--clips", type=int, default=6, help="Clips per process.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", choices=["markdown", "json"], default="markdown")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        model, way = asked.one
        print(json.dumps(score(model, way, asked.clips)))
        return
    rows: list[dict[str, Any]] = []
    for model in asked.models:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(asked.rounds):
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.kept_memory", "--one", model, way]
                done = subprocess.run([*command, "--clips", str(asked.clips)], check=True, capture_output=True)
                found[way].append(json.loads(done.stdout))
        best = {way: min(row["core_s"] for row in found[way]) for way in WAYS}
        for way in WAYS:
            row: dict[str, Any] = {"model": model, "freed memory": way, "core-s per clip": round(best[way], 3)}
            row["relative to returned"] = round(best[way] / best["returned"], 2)
            row["peak RSS, MiB"] = round(max(one["peak_mib"] for one in found[way]))
            rows.append(row)
    print_table(rows, asked.output)


if __name__ == "__main__":
    main()
