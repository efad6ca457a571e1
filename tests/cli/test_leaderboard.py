"""The leaderboard ranks models by SRCC on their labelled videos, with their cost, in three formats and drawn."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from kvq_batch.cli.app import app
from tests.support.evaluation_tables import NUM, Study, make_study
from tests.support.results import KVQ, LUMA


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


def leaderboard(study: Study, *arguments: str, exit_code: int = 0) -> str:
    command = ["leaderboard", study.tables, study.labels, "--bootstrap-samples", "100", *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == exit_code, result.output
    return result.output if exit_code else result.stdout


def test_models_are_ranked_by_srcc(study: Study, tmp_path: Path) -> None:
    rows = json.loads(leaderboard(study, "-o", "json", "--picture", str(tmp_path / "rank.png")))
    assert [row["rank"] for row in rows] == [1, 2]
    assert rows[0]["srcc"] >= rows[1]["srcc"]
    kvq = next(row for row in rows if row["model_id"] == KVQ.model_id)
    assert kvq["srcc"] == pytest.approx(stats.spearmanr(study.scores, study.values).statistic)
    assert kvq["krcc"] == pytest.approx(stats.kendalltau(study.scores, study.values).statistic)
    assert (kvq["videos"], kvq["unscored"]) == (NUM, 0)
    assert next(row for row in rows if row["model_id"] == LUMA.model_id)["videos"] == NUM // 2
    with Image.open(tmp_path / "rank.png") as picture:
        assert picture.width == 960


def test_common_videos_are_those_of_every_model(study: Study) -> None:
    rows = list(csv.DictReader(io.StringIO(leaderboard(study, "-o", "csv", "--common", "--reference", "scene_id"))))
    assert {row["videos"] for row in rows} == {str(NUM // 2)}
    assert {row["references"] for row in rows} == {str(NUM // 10)}


def test_table_has_intervals_and_says_what_differs(study: Study) -> None:
    result = CliRunner().invoke(app, ["leaderboard", study.tables, study.labels, "--bootstrap-samples", "100"])
    assert " [" in result.stdout
    assert "--common compares those that every model scored" in result.stderr


def test_unknown_model_is_rejected(study: Study) -> None:
    assert "no score of model other" in leaderboard(study, "--model", "other", exit_code=2)
