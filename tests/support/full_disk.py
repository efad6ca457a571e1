"""Runs on small file systems in a mount namespace of their own; started by `tests/engine/test_full_disk.py`.

    python -m tests.support.full_disk tables|scratch FOLDER VIDEOS [END POINT]

Prints the values that the tests compare, as JSON. Mounting needs a user namespace:
`unshare --user --map-root-user --mount`.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvq_batch.domain.errors import FatalError
from kvq_batch.engine.rows import Row
from kvq_batch.engine.work_tracker import SilentObserver
from tests.engine.test_run import FAST, ask, job_of, run

LARGE_BYTES = 64 * 2**20
SMALL_BYTES = 2**20


def mount(folder: Path, size_bytes: int) -> None:
    """Mount a file system of `size_bytes` at `folder`, or resize the existing one."""
    folder.mkdir(exist_ok=True)
    again = "remount," if folder.is_mount() else ""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{again}size={size_bytes}", "tmpfs", folder], check=True)


class DiskFiller(SilentObserver):
    """Fills the file system of `folder` after the first commit."""

    def __init__(self, folder: Path) -> None:
        self.filler = folder / "filler"

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        if self.filler.exists():
            return
        with self.filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return


def tables(folder: Path, videos: str) -> dict[str, Any]:
    """Fill the disk of the tables during a run, then free it and run again."""
    disk = folder / "disk"
    mount(disk, LARGE_BYTES)
    job = job_of(videos, disk / "tables", FAST | {"batch_size": 1}, run={"commit_every_s": 0.01})
    observer, message = DiskFiller(disk), ""
    try:
        run(job, observer=observer)
    except FatalError as error:
        message = str(error)
    observer.filler.unlink()
    kept = [row["video_id"] for row in ask(job.tables, "SELECT video_id FROM scores")]
    summary = run(job)
    return {
        "message": message,
        "kept": kept,
        "scored_then": summary.num_scored,
        "scores": [row["video_id"] for row in ask(job.tables, "SELECT video_id FROM scores ORDER BY video_id")],
        "failures": ask(job.tables, "SELECT video_id FROM failures"),
    }


def scratch(folder: Path, videos: str, endpoint_url: str) -> dict[str, Any]:
    """Leave no space for one fetched file and for the frames of any, then free both and run again."""
    fetched, frames = folder / "fetched", folder / "frames"
    mount(fetched, SMALL_BYTES)
    mount(frames, SMALL_BYTES)
    job = job_of(
        videos,
        folder / "tables",
        FAST,
        decode={"workers": {"num_cpus": 0.5}, "scratch": str(fetched), "shared_memory": str(frames)},
        storage={"endpoint_url": endpoint_url, "region": "us-east-1"},
        run={"max_attempts": 2},
    )
    first = run(job)
    rows = ask(job.tables, "SELECT video_id, stage, error, permanent, message FROM failures WHERE final ORDER BY ALL")
    mount(fetched, LARGE_BYTES)
    mount(frames, LARGE_BYTES)
    second = run(job)
    return {
        "failed": rows,
        "state": first.state,
        "scored_then": second.num_scored,
    }


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["tables", disk, videos]:
            outcome = tables(Path(disk), videos)
        case ["scratch", disk, videos, endpoint_url]:
            outcome = scratch(Path(disk), videos, endpoint_url)
        case _:
            sys.exit(__doc__)
    sys.stdout.write(json.dumps(outcome))
