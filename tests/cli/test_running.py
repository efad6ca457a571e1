"""Runs as processes of their own: interrupted, resumed, on a terminal and in a pipe.

Only three runs start Ray, because each start takes long.
"""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvq_batch
from kvq_batch.media.synthesis import DEGRADATIONS, ClipShape, write_demo_clips

ROOT = Path(__file__).parents[2]
SHAPE = ClipShape(width_px=64, height_px=48, num_frames=32)
CLEANUP_TIMEOUT_S = 240
_ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Command:
    """`kvq-batch` in its own processes, identified by a variable in their environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"KVQ_BATCH_TEST_{uuid.uuid4().hex}"

    def start(self, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *arguments],
            cwd=self.folder,
            env={**os.environ, self.mark: "1", "TERM": "xterm", "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def left(self) -> list[str]:
        """Return the command lines of our processes that still live after a grace period."""
        deadline = time.monotonic() + 20
        while (found := list(self._living())) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _living(self) -> Iterator[str]:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = self.mark.encode() in (process / "environ").read_bytes()
                state = (process / "stat").read_text().rsplit(") ", 1)[1][0]
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if is_ours and state != "Z":
                yield command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def write_job(folder: Path) -> None:
    (folder / "job.toml").write_text(
        'name = "j"\ntables = "tables"\n[catalog]\nsource = "videos"\n'
        '[[models]]\nname = "kvq-tiny"\nbatch_size = 1\nworkers = { num_cpus = 0.5 }\n'
        '[decode]\nscratch = "scratch"\nshared_memory = "shared"\nworkers = { num_cpus = 0.5 }\n'
        "[run]\ncommit_every_s = 0.2\n"
    )
    (folder / "scratch").mkdir()
    (folder / "shared").mkdir()


def ask(folder: Path, sql: str) -> list[dict[str, Any]]:
    with kvq_batch.open(str(folder / "tables")) as tables:
        rows: list[dict[str, Any]] = tables.sql(sql).to_pylist()
        return rows


def test_ctrl_c_commits_and_the_same_command_continues(command: Command, tmp_path: Path) -> None:
    write_demo_clips(tmp_path / "videos", 2, SHAPE, DEGRADATIONS[:4])
    write_job(tmp_path)

    running = command.start("run", "job.toml", "--log", "json", "--output", "json")
    assert running.stderr is not None
    log: list[dict[str, Any]] = []
    for line in running.stderr:
        log.append(json.loads(line))
        if log[-1]["event"] == "scored":
            # Like a terminal: to the command and all its children.
            os.killpg(running.pid, signal.SIGINT)
            break
    stdout, stderr = running.communicate(timeout=CLEANUP_TIMEOUT_S)
    log += [json.loads(line) for line in stderr.splitlines()]
    assert running.returncode == 130, (stdout, stderr, log[-5:])
    first = json.loads(stdout)
    assert first["state"] == "stopped"
    assert 0 < first["scored"] < 8
    assert first["scored"] + first["remaining"] == 8
    assert any("to continue:  kvq-batch run job.toml" in line.get("message", "") for line in log)
    assert {line["run_id"] for line in log if line["event"] != "note"} == {first["run_id"]}
    scored = {line["video_id"] for line in log if line["event"] == "scored"}
    assert scored == {row["video_id"] for row in ask(tmp_path, "SELECT video_id FROM scores")}
    assert len(scored) == first["scored"]
    assert command.left() == []
    assert list((tmp_path / "scratch").rglob("*")) == list((tmp_path / "shared").rglob("*")) == []

    second, seen = on_a_terminal(command, "run", "job.toml", "--output", "json")
    assert (second["state"], second["scored"]) == ("finished", 8 - first["scored"])
    for word in ("scored, 0 failed", "videos/s", "-bound", "ETA", "UNTRAINED"):
        assert word in seen
    (counts,) = ask(tmp_path, "SELECT count(*) AS scores, count(DISTINCT video_id) AS videos FROM scores")
    assert counts == {"scores": 8, "videos": 8}
    assert command.left() == []

    again = command.start("run", "job.toml", "--output", "json")
    stdout, stderr = again.communicate(timeout=CLEANUP_TIMEOUT_S)
    assert (again.returncode, json.loads(stdout)["planned"]) == (0, 0)
    assert stderr.splitlines() == ["nothing to score: every video of the catalog has its result"]


def on_a_terminal(command: Command, *arguments: str) -> tuple[dict[str, Any], str]:
    """Return the summary from stdout, a pipe, and the text on stderr, a terminal."""
    ours, theirs = pty.openpty()
    running = command.start(*arguments, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while running.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 65536)
    except OSError:
        # Reading from a terminal raises when its other end is closed.
        pass
    finally:
        os.close(ours)
    stdout, _ = running.communicate(timeout=CLEANUP_TIMEOUT_S)
    assert running.returncode == 0, seen.decode()
    return json.loads(stdout), _ESCAPE.sub(b"", seen).decode()


def test_score_of_a_broken_file_exits_with_3(command: Command, tmp_path: Path) -> None:
    write_demo_clips(tmp_path / "videos", 1, SHAPE, DEGRADATIONS[:2])
    (tmp_path / "videos" / "page.mp4").write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    running = command.start("score", "videos", "--tables", "tables", "--model", "kvq-tiny")
    stdout, stderr = running.communicate(timeout=CLEANUP_TIMEOUT_S)
    assert running.returncode == 3, stderr
    summary, worst = stdout.split("\n\n")
    record = dict(line.split(None, 1) for line in summary.splitlines())
    assert (record["scored"], record["failed"], record["state"]) == ("2", "1", "finished")
    title, columns, *videos = worst.splitlines()
    assert title == "worst by kvq-tiny (raw_score: without a unit; higher is better)"
    assert columns.split() == ["video_id", "raw_score", "worst_at_s", "worst_region"]
    assert len(videos) == 2
    assert record["models"].startswith("kvq-tiny@untrained-")
    assert record["models"].endswith("(untrained)")
    lines = stderr.splitlines()
    assert "\x1b" not in stderr
    assert not [line for line in lines if "videos/s" in line]
    assert any(line.startswith("UNTRAINED") for line in lines)
    assert any("kvq-batch failures list tables" in line for line in lines)
    assert "33.3% of the videos failed" in lines[-1]
    assert {row["model_origin"] for row in ask(tmp_path, "SELECT model_origin FROM scores")} == {"untrained"}
    (failure,) = ask(tmp_path, "SELECT video_id, stage, final FROM failures WHERE final")
    assert failure == {"video_id": "page.mp4", "stage": "probe", "final": True}
    assert command.left() == []


def test_score_without_tables_prints_scores(
    command: Command, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(scratch))
    write_demo_clips(tmp_path / "videos", 1, SHAPE, DEGRADATIONS[:2])
    (tmp_path / "videos" / "page.mp4").write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")

    def score(*arguments: str) -> tuple[str, str]:
        running = command.start("score", "videos", "--model", "luma-sharpness", *arguments)
        stdout, stderr = running.communicate(timeout=CLEANUP_TIMEOUT_S)
        assert running.returncode == 3, stderr
        assert not list(scratch.iterdir())
        return stdout, stderr

    rows = json.loads(score("--output", "json")[0])
    assert list(rows[0]) == ["video_id", "mos", "raw_score", "model_id", "model_origin", "error", "message"]
    *scored, failed = rows
    assert (failed["video_id"], failed["error"], failed["raw_score"]) == ("page.mp4", "not_a_video", None)
    assert [row["error"] for row in scored] == [None, None]

    # The same scores as with tables.
    running = command.start("score", "videos", "--model", "luma-sharpness", "--tables", "tables")
    running.communicate(timeout=CLEANUP_TIMEOUT_S)
    stored = ask(tmp_path, "SELECT video_id, raw_score FROM scores_latest ORDER BY video_id")
    assert [{name: row[name] for name in ("video_id", "raw_score")} for row in scored] == stored

    stdout, stderr = score()
    assert stdout.splitlines()[0].split() == ["video_id", "mos", "raw_score"]
    worst_first = sorted(stored, key=lambda row: row["raw_score"])
    assert [line.split()[0] for line in stdout.splitlines()[1:]] == [row["video_id"] for row in worst_first]
    assert "1 failed: page.mp4 (not_a_video): The file is HTML" in stderr
    assert "2 scored, 1 failed, 0 remaining" in stderr
    assert "to keep the scores and their maps, add --tables FOLDER" in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tables", "videos"]
