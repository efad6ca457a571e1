"""The commands that make labels."""

import csv
import json
from pathlib import Path

import pytest

from tests.cli.test_commands import call
from tests.support.evaluation_tables import make_study

JOB = """
name = "few"
tables = "{folder}/tables"
[[references]]
source = "synthetic:glow"
[segments]
num_frames = 4
height_px = 64
width_px = 96
[renditions]
ladders = {{ blur = [2] }}
combinations = []
regions = 1
mixes = 0
[make.workers]
num_cpus = 0.5
"""


def job_file(folder: Path) -> Path:
    path = folder / "few.toml"
    path.write_text(JOB.format(folder=folder))
    return path


def test_labels_are_planned_made_and_queried(tmp_path: Path) -> None:
    job = job_file(tmp_path)
    planned = json.loads(call("labels", "make", job, "--dry-run", "-o", "json").stdout)
    assert (planned["references"], planned["planned"], planned["current"]) == (1, 3, 0)
    assert not (tmp_path / "tables").exists()
    made = json.loads(call("labels", "make", job, "-o", "json").stdout)
    assert (made["state"], made["labelled"], made["failed"]) == ("finished", 3, 0)
    answer = call("query", tmp_path / "tables", "SELECT kind FROM labels ORDER BY vmaf DESC LIMIT 1", "-o", "json")
    assert json.loads(answer.stdout) == [{"kind": "clean"}]
    planned = json.loads(call("labels", "make", job, "--dry-run", "-o", "json").stdout)
    assert (planned["planned"], planned["current"]) == (0, 3)


def test_teacher_set_has_raw_scores_not_mos(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    arguments = ("labels", "export", study.tables, "--target", "teacher", "--model", "kvq-tiny", "--split", "1/0/0")
    exported = call(*arguments, "--format", "csv", "--out", tmp_path / "set")
    assert "The labels are raw scores of the model (column `raw_score`), not opinions of people" in exported.stderr
    with (tmp_path / "set" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert "mos" not in rows[0]
    assert [(row["video_id"], float(row["raw_score"])) for row in rows] == sorted(
        zip(study.videos, study.scores.tolist(), strict=True)
    )
    call(*arguments, "--format", "list", "--out", tmp_path / "list")
    line = (tmp_path / "list" / "train.txt").read_text().splitlines()[0]
    assert float(line.rsplit(",", 1)[1]) == pytest.approx(study.scores[0])


def test_degradations_list_has_units() -> None:
    rows = json.loads(call("labels", "degradations", "-o", "json").stdout)
    assert {"name": "h264", "amount": "x264 CRF", "from": 1, "to": 51, "codec": True} in rows


def test_help_gives_examples() -> None:
    for command in ("make", "degradations"):
        assert f"$ kvq-batch labels {command}" in call("labels", command, "--help").stdout


def test_missing_job_names_the_template() -> None:
    assert "kvq-batch init nowhere.toml --kind labels" in call("labels", "make", "nowhere.toml", exit_code=2).stderr
