"""A job goes to a real head that wants a token, runs there, and is told; nothing secret is seen on the way."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kvq_batch
from kvq_batch.media.synthesis import DISTORTIONS, ClipShape, write_demo_clips
from tests.support.ray_head import LocalCluster, Submitter

SECRET = "planted/Secret+0123456789"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(num_cpus=4) as cluster:
        yield cluster


@pytest.fixture
def submitter(cluster: LocalCluster, tmp_path: Path) -> Submitter:
    submitter = Submitter(cluster, tmp_path)
    # What a submitter may well have at hand, and no cluster may ever see.
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
    ("environment", "said"),
    [
        ({"RAY_AUTH_MODE": None}, r"asks for a token, and none was sent: set RAY_AUTH_MODE=token, .*RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": None}, r"no token was found: put it into RAY_AUTH_TOKEN, .*~/.ray/auth_token"),
        ({"RAY_AUTH_TOKEN": "wrong-token"}, r"refuses the token that was sent: it must be the one"),
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}, r"no Ray head answers at http://127.0.0.1:1: .*refused"),
    ],
)
def test_without_the_cluster_or_its_token_it_is_refused_with_help(
    submitter: Submitter, environment: dict[str, str | None], said: str
) -> None:
    for name, value in environment.items():
        del submitter.environment[name]
        if value is not None:
            submitter.environment[name] = value
    stdout, stderr = submitter.call("jobs", exit_code=2)
    assert stdout == ""
    assert re.search(said, stderr), stderr
    assert "Traceback" not in stderr
    assert submitter.environment.get("RAY_AUTH_TOKEN", "none") not in stderr


def test_a_job_runs_there_and_is_told_and_no_secret_is_seen(cluster: LocalCluster, submitter: Submitter) -> None:
    folder = submitter.folder
    write_demo_clips(folder / "videos", 1, ClipShape(width_px=64, height_px=48, num_frames=16), DISTORTIONS[:3])
    write_job(folder)
    stdout, stderr = submitter.call(
        "submit", "night.toml", "--shared", ".", "--max-videos", "2", "--wait", "--output", "json", exit_code=4
    )
    told = json.loads(stdout)
    assert (told["status"], told["exit_code"], told["submitted"]) == ("FAILED", 4, 1)
    assert told["job_id"] == f"night-{told['run_id']}"
    assert f"run_id        {told['run_id']}\n" in stderr
    assert "to go on" in stderr

    with kvq_batch.open(str(folder / "tables")) as tables:
        assert tables.sql("SELECT DISTINCT run_id FROM scores").to_pylist() == [{"run_id": told["run_id"]}]
        assert tables.sql("SELECT count(*) AS n FROM scores").to_pylist() == [{"n": 2}]

    (row,) = json.loads(submitter.call("jobs", "--output", "json")[0])
    assert (row["job_id"], row["run_id"], row["job"]) == (told["job_id"], told["run_id"], "night")
    assert (row["status"], row["exit_code"]) == ("FAILED", 4)
    assert row["seconds"] > 0
    assert told["job_id"] in submitter.call("jobs")[0]
    assert "scored        2\n" in submitter.call("logs", told["job_id"])[0]
    one: dict[str, Any] = json.loads(submitter.call("jobs", told["job_id"], "--output", "json")[0])
    assert "to go on" in one["message"]
    assert "was over already" in submitter.call("stop", told["job_id"])[1]
    assert "Job no-such-job does not exist" in submitter.call("logs", "no-such-job", exit_code=2)[1]

    seen = cluster.get("/api/jobs/") + cluster.get(f"/api/jobs/{told['job_id']}/logs")
    for secret in (SECRET, "AKIAPLANTED0123456789", cluster.token):
        assert secret not in seen
    (known,) = json.loads(cluster.get("/api/jobs/"))
    assert set(known["runtime_env"]) - {"_ray_commit"} == {"working_dir", "env_vars"}
    assert set(known["runtime_env"]["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S"}
    assert known["runtime_env"]["working_dir"].startswith("gcs://")
    assert known["metadata"]["tables"] == str(folder / "tables")


def test_a_job_that_refuses_itself_there_ends_with_its_own_code(submitter: Submitter) -> None:
    write_job(submitter.folder, source="nothing-here")
    stdout, stderr = submitter.call("submit", "night.toml", "--shared", ".", "--wait", "--output", "json", exit_code=2)
    assert json.loads(stdout)["submitted"] == 1
    assert "nothing-here: there is no such file or folder" in stderr
