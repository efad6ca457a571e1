"""What a run holds in memory at most, by batch size: shared memory, the driver, its workers.

    python -m benchmarks.memory [--models luma-sharpness] [--batch-sizes 1 64] [--videos 48]

The videos are small, their clips are not: 32 frames of 448 x 448, 18.4 MiB each, whatever the file. A run is a process
of its own, looked at five times a second. Shared memory is what the machine's has grown by: Ray's object store, and
frames on their way from a decoder; of driver and workers it is the memory that is theirs alone.
The clips of a call are inferred from `score_s`, of which those of one call have equal shares.
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
from kvq_batch.engine.observer import SilentObserver
from kvq_batch.engine.score_run import run_job
from kvq_batch.media.synthesis import ClipShape, write_demo_clips
from kvq_batch.planning.job_plan import plan_job

_LOOK_EVERY_S = 0.2

# What the command line of a process holds, by what it is.
_PARTS = {"(DecodeWorker)": "decode worker", "(ScoreWorker)": "scoring worker"}
_SHARED = "/dev/shm"


def run_one(folder: Path, model: str, batch_size: int, result_file: Path) -> None:
    """The run, in this process; writes how many clips a call of the model had at most."""
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
    """A row of the table."""
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
        tree, peaks = ProcessTree(process.pid), dict.fromkeys(("shared", "driver", *_PARTS.values()), 0)
        before = _shared_bytes()
        until = time.monotonic() + limit_s
        try:
            while process.poll() is None and time.monotonic() < until:
                tree.sample()
                peaks["shared"] = max(peaks["shared"], _shared_bytes() - before)
                for pid in tree.pids:
                    part = "driver" if pid == process.pid else _part(pid)
                    if part is not None:
                        peaks[part] = max(peaks[part], _held_bytes(pid))
                time.sleep(_LOOK_EVERY_S)
        finally:
            tree.kill()
            process.wait()
        if not result_file.exists():
            raise SystemExit(f"{model}, batches of {batch_size}: it failed, or had no end in {limit_s:g} s (--limit-s)")
        answer = json.loads(result_file.read_text())
    row = {"model": model, "batch_size": batch_size, "videos": answer["num_scored"], "clips a call": answer["clips"]}
    return row | {f"{part}, MiB": size >> 20 for part, size in peaks.items()} | {"all, MiB": tree.peak_bytes >> 20}


def _part(pid: int) -> str | None:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        return next((part for mark, part in _PARTS.items() if mark in words), None)
    return None


def _held_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def _shared_bytes() -> int:
    """Of the whole machine."""
    state = os.statvfs(_SHARED)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["luma-sharpness", "kvq-tiny"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--videos", type=int, default=48, help="a multiple of 6")
    parser.add_argument("--limit-s", type=float, default=300.0, help="seconds that one run may take")
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
