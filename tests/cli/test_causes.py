"""Causes at the end of a run and in `analyze`: one run of two models over small videos."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvq_batch.cli.app import app


def run(*arguments: str | Path) -> str:
    """Return what the command prints to stdout."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clips: Sequence[Path]) -> Path:
    """Return a folder with the videos of one scene, and tables of luma-sharpness and causes."""
    folder = tmp_path_factory.mktemp("causes")
    (folder / "videos").mkdir()
    for clip in clips:
        (folder / "videos" / clip.name).symlink_to(clip)
    (folder / "job.toml").write_text(
        f'name = "j"\ntables = "{folder}/tables"\n[catalog]\nsource = "{folder}/videos"\n'
        '[[models]]\nname = "luma-sharpness"\n[[models]]\nname = "causes"\n'
    )
    (folder / "out.txt").write_text(run("run", folder / "job.toml"))
    return folder


def test_run_ends_with_the_causes_of_the_worst_videos(folder: Path) -> None:
    worst = (folder / "out.txt").read_text().split("\n\n")[1].splitlines()
    assert worst[0].startswith("worst by luma-sharpness (raw_score")
    assert worst[1].split() == ["video_id", "raw_score", "worst_at_s", "worst_cause"]
    causes = {line.split()[0]: line.split()[-1] for line in worst[2:]}
    assert causes["blur-1.mp4"] == "blur"
    assert causes["noise-1.mp4"] == "noise"


def test_analyze_why_names_what_was_put_in(folder: Path) -> None:
    rows = json.loads(run("analyze", folder / "tables", "why", "--output", "json"))
    main = {row["video_id"]: row["cause"] for row in reversed(rows)}
    assert main["blur-1.mp4"] == main["downscale-1.mp4"] == "blur"
    assert main["noise-1.mp4"] == "noise"
    assert "none-0.mp4" not in main
    query = run("analyze", folder / "tables", "why", "--sql")
    assert json.loads(run("query", folder / "tables", query, "--output", "json")) == rows


def test_causes_are_stored_by_slot_and_cell(folder: Path) -> None:
    sql = """
    SELECT min(from_s) AS first, max(until_s) AS last, count(DISTINCT slot) AS slots, max(cell_row) AS cell_row,
        max(cell_col) AS cell_col FROM causes WHERE video_id = 'blur-1.mp4' AND cause = 'blur'
    """
    (found,) = json.loads(run("query", folder / "tables", sql, "--output", "json"))
    assert found == {"first": 0, "last": pytest.approx(3), "slots": 8, "cell_row": 13, "cell_col": 13}


def test_score_of_a_file_prints_its_causes(folder: Path) -> None:
    printed = run("score", folder / "videos" / "blur-1.mp4", "--model", "causes")
    title, columns, row = printed.split("\n\n")[1].splitlines()
    assert title == "causes of bad quality (severity: 0 to 1 over the whole video)"
    assert columns.split() == ["video_id", "cause", "severity", "worst_at_s", "worst_region"]
    assert row.split()[:2] == ["blur-1.mp4", "blur"]
