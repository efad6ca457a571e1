"""`submit` without a cluster: what it would send, and what it rejects. tests/cluster uses real heads."""

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
LABELS = 'name = "labels"\ntables = "s3://bucket/quality"\n[[references]]\nsource = "synthetic:all"\n'


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


def test_dry_run_shows_what_would_be_sent(written: Callable[[str], Path], tmp_path: Path) -> None:
    file = written(JOB)
    shown: dict[str, Any] = json.loads(
        call("submit", file, "--max-videos", "7", "--reason", "new", "--dry-run", "--output", "json").stdout
    )
    assert shown["entrypoint"].startswith("exec python -m kvq_batch.cli run job.toml --address auto --run-id ")
    assert shown["files"] == len(shown["sizes_bytes"])
    assert shown["bytes"] == sum(shown["sizes_bytes"].values())
    assert {"job.toml", "kvq_batch/cli/__main__.py"} <= set(shown["sizes_bytes"])
    sent = tmp_path / "sent.toml"
    sent.write_text(shown["job_file"])
    job, original = load_job(sent), load_job(file)
    assert (job.budget.max_videos, job.select.reasons) == (7, ("new",))
    assert job.models == original.models
    assert "comment" not in shown["job_file"]
    assert "nothing was sent" in call("submit", file, "--dry-run").stderr


def test_deadline_at_a_time_of_day_becomes_a_date(written: Callable[[str], Path]) -> None:
    before = datetime.now(UTC)
    shown = json.loads(call("submit", written(JOB), "--deadline", "06:00", "--dry-run", "--output", "json").stdout)
    moment = datetime.fromisoformat(tomllib.loads(shown["job_file"])["budget"]["deadline"])
    assert (moment.hour, moment.minute) == (6, 0)
    assert timedelta(0) < moment - before <= timedelta(days=1, minutes=1)


def test_installed_package_is_not_sent(written: Callable[[str], Path]) -> None:
    shown = json.loads(call("submit", written(JOB), "--installed", "--dry-run", "--output", "json").stdout)
    assert (list(shown["sizes_bytes"]), shown["kvq_batch"]) == (["job.toml"], "as installed on the cluster")


def test_label_job_is_recognised_and_rejects_scoring_options(written: Callable[[str], Path]) -> None:
    file = written(LABELS)
    shown = json.loads(call("submit", file, "--dry-run", "--output", "json").stdout)
    assert "kvq_batch.cli labels make job.toml" in shown["entrypoint"]
    result = call("submit", file, "--max-videos", "3", "--dry-run", exit_code=2)
    assert "is a label job, and max_videos applies to scoring jobs only" in result.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (JOB, [], "No cluster given. Use --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS"),
        (
            JOB,
            ["--address", "head:6379"],
            "Invalid --address 'head:6379': expected the dashboard of the cluster, http://HEAD:8265",
        ),
        (JOB, ["--address", "http://me:planted@head:8265"], "--address contains credentials"),
        (JOB, ["--restarts", "2"], "--restarts requires --wait"),
        (JOB, ["--entrypoint-resource", "head"], "Invalid --entrypoint-resource 'head': expected NAME=AMOUNT"),
        (JOB.replace("s3://bucket/quality", "quality"), [], "tables: 'quality' is a local path"),
        (JOB.replace("s3://", "s3://me:planted@"), [], "tables, catalog.source contains credentials"),
        (JOB + 'access_key = "planted"\n', [], "models.0.access_key: unknown key"),
        ('name = "t"\n[training]\n', [], "is a training job, which cannot be submitted"),
    ],
)
def test_rejections_name_the_problem_but_no_secret(
    written: Callable[[str], Path], text: str, arguments: list[str], message: str
) -> None:
    result = call("submit", written(text), *arguments, exit_code=2)
    assert message in result.stderr
    assert "planted" not in result.output
