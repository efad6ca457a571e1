"""Submitted jobs whose drivers, heads and machines are killed or stopped: every video gets exactly one score."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvq_batch
from kvq_batch.media.synthesis import DEGRADATIONS, ClipShape, write_demo_clips
from tests.support.ray_head import CLEANUP_TIMEOUT_S, LocalCluster, Submitter, driver_on, kill

pytestmark = pytest.mark.faults

NUM_VIDEOS = 300


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=4) as cluster:
        yield cluster


@pytest.fixture
def submitter(cluster: LocalCluster, tmp_path: Path) -> Submitter:
    return make_submitter(cluster, tmp_path)


def make_submitter(cluster: LocalCluster, tmp_path: Path) -> Submitter:
    (clip,) = write_demo_clips(tmp_path, 1, ClipShape(width_px=64, height_px=48, num_frames=16), DEGRADATIONS[:1])
    (tmp_path / "videos").mkdir()
    for number in range(NUM_VIDEOS):
        shutil.copyfile(clip.path, tmp_path / "videos" / f"{number:04d}.mp4")
    (tmp_path / "night.toml").write_text(
        'name = "night"\ntables = "tables"\n[catalog]\nsource = "videos"\n'
        '[[models]]\nname = "luma-sharpness"\nbatch_size = 1\nworkers = { num_cpus = 0.5 }\n'
        "[decode]\nworkers = { num_cpus = 0.5 }\n[run]\ncommit_every_s = 0.2\n"
    )
    return Submitter(cluster, tmp_path)


def submitted(submitter: Submitter, *arguments: str) -> "subprocess.Popen[str]":
    """Start a submission with --wait; return when its run has committed results."""
    running = submitter.start(
        "submit", "night.toml", "--shared", ".", "--wait", "--log", "json", "--output", "json", *arguments
    )
    wait_for(running, '"event": "scored"')
    return running


def wait_for(running: "subprocess.Popen[str]", text: str) -> str:
    assert running.stderr is not None
    lines = []
    for line in running.stderr:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError("".join(lines))


def end_of(running: "subprocess.Popen[str]") -> tuple[int, dict[str, Any], str]:
    stdout, stderr = running.communicate(timeout=CLEANUP_TIMEOUT_S)
    assert stdout, stderr
    return running.returncode, json.loads(stdout), stderr


def ask(submitter: Submitter, sql: str) -> list[dict[str, Any]]:
    with kvq_batch.open(str(submitter.folder / "tables")) as tables:
        rows: list[dict[str, Any]] = tables.sql(sql).to_pylist()
        return rows


def check_all_scored_once_in_two_runs(submitter: Submitter, result: dict[str, Any]) -> None:
    (counts,) = ask(submitter, "SELECT count(*) AS scores, count(DISTINCT video_id) AS videos FROM scores")
    assert counts == {"scores": NUM_VIDEOS, "videos": NUM_VIDEOS}
    states = ask(submitter, "SELECT run_id, arg_max(state, commit_seq) AS state FROM runs GROUP BY ALL ORDER BY ALL")
    assert [row["state"] for row in states] == ["crashed", "finished"]
    assert states[1]["run_id"] == result["run_id"]


def test_killed_driver_is_submitted_again(cluster: LocalCluster, submitter: Submitter) -> None:
    running = submitted(submitter)
    kill(driver_on(cluster.machines)[1].pid)
    exit_code, result, _ = end_of(running)
    assert (exit_code, result["status"], result["submitted"]) == (0, "SUCCEEDED", 2)
    check_all_scored_once_in_two_runs(submitter, result)
    second, first = json.loads(submitter.call("jobs", "--output", "json")[0])
    assert (first["status"], first["exit_code"], second["job_id"]) == ("FAILED", -9, result["job_id"])
    details = json.loads(submitter.call("jobs", second["job_id"], "--output", "json")[0])
    assert details["metadata"]["restart_of"] == first["job_id"]


def test_job_is_submitted_again_after_a_head_restart(cluster: LocalCluster, submitter: Submitter) -> None:
    running = submitted(submitter)
    cluster.machines.pop().kill()
    wait_for(running, "waiting up to")
    cluster.start_head()
    exit_code, result, stderr = end_of(running)
    assert (exit_code, result["status"], result["submitted"]) == (0, "SUCCEEDED", 2)
    assert "the head restarted and does not know the job" in stderr
    check_all_scored_once_in_two_runs(submitter, result)


def test_restarts_are_limited(cluster: LocalCluster, submitter: Submitter) -> None:
    running = submitted(submitter, "--restarts", "0")
    kill(driver_on(cluster.machines)[1].pid)
    exit_code, result, _ = end_of(running)
    assert (exit_code, result["status"], result["submitted"]) == (1, "LOST", 1)


def test_stopped_job_commits_and_is_not_restarted(submitter: Submitter) -> None:
    running = submitted(submitter)
    (job,) = json.loads(submitter.call("jobs", "--output", "json")[0])
    stopped = json.loads(submitter.call("stop", job["job_id"], "--output", "json")[0])
    assert stopped == {"job_id": job["job_id"], "was_running": True, "status": "STOPPED"}
    exit_code, result, stderr = end_of(running)
    assert (exit_code, result["status"], result["submitted"]) == (130, "STOPPED", 1)
    assert "committing what is finished" in stderr
    (row,) = ask(submitter, "SELECT arg_max(state, commit_seq) AS state, max(num_scored) AS scored FROM runs")
    assert row["state"] == "stopped"
    assert 0 < row["scored"] < NUM_VIDEOS
    assert ask(submitter, "SELECT count(*) AS n FROM scores") == [{"n": row["scored"]}]


def test_job_moves_when_the_driver_machine_is_lost(tmp_path: Path) -> None:
    with LocalCluster(num_cpus=0) as cluster:
        machines = [cluster.join(2, {"driver": 1}) for _ in range(2)]
        submitter = make_submitter(cluster, tmp_path)
        running = submitted(submitter, "--entrypoint-resource", "driver=1")
        driver_on(machines)[0].kill()
        exit_code, result, stderr = end_of(running)
        assert (exit_code, result["status"], result["submitted"]) == (0, "SUCCEEDED", 2)
        assert "lost the driver (job supervisor actor died)" in stderr
        check_all_scored_once_in_two_runs(submitter, result)
