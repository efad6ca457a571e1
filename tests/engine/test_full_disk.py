"""Full disks: a full disk of the tables ends the run; a full disk of a worker costs its videos one run."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.s3 import S3Location

pytestmark = pytest.mark.faults

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
CLEANUP_TIMEOUT_S = 400


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command prefix that allows a command to mount."""
    folder = tmp_path_factory.mktemp("mount")
    mounted = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting in a user namespace is not permitted on this machine")
    return NAMESPACE


def run_in_namespace(namespace: list[str], *arguments: object) -> dict[str, Any]:
    command = [*namespace, sys.executable, "-m", "tests.support.full_disk", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=CLEANUP_TIMEOUT_S, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def test_full_disk_of_tables_stops_run(namespace: list[str], videos: Path, tmp_path: Path) -> None:
    outcome = run_in_namespace(namespace, "tables", tmp_path, videos)
    assert "cannot be written: no space left" in outcome["message"]
    assert "Earlier commits are kept" in outcome["message"]
    assert 1 <= len(outcome["kept"]) < 6
    assert outcome["scored_then"] == 6 - len(outcome["kept"])
    assert outcome["scores"] == sorted(path.name for path in videos.iterdir())
    assert outcome["failures"] == []


def test_full_scratch_is_not_a_permanent_failure(
    namespace: list[str], clips: Sequence[Path], s3_prefix: S3Location, tmp_path: Path
) -> None:
    padded = clips[0].read_bytes() + (2**21).to_bytes(4, "big") + b"free" + bytes(2**21 - 8)
    s3_prefix.put("videos/large.mp4", padded)
    s3_prefix.put("videos/small.mp4", clips[1].read_bytes())
    outcome = run_in_namespace(
        namespace, "scratch", tmp_path, f"{s3_prefix.uri}/videos", s3_prefix.options.endpoint_url
    )
    failures = [(row["video_id"], row["stage"], row["error"], row["permanent"]) for row in outcome["failed"]]
    assert failures == [("large.mp4", "fetch", "scratch_full", False), ("small.mp4", "decode", "no_room", False)]
    assert all("room" in row["message"] or "No space left" in row["message"] for row in outcome["failed"])
    assert (outcome["state"], outcome["scored_then"]) == ("finished", 2)
