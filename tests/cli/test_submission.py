"""`submit` before anything is sent: what it would send, and what it refuses. Real heads stand in tests/cluster."""

import json
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kvq_batch.cli.app import app
from kvq_batch.config.load import load_job

JOB = """# a comment
name = "night"
tables = "s3://bucket/quality"
[catalog]
source = "s3://bucket/catalog.parquet"
[[models]]
name = "luma-sharpness"
"""
LABELS = 'name = "labels"\ntables = "s3://bucket/quality"\n[[sources]]\nsource = "synthetic:all"\n'


def call(*arguments: str | Path, exit_code: int = 0) -> Result:
    environment = {"COLUMNS": "80", "RAY_API_SERVER_ADDRESS": ""}
    result = CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "night.toml"
        path.write_text(text)
        return path

    return write


def test_a_dry_run_shows_what_would_be_sent_and_asks_no_cluster(written: Callable[[str], Path], tmp_path: Path) -> None:
    file = written(JOB)
    said: dict[str, Any] = json.loads(
        call("submit", file, "--max-videos", "7", "--reason", "new", "--dry-run", "--output", "json").stdout
    )
    assert said["entrypoint"].startswith("exec python -m kvq_batch.cli run job.toml --address auto --run-id ")
    assert said["files"] == len(said["sizes_bytes"])
    assert said["bytes"] == sum(said["sizes_bytes"].values())
    assert {"job.toml", "kvq_batch/cli/__main__.py"} <= set(said["sizes_bytes"])
    sent = tmp_path / "sent.toml"
    sent.write_text(said["job_file"])
    job, ours = load_job(sent), load_job(file)
    assert (job.budget.max_videos, job.select.reasons) == (7, ("new",))
    assert job.models == ours.models
    assert "comment" not in said["job_file"]
    assert "nothing was sent" in call("submit", file, "--dry-run").stderr


def test_an_hour_becomes_a_moment_so_that_a_restart_does_not_wait_for_tomorrows(written: Callable[[str], Path]) -> None:
    before = datetime.now(UTC)
    said = json.loads(call("submit", written(JOB), "--deadline", "06:00", "--dry-run", "--output", "json").stdout)
    moment = datetime.fromisoformat(tomllib.loads(said["job_file"])["budget"]["deadline"])
    assert (moment.hour, moment.minute) == (6, 0)
    assert timedelta(0) < moment - before <= timedelta(days=1, minutes=1)


def test_an_installed_package_is_not_sent(written: Callable[[str], Path]) -> None:
    said = json.loads(call("submit", written(JOB), "--installed", "--dry-run", "--output", "json").stdout)
    assert (list(said["sizes_bytes"]), said["kvq_batch"]) == (["job.toml"], "as the cluster has it")


def test_a_label_job_is_known_by_its_sources(written: Callable[[str], Path]) -> None:
    file = written(LABELS)
    said = json.loads(call("submit", file, "--dry-run", "--output", "json").stdout)
    assert "kvq_batch.cli labels make job.toml" in said["entrypoint"]
    refused = call("submit", file, "--max-videos", "3", "--dry-run", exit_code=2)
    assert "makes labels, and max_videos is for jobs that score" in refused.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (JOB, [], "--address http://HEAD:8265 (or RAY_API_SERVER_ADDRESS) says where"),
        (JOB, ["--address", "head:6379"], "--address is the dashboard of the cluster, http://HEAD:8265, and not"),
        (JOB, ["--address", "http://me:planted@head:8265"], "--address holds credentials"),
        (JOB, ["--restarts", "2"], "--restarts needs --wait"),
        (JOB, ["--entrypoint-resource", "head"], "write NAME=AMOUNT"),
        (JOB.replace("s3://bucket/quality", "quality"), [], "tables: 'quality' is a path of this machine"),
        (JOB.replace("s3://", "s3://me:planted@"), [], "tables, catalog.source holds credentials"),
        (JOB + 'access_key = "planted"\n', [], "models.0.access_key: unknown key"),
        ('name = "t"\n[training]\n', [], "is a training; start it where its devices are"),
    ],
)
def test_what_is_refused_is_named_and_no_secret_repeated(
    written: Callable[[str], Path], text: str, arguments: list[str], said: str
) -> None:
    refused = call("submit", written(text), *arguments, exit_code=2)
    assert said in refused.stderr
    assert "planted" not in refused.output
