"""What a machine may lack: a short temporary folder, a home folder, a terminal. Through the real command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.material import encode

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvq_batch.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def runs_of(tables: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run("status", str(tables), "-o", "json").stdout)["runs"]
    return rows


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    encode(folder / "a.mp4", "-c:v", "libx264", "-preset", "veryfast", seconds=2)
    return folder


@pytest.mark.parametrize("name", ["TMPDIR", "HOME"])
def test_ray_without_its_folders_is_rejected(videos: Path, tmp_path: Path, name: str) -> None:
    long = tmp_path / ("x" * 119)
    long.mkdir()
    tables = tmp_path / "tables"
    arguments = ["score", str(videos), "--model", "luma-sharpness", "--tables", str(tables), "--executor", "ray"]
    result = run(*arguments, **({"TMPDIR": str(long)} if name == "TMPDIR" else {"HOME": "/dev/null/home"}))
    assert result.returncode == 2, result.stderr
    assert "error: Cannot start Ray on this machine" in result.stderr
    assert f"({name}" in result.stderr
    assert "bug" not in result.stderr
    assert [row["state"] for row in runs_of(tables)] == ["failed"]


def test_hangup_stops_a_run_as_ctrl_c_does(videos: Path, tmp_path: Path) -> None:
    for number in range(40):
        (videos / f"{number}.mp4").write_bytes((videos / "a.mp4").read_bytes())
    tables = tmp_path / "tables"
    command = ["score", str(videos), "--model", "kvq-lite", "--tables", str(tables), "--executor", "local"]
    # A process inherits that a signal is ignored; tests that `nohup` started ignore this one.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvq_batch.cli", *command, "--log", "json"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.stderr is not None
    for line in process.stderr:
        if "run started" in line:
            break
    process.send_signal(signal.SIGHUP)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 130, rest
    assert [row["state"] for row in runs_of(tables)] == ["stopped"]
