"""Measure the peak memory of a run by batch size: shared memory, the driver, its workers.

    python -m benchmarks.memory [--models luma-sharpness] [--batch-sizes 1 64] [--videos 48]

The videos are small, but every clip has 32 frames of 448 x 448 (18.4 MiB). Each run is a separate process, sampled five
times per second. Shared memory is the growth of the machine's: Ray's object store, and frames on the way from a
decoder. Driver and workers are their private memory. The number of clips per call follows from `score_s`, which is
equal for the clips of one call.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import kvq_batch
from benchmarks.process_tree import ProcessTree
from benchmarks.tables import print_table
from kvq_batch.config.load import make_job
from kvq_batch.engine.score_run import run_job
from kvq_batch.engine.work_tracker import SilentObserver
from kvq_batch.media.synthesis import ClipShape, write_demo_clips
from kvq_batch.planning.job_plan import plan_job

_SAMPLE_EVERY_S = 0.2

# Text in the command line of a process -> kind of process.
_KINDS = {"(DecodeWorker)": "decode worker", "(ScoreWorker)": "scoring worker"}
_SHARED = "/dev/shm"


def run_one(folder: Path, model: str, batch_size: int, result_file: Path) -> None:
    """Execute the run in this process; write the largest number of clips per call of the model."""
    weights = "untrained" if model.startswith("kvq") else None
    cores = os.cpu_count() or 1
    workers = {"min": cores, "max": cores, "num_cpus": 0.5}
    section = {"name": model, "weights": weights, "batch_size": batch_size, "workers": {"num_cpus": 0.5}}
    with tempfile.TemporaryDirectory(prefix="tables-") as tables:
        job = {
            "name": "memory",
            "tables": tables,
            "catalog": {"source": str(folder)},
            "models": [section | {"num_threads": cores}],
            "decode": {"workers": workers},
        }
        summary = run_job(plan_job(make_job(job, "benchmark")), SilentObserver())
        with kvq_batch.open(tables) as quality:
            calls = quality.sql("SELECT count(*) AS clips FROM scores GROUP BY score_s").to_pylist()
    result_file.write_text(
        json.dumps({"num_scored": summary.num_scored, "clips": max(call["clips"] for call in calls)})
    )


def measure(folder: Path, model: str, batch_size: int, limit_s: float) -> dict[str, Any]:
    """Measure one run; return its row of the table."""
    with tempfile.TemporaryDirectory(prefix="kvq-", ignore_cleanup_errors=True) as temporary:
        result_file = Path(temporary) / "result.json"
        environment = {**os.environ, "RAY_TMPDIR": temporary, "TMPDIR": temporary}
        command = [
            sys.executable,
            "-m",
            "benchmarks.memory",
            "--one",
            str(folder),
            model,
            str(batch_size),
            str(result_file),
        ]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        tree, peaks = ProcessTree(process.pid), dict.fromkeys(("shared", "driver", *_KINDS.values()), 0)
        before = _shared_bytes()
        until = time.monotonic() + limit_s
        try:
            while process.poll() is None and time.monotonic() < until:
                tree.sample()
                peaks["shared"] = max(peaks["shared"], _shared_bytes() - before)
                for pid in tree.pids:
                    kind = "driver" if pid == process.pid else _kind(pid)
                    if kind is not None:
                        peaks[kind] = max(peaks[kind], _private_bytes(pid))
                time.sleep(_SAMPLE_EVERY_S)
        finally:
            tree.kill()
            process.wait()
        if not result_file.exists():
            raise SystemExit(f"{model}, batch_size {batch_size}: failed, or did not end in {limit_s:g} s (--limit-s)")
        found = json.loads(result_file.read_text())
    row = {"model": model, "batch_size": batch_size, "videos": found["num_scored"], "clips per call": found["clips"]}
    return row | {f"{kind}, MiB": size >> 20 for kind, size in peaks.items()} | {"all, MiB": tree.peak_bytes >> 20}


def _kind(pid: int) -> str | None:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        return next((kind for mark, kind in _KINDS.items() if mark in command), None)
    return None


def _private_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _shared_bytes() -> int:
    """Return the shared memory in use on the whole machine."""
    state = os.statvfs(_SHARED)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["luma-sharpness", "kvq-tiny"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--videos", type=int, default=48, help="Number of videos, a multiple of 6.")
    parser.add_argument("--limit-s", type=float, default=300.0, help="Time limit of one run, in seconds.")
    parser.add_argument("--output", choices=["markdown", "json"], default="markdown")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        folder, model, batch_size, result_file = arguments.one
        run_one(Path(folder), model, int(batch_size), Path(result_file))
        return
    with tempfile.TemporaryDirectory(prefix="kvq-bench-") as name:
        made = [clip.path for clip in write_demo_clips(Path(name) / "made", 1, ClipShape(320, 176))]
        videos = Path(name) / "videos"
        videos.mkdir()
        for number in range(arguments.videos):
            (videos / f"video-{number:03}.mp4").hardlink_to(made[number % len(made)])
        rows = []
        for model in arguments.models:
            for batch_size in arguments.batch_sizes:
                rows.append(measure(videos, model, batch_size, arguments.limit_s))
                print(rows[-1], file=sys.stderr, flush=True)
    print_table(rows, arguments.output)


if __name__ == "__main__":
    main()
