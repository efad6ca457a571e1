"""Budgets and estimates: a plan, a run that ends early, and the estimate after it."""

import json
from pathlib import Path
from typing import Any

import pytest

import kvq_batch
from kvq_batch.cli.estimates import duration
from kvq_batch.media.synthesis import DEGRADATIONS, ClipShape, write_demo_clips
from tests.cli.test_commands import call

JOB = """
name = "j"
tables = "{folder}/tables"
catalog = {{ source = "{folder}/videos" }}
models = [{{ name = "luma-sharpness", num_threads = 1, workers = {{ num_cpus = 0.5 }} }}]
decode = {{ workers = {{ num_cpus = 0.5 }} }}
prices = {{ core_hour = 7.2, currency = "CHF" }}
"""


def test_budget_ends_a_run_and_the_next_plan_estimates(tmp_path: Path) -> None:
    write_demo_clips(tmp_path / "videos", 1, ClipShape(width_px=64, height_px=48, num_frames=32), DEGRADATIONS[:3])
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(folder=tmp_path))

    shard = json.loads(call("plan", job, "--shard", "2/4", "-o", "json").stdout)
    assert (shard["shard"], json.loads(call("plan", job, "-o", "json").stdout)["shard"]) == ("2/4", None)
    shown = call("plan", job, "--max-videos", "2").stderr
    assert "budget.max_videos: the first 2 of 3 videos" in shown
    assert "expected time and cost of luma-sharpness: unknown, no run of this model yet" in shown
    assert json.loads(call("plan", job, "-o", "json").stdout)["expected"]["seconds"] is None

    done = call("run", job, "--limit", "1", "--output", "json", exit_code=4)
    summary = json.loads(done.stdout)
    assert (summary["state"], summary["scored"], summary["remaining"]) == ("stopped", 1, 2)
    # One video was scored, of three planned ones. The seconds are rounded to a tenth.
    assert 1 / (summary["seconds"] + 0.06) < summary["videos_per_s"] < 1 / max(summary["seconds"] - 0.06, 0.01)
    assert summary["cost"] == pytest.approx(summary["core_hours"] * 7.2, rel=0.05)
    assert "stopped with 2 remaining; to continue:  kvq-batch run" in done.stderr
    assert "reached budget.max_videos = 1" in done.stderr

    planned = call("plan", job, "--max-cost", "0.0001", "--deadline", "06:00", "--time-zone", "Europe/Zurich")
    assert [line.split()[0] for line in planned.stdout.splitlines()[-2:]] == ["decode", "luma-sharpness"]
    assert "measured over 1 scores of 1 run(s)" in planned.stderr
    assert "budget.max_cost: 0.0001 CHF: about " in planned.stderr
    assert "budget.deadline: " in planned.stderr
    expected = json.loads(call("run", job, "--dry-run", "-o", "json").stdout)["expected"]
    assert (expected["measured_runs"], expected["measured_scores"]) == (1, {"luma-sharpness": 1})
    assert expected["seconds"] > 0
    assert expected["cost"] == pytest.approx(expected["core_hours"] * 7.2)
    assert expected["decode_cores_per_gpu"] is None

    call("run", job)
    with kvq_batch.open(str(tmp_path / "tables")) as tables:
        rows: list[dict[str, Any]] = tables.sql("SELECT * FROM runs ORDER BY commit_seq").to_pylist()
    assert [row["expected_s"] is None for row in rows] == [True, False]
    assert rows[1]["expected_s"] == pytest.approx(expected["seconds"])
    assert rows[1]["expected_cost"] == pytest.approx(expected["cost"])
    assert all(0 < row["startup_s"] <= row["seconds"] for row in rows)
    assert all(row["core_hours"] > 0 and row["gpu_hours"] == 0 for row in rows)
    assert "is a folder" in call("run", job, "--report", tmp_path, exit_code=2).stderr
    nothing = json.loads(call("run", job, "--output", "json", "--report", tmp_path / "report.html").stdout)
    assert rows[1]["run_id"] in (tmp_path / "report.html").read_text()
    assert (nothing["state"], nothing["core_hours"], nothing["cost"]) == ("finished", 0.0, 0.0)
    assert "expected" not in call("plan", job).stderr

    asked = ("forecast", job, "--videos", "1e6", "--cores")
    record = json.loads(call(*asked, "64", "-o", "json").stdout)
    assert (record["job"], record["videos"], record["megapixels"]) == ("j", 1_000_000, None)
    assert record["cluster"] == {"cores": 64, "gpus": 0, "idle_cores": 0, "idle_gpus": 0}
    expected = record["expected"]
    assert sum(stage["workers"] for stage in expected["stages"]) == 64
    # Which stage is the slowest with videos this small depends on the machine.
    slower = expected["bound_by"]
    assert slower == max(expected["stages"], key=lambda stage: stage["work_hours"] / stage["workers"])["stage"]
    assert expected["measured_scores"] == {"luma-sharpness": 3}
    assert expected["core_hours"] == pytest.approx(64 * expected["seconds"] / 3600)
    assert expected["cost"] == pytest.approx(expected["core_hours"] * 7.2)
    more = json.loads(call(*asked, "640", "-o", "json").stdout)["expected"]
    assert more["seconds"] < expected["seconds"] / 9
    table = call(*asked, "64", "--gpus", "2")
    assert "j: 1,000,000 videos" in table.stdout
    assert [line.split()[0] for line in table.stdout.splitlines()[-3:]] == ["decode", "luma-sharpness", "driver"]
    assert f"bound by {slower}" in table.stderr
    assert "2 GPUs stay idle" in table.stderr
    assert len(call(*asked, "64", "-o", "csv").stdout.splitlines()) == 4
    assert "but the cluster has 2 cores" in call(*asked, "2", exit_code=2).stderr
    assert "videos of two sizes" in call(*asked, "64", "--megapixels", "221", exit_code=2).stderr


def test_forecast_without_runs_says_what_to_do(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(folder=tmp_path))
    rejected = call("forecast", job, "--videos", "1e8", "--cores", "4096", exit_code=2).stderr
    assert "No timing data for decode and luma-sharpness" in rejected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (41.6, "42 s"), (120, "2 min 0 s"), (3600, "1 h"), (7640, "2 h 7 min"), (273_600, "3 d 4 h")],
)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert duration(seconds) == text
