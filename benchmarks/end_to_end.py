"""Compare the speed of a whole run with its slower stage: KVQ on real files, decoding and scoring on one machine.

Measures three rates over the same files: decoding alone (child processes and shared memory, no model), scoring alone
(the model in this process, frames in memory), and the run, from its first result to its last commit.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import print_table
from kvq_batch.config.load import make_job
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.scorer import ModelOptions, Scorer
from kvq_batch.engine.rows import Row
from kvq_batch.engine.score_run import run_job
from kvq_batch.engine.work_tracker import SilentObserver, WorkTracker
from kvq_batch.media.decode import DecodeTask
from kvq_batch.media.isolation import IsolatedDecoder
from kvq_batch.media.synthesis import ClipShape, write_demo_clips
from kvq_batch.models.registry import build
from kvq_batch.planning.job_plan import plan_job

INCLUDED = ("kvq-lite",)


class CommitTimes(SilentObserver):
    """Record the times of the first result and of the last commit."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.last = 0.0

    def progressed(self, tracker: WorkTracker) -> None:
        self.first = self.first or time.perf_counter()

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        self.last = time.perf_counter()


def weights_of(model: str) -> str | None:
    """Return None for a model with included weights, else "untrained": random weights cost the same."""
    return None if model in INCLUDED else "untrained"


def decode_alone(paths: Sequence[Path], frames: FrameRequest) -> tuple[float, list[NDArray[np.uint8]]]:
    """Return videos per second through one child process, and the frames of each video."""
    with IsolatedDecoder(1, Path("/dev/shm"), timeout_s=120) as decoder:
        request = (frames,)
        decoder.submit(DecodeTask(paths[0], "warm", request)).result()
        started = time.perf_counter()
        videos = [decoder.submit(DecodeTask(path, path.name, request)).result() for path in paths]
        rate = len(paths) / (time.perf_counter() - started)
        return rate, [video.clips[0].frames[0].pixels for video in videos]


def score_alone(scorer: Scorer, clips: Sequence[NDArray[np.uint8]]) -> float:
    """Return clips per second of the model alone."""
    scorer.score(clips[:1])
    started = time.perf_counter()
    for clip in clips:
        scorer.score([clip])
    return len(clips) / (time.perf_counter() - started)


def whole_run(model: str, num_threads: int, folder: Path) -> float:
    """Return videos per second of a run, starting at the first result."""
    job = make_job(
        {
            "name": "end-to-end",
            "tables": str(folder / "tables"),
            "catalog": {"source": str(folder / "videos")},
            "models": [
                {
                    "name": model,
                    "weights": weights_of(model),
                    "batch_size": 1,
                    "num_threads": num_threads,
                    "workers": {"num_cpus": 0.5},
                }
            ],
            "decode": {"workers": {"num_cpus": 0.5}},
            "run": {"commit_every_s": 1.0},
        },
        "benchmark",
    )
    times = CommitTimes()
    summary = run_job(plan_job(job), times)
    assert times.first is not None
    return (summary.num_scored - 1) / (times.last - times.first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="kvq")
    parser.add_argument("--videos", type=int, default=6, help="number of videos, a multiple of 6")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", choices=["markdown", "json"], default="markdown")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvq-bench-") as name:
        folder = Path(name)
        shape = ClipShape(width_px=1280, height_px=720)
        clips = write_demo_clips(folder / "videos", max(1, arguments.videos // 6), shape)
        paths = [clip.path for clip in clips]
        options = ModelOptions(arguments.model, weights_of(arguments.model), num_threads=arguments.threads)
        scorer = build(options)
        decoding, frames = decode_alone(paths, scorer.spec.frames)
        scoring = score_alone(scorer, frames[: min(len(frames), 4)])
        running = whole_run(arguments.model, arguments.threads, folder)
    slower = min(decoding, scoring)
    row: dict[str, Any] = {
        "model": arguments.model,
        "videos": f"{len(paths)} of 720p, 72 frames",
        "decoding alone, videos/s": f"{decoding:.2f}",
        "scoring alone, videos/s": f"{scoring:.3f}",
        "whole run, videos/s": f"{running:.3f}",
        "share of the slower stage": f"{running / slower:.0%}",
    }
    print_table([row], arguments.output)


if __name__ == "__main__":
    main()
