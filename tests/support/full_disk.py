"""Runs on small file systems of their own, mounted where nobody else sees them; started by `test_full_disk`.

    python -m tests.support.full_disk tables|scratch FOLDER VIDEOS [END POINT]

Prints what the tests compare, as JSON. Mounts need a user namespace: `unshare --user --map-root-user --mount`.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvq_batch.domain.errors import FatalError
from kvq_batch.engine.observer import SilentObserver
from kvq_batch.engine.rows import Row
from tests.engine.test_run import FAST, ask, job_of, run

MANY = 64 * 2**20
FEW = 2**20


def mount(folder: Path, size_bytes: int) -> None:
    """A file system of `size_bytes` at `folder`; one that is there is made larger."""
    folder.mkdir(exist_ok=True)
    again = "remount," if folder.is_mount() else ""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{again}size={size_bytes}", "tmpfs", folder], check=True)


class Fills(SilentObserver):
    """Takes what room there is at `folder` as soon as something is committed."""

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
    """The tables' disk fills up in mid-run; then there is room again."""
    place = folder / "disk"
    mount(place, MANY)
    job = job_of(videos, place / "tables", FAST | {"batch_size": 1}, run={"commit_every_s": 0.01})
    observer, message = Fills(place), ""
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
    """No room for one fetched file, nor for the frames of any; then there is room for both."""
    fetched, frames = folder / "fetched", folder / "frames"
    mount(fetched, FEW)
    mount(frames, FEW)
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
    mount(fetched, MANY)
    mount(frames, MANY)
    second = run(job)
    return {
        "failed": rows,
        "state": first.state,
        "scored_then": second.num_scored,
    }


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["tables", place, videos]:
            outcome = tables(Path(place), videos)
        case ["scratch", place, videos, endpoint_url]:
            outcome = scratch(Path(place), videos, endpoint_url)
        case _:
            sys.exit(__doc__)
    sys.stdout.write(json.dumps(outcome))
