"""Submission to a real head that requires a token; no secret is visible on the way."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvq_batch
from kvq_batch.media.synthesis import DEGRADATIONS, ClipShape, write_demo_clips
from tests.support.processes import below
from tests.support.ray_head import LocalCluster, Submitter

SECRET = "planted/Secret+0123456789"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=4) as cluster:
        yield cluster


@pytest.fixture
def submitter(cluster: LocalCluster, tmp_path: Path) -> Submitter:
    submitter = Submitter(cluster, tmp_path)
    # Credentials of the submitting machine, which the cluster must never see.
    submitter.environment |= {"AWS_ACCESS_KEY_ID": "AKIAPLANTED0123456789", "AWS_SECRET_ACCESS_KEY": SECRET}
    return submitter


def write_job(folder: Path, source: str = "videos") -> None:
    (folder / "night.toml").write_text(
        f"# key = {SECRET}\n"
        f'name = "night"\ntables = "tables"\n[catalog]\nsource = "{source}"\n'
        '[[models]]\nname = "luma-sharpness"\nbatch_size = 1\nworkers = { num_cpus = 0.5 }\n'
        "[decode]\nworkers = { num_cpus = 0.5 }\n[run]\ncommit_every_s = 0.2\n"
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAY_AUTH_MODE": None}, r"requires a token, and none was sent: set RAY_AUTH_MODE=token, .*RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": None}, r"but no token was found: put it into RAY_AUTH_TOKEN, .*~/.ray/auth_token"),
        (
            {"RAY_AUTH_TOKEN": "wrong-token"},
            r"rejects the token that was sent: use the token that the cluster was started with",
        ),
        (
            {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"},
            r"No Ray head answers at http://127.0.0.1:1: .*Connection refused",
        ),
    ],
)
def test_missing_cluster_or_token_is_explained(
    submitter: Submitter, environment: dict[str, str | None], message: str
) -> None:
    for name, value in environment.items():
        del submitter.environment[name]
        if value is not None:
            submitter.environment[name] = value
    stdout, stderr = submitter.call("jobs", exit_code=2)
    assert stdout == ""
    assert re.search(message, stderr), stderr
    assert "Traceback" not in stderr
    assert submitter.environment.get("RAY_AUTH_TOKEN", "none") not in stderr


def test_submitted_job_runs_and_shows_no_secret(cluster: LocalCluster, submitter: Submitter) -> None:
    folder = submitter.folder
    write_demo_clips(folder / "videos", 1, ClipShape(width_px=64, height_px=48, num_frames=16), DEGRADATIONS[:3])
    write_job(folder)
    stdout, stderr = submitter.call(
        "submit", "night.toml", "--shared", ".", "--max-videos", "2", "--wait", "--output", "json", exit_code=4
    )
    result = json.loads(stdout)
    assert (result["status"], result["exit_code"], result["submitted"]) == ("stopped (budget)", 4, 1)
    assert result["job_id"] == f"night-{result['run_id']}"
    assert f"run_id        {result['run_id']}\n" in stderr
    # The driver knows a copy of the job only; the user's command is printed by `submit`.
    assert "1 remaining; to continue:  submit the job again" in stderr
    assert "kvq-batch run" not in stderr
    expected = f"stopped at its budget; to continue:  kvq-batch submit night.toml --wait --address {cluster.address}\n"
    assert expected in stderr

    with kvq_batch.open(str(folder / "tables")) as tables:
        assert tables.sql("SELECT DISTINCT run_id FROM scores").to_pylist() == [{"run_id": result["run_id"]}]
        assert tables.sql("SELECT count(*) AS n FROM scores").to_pylist() == [{"n": 2}]

    (row,) = json.loads(submitter.call("jobs", "--output", "json")[0])
    assert (row["job_id"], row["run_id"], row["job"]) == (result["job_id"], result["run_id"], "night")
    assert (row["status"], row["exit_code"]) == ("stopped (budget)", 4)
    assert row["seconds"] > 0
    assert result["job_id"] in submitter.call("jobs")[0]
    assert "scored        2\n" in submitter.call("logs", result["job_id"])[0]
    one: dict[str, Any] = json.loads(submitter.call("jobs", result["job_id"], "--output", "json")[0])
    assert "to continue" in one["message"]
    assert "had already ended" in submitter.call("stop", result["job_id"])[1]
    assert "Job no-such-job does not exist" in submitter.call("logs", "no-such-job", exit_code=2)[1]

    visible = cluster.get("/api/jobs/") + cluster.get(f"/api/jobs/{result['job_id']}/logs")
    for secret in (SECRET, "AKIAPLANTED0123456789", cluster.token):
        assert secret not in visible
    # Neither logs of any process nor command lines contain the token.
    files = [path for path in cluster.folder.rglob("*") if path.is_file() and path.name != "token"]
    assert len(files) > 20
    assert [path for path in files if cluster.token.encode() in path.read_bytes()] == []
    titles = [process.title for machine in cluster.machines for process in below(machine.pid)]
    assert len(titles) > 5
    assert not any(cluster.token in title for title in titles)
    (details,) = json.loads(cluster.get("/api/jobs/"))
    assert set(details["runtime_env"]) - {"_ray_commit"} == {"working_dir", "env_vars"}
    assert set(details["runtime_env"]["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S"}
    assert details["runtime_env"]["working_dir"].startswith("gcs://")
    assert details["metadata"]["tables"] == str(folder / "tables")


def test_exit_code_of_a_rejected_job_is_returned(submitter: Submitter) -> None:
    write_job(submitter.folder, source="nothing-here")
    stdout, stderr = submitter.call("submit", "night.toml", "--shared", ".", "--wait", "--output", "json", exit_code=2)
    assert json.loads(stdout)["submitted"] == 1
    assert "nothing-here: no such file or folder" in stderr


def test_run_on_a_cluster_with_a_token(cluster: LocalCluster, submitter: Submitter) -> None:
    folder = submitter.folder
    write_demo_clips(folder / "videos", 1, ClipShape(width_px=64, height_px=48, num_frames=16), DEGRADATIONS[:1])
    write_job(folder)
    del submitter.environment["RAY_AUTH_MODE"]
    address = f"127.0.0.1:{cluster.port}"
    stderr = submitter.call("run", "night.toml", "--address", address, exit_code=2)[1]
    assert "if it requires a token, set RAY_AUTH_MODE=token" in stderr
    submitter.environment["RAY_AUTH_MODE"] = "token"
    stdout, stderr = submitter.call("run", "night.toml", "--address", address, "--output", "json")
    assert json.loads(stdout)["scored"] == 1
    assert cluster.token not in stdout + stderr
