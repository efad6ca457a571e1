"""Measure the core time of KVQ-Lite per clip from frames in memory: normalisation, statistics, and the whole score.

    python -m benchmarks.lite_cpu [--threads 2] [--repeats 10]

The parts take turns, and the best of each is reported. The frames are noise, which costs the same as any other picture.
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.tables import print_table
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.models.kvq.config import LITE
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.kvq.statistics import patch_statistics
from kvq_batch.models.registry import build


def durations(action: Callable[[], object]) -> tuple[float, float]:
    """Return core-seconds and seconds of an action."""
    core, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - core, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    scorer = build(ModelOptions("kvq-lite", num_threads=options.threads))
    frames = np.random.default_rng(0).integers(0, 256, (LITE.num_frames, *LITE.input_size, 3), dtype=np.uint8)
    clip = torch.from_numpy(frames[None])
    pixels = normalise(clip)
    slots = torch.unflatten(pixels, 2, (-1, LITE.patch[0])).transpose(1, 2).flatten(0, 1)
    parts: dict[str, Callable[[], object]] = {
        "normalise": lambda: normalise(clip),
        "statistics": lambda: patch_statistics(slots, LITE),
        "score": lambda: scorer.score([frames]),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    with torch.inference_mode():
        for _ in range(options.repeats):
            for name, part in parts.items():
                found[name].append(durations(part))
    rows = []
    for name, times in found.items():
        core, wall = (min(values) for values in zip(*times, strict=True))
        rate = f"{1 / wall:.1f}"
        rows.append({"part": name, "core-ms per clip": f"{1e3 * core:.1f}", "ms": f"{1e3 * wall:.1f}", "per s": rate})
    print_table(rows, options.output)


if __name__ == "__main__":
    main()
