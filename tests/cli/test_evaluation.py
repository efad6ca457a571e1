"""The evaluate commands: data on stdout in three formats, what was left out on stderr."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner, Result

from kvq_batch.cli.app import app
from tests.support.evaluation_tables import NUM, Study, make_study
from tests.support.region_set import make_region_set
from tests.support.results import KVQ, LUMA


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


def call(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == exit_code, result.output
    return result


def evaluate(study: Study, *arguments: str, exit_code: int = 0) -> Result:
    return call(
        "evaluate", "scores", study.tables, study.labels, "--bootstrap-samples", "100", *arguments, exit_code=exit_code
    )


def test_formats_agree(study: Study) -> None:
    record = json.loads(evaluate(study, "--by", "country", "-o", "json").stdout)
    assert record["labels"]["num_labels"] == NUM
    assert record["labels"]["matched_by"] == {"file name": NUM}
    assert [row["segment"] for row in record["results"]] == ["(all)", "CH", "DE"] * 2
    srcc = stats.spearmanr(study.scores, study.values).statistic
    assert record["results"][0]["srcc"] == pytest.approx(srcc)
    rows = list(csv.DictReader(io.StringIO(evaluate(study, "--by", "country", "-o", "csv").stdout)))
    assert [float(row["krcc"]) for row in rows] == [row["krcc"] for row in record["results"]]
    assert rows[0]["srcc_within"] == ""
    table = evaluate(study, "--reference", "scene_id").stdout
    assert f"{srcc:.3f} [" in table
    assert "srcc_within" in table


def test_messages_say_what_was_left_out(study: Study, tmp_path: Path) -> None:
    labels = tmp_path / "some.txt"
    labels.write_text("v000.mp4, -1, -1, 10\nv031.mp4, -1, -1, 20\nholiday.mp4, -1, -1, 30\n")
    result = call("evaluate", "scores", study.tables, str(labels))
    for words in (
        "some: 3 labels; four fields a line (file, -1, -1, mos); 10 to 30, scale unknown (set it with --scale 0..100)",
        "matched 2 by file name",
        "1 labels have no video; first: 'holiday.mp4': no such video",
        f"{NUM - 2} videos have no label; first: scene00/v001.mp4",
        f"1 labelled videos have no score of {LUMA.model_id}; first: scene06/v031.mp4",
        f"UNTRAINED: the weights of {KVQ.model_id} are random",
    ):
        assert words in result.stderr
    assert "2 videos; at least 4 are needed" in result.stdout


def test_files_are_written_to_out(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluate(study, "--out", str(out), "--model", "luma", "--scale", "0..100")
    assert {path.name for path in out.iterdir()} == {
        *("agreement.csv", "agreement.parquet", "videos.csv", "videos.parquet"),
        *(f"{LUMA.model_id}.png", f"{LUMA.model_id}.calibration.json"),
    }
    assert f"{LUMA.model_id}.calibration.json" in result.stderr
    assert "UNTRAINED" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "1..5"], "is outside the scale 1..5"),
        (["--scale", "high"], "expected the lowest and the highest label"),
        (["--model", "nope"], "no score of model nope"),
        (["--by", "nothing"], "nothing"),
        (["--mos-column", "dmos"], "no column 'dmos'"),
    ],
)
def test_invalid_arguments_are_rejected(study: Study, arguments: list[str], message: str) -> None:
    result = evaluate(study, *arguments, exit_code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_regions_are_scored_by_a_real_network(tmp_path: Path) -> None:
    """A KVQ network on the LPVQ format. The weights are random, so only the form of the results is known."""
    make_region_set(tmp_path, num=2)
    arguments = ["evaluate", "regions", str(tmp_path), "--model", "kvq-tiny", "--bootstrap-samples", "100"]
    result = call(*arguments, "--out", str(tmp_path / "out"), "--by", "[01]", "-o", "json")
    rows = json.loads(result.stdout)
    assert [row["group"] for row in rows] == ["(all)", "(all)", "0", "0", "1", "1"]
    assert [row["cells_of"] for row in rows] == ["inter-sample", "intra-sample"] * 3
    assert all(-1 <= row["srcc"] <= 1 and 0 <= row["auc"] <= 1 for row in rows)
    assert "LPVQ: 2 files, kvq-tiny@untrained-" in result.stderr
    assert "a still is 16 equal frames" in result.stderr
    assert "UNTRAINED" in result.stderr
    from_csv = list(csv.DictReader(io.StringIO((tmp_path / "out" / "regions.csv").read_text())))
    assert [float(row["srcc"]) for row in from_csv] == [row["srcc"] for row in rows]


def test_invalid_region_set_is_rejected(tmp_path: Path) -> None:
    rejected = call("evaluate", "regions", str(tmp_path), "--model", "kvq-tiny", exit_code=2)
    assert "no labels/<set>.txt with a folder <set>" in rejected.stderr
    make_region_set(tmp_path)
    rejected = call("evaluate", "regions", str(tmp_path), "--model", "luma-sharpness", exit_code=2)
    assert "has no texture map" in rejected.stderr


def test_calibrate_computes_mos_by_the_fitted_curve(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    evaluate(study, "--out", str(tmp_path / "out"), "--model", "luma", "--scale", "0..100")
    file = tmp_path / "out" / f"{LUMA.model_id}.calibration.json"
    message = call("calibrate", study.tables, str(file)).stderr
    assert f"mos of {LUMA.model_id} is now computed by calibration 'study'" in message
    sql = "SELECT mos FROM scores_latest WHERE model_name = 'luma' ORDER BY video_id"
    rows = json.loads(call("query", study.tables, sql, "-o", "json").stdout)
    fitted = list(csv.DictReader(io.StringIO((tmp_path / "out" / "videos.csv").read_text())))
    assert [row["mos"] for row in rows] == pytest.approx([float(row["fitted"]) for row in fitted])


def write_labels(path: Path, study: Study, values: list[float]) -> str:
    """Write labels by video id for the first videos of the study."""
    lines = [f"{video},{value:.4f}" for video, value in zip(study.videos, values, strict=False)]
    path.write_text("\n".join(["video_id,mos", *lines]) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("noise", "the 95% interval of SRCC contains 0"),
        ("few", "it was fitted on 29 scenes, expected at least 30"),
        ("ends", "of the fitted scores are within 2% of an end of the scale"),
        ("scenes", "it was fitted on 12 scenes, expected at least 30"),
    ],
)
def test_weak_calibration_is_rejected_without_force(tmp_path: Path, case: str, reason: str) -> None:
    study = make_study(tmp_path)
    values = {
        "noise": 50 + study.scores + 10 * np.random.default_rng(8).normal(size=NUM),
        "few": study.values[:29],
        # A steep slope: most labels are near 0 or 100.
        "ends": 50 + 50 * np.tanh(4 * study.scores),
        "scenes": study.values,
    }[case]
    labels = write_labels(tmp_path / f"{case}.csv", study, values.tolist())
    out = tmp_path / "out"
    options = ["--model", "kvq-tiny", "--scale", "0..100", "--out", str(out), "--bootstrap-samples", "200"]
    if case == "scenes":
        options += ["--reference", "regexp_extract(video_id, '^[^/]+')"]
    evaluated = call("evaluate", "scores", study.tables, labels, *options)
    name = f"{KVQ.model_id}.calibration.json"
    assert f"{name} is too weak for `mos`: " in evaluated.stderr
    assert reason in evaluated.stderr
    rejected = call("calibrate", study.tables, str(out / name), exit_code=2)
    assert reason in " ".join(rejected.stderr.split())
    assert "--force" in rejected.stderr
    assert json.loads(call("calibrate", study.tables, "--list", "-o", "json").stdout) == []
    forced = call("calibrate", study.tables, str(out / name), "--force").stderr
    assert "used although it is weak: " in forced
    assert f"mos of {KVQ.model_id} is now computed by calibration {case!r}" in forced


def test_calibrations_are_listed_used_and_removed(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    for name in ("first", "second"):
        labels = write_labels(tmp_path / f"{name}.csv", study, study.values.tolist())
        call("evaluate", "scores", study.tables, labels, "--out", str(tmp_path / name), "--bootstrap-samples", "100")
        call("calibrate", study.tables, str(tmp_path / name / f"{KVQ.model_id}.calibration.json"))

    def listed() -> list[tuple[str, str, bool]]:
        rows = json.loads(call("calibrate", study.tables, "--list", "-o", "json").stdout)
        return [(row["model_id"], row["calibration"], row["is_used"]) for row in rows]

    assert listed() == [(KVQ.model_id, "first", False), (KVQ.model_id, "second", True)]
    chosen = call("calibrate", study.tables, "--use", "first", "--model", "kvq-tiny").stderr
    assert f"mos of {KVQ.model_id} is now computed by calibration 'first'" in chosen
    assert sorted(listed()) == [(KVQ.model_id, "first", True), (KVQ.model_id, "second", False)]
    removed = call("calibrate", study.tables, "--remove", "first").stderr
    assert f"removed calibration 'first' of {KVQ.model_id}" in removed
    assert f"mos of {KVQ.model_id} is now computed by calibration 'second'" in removed
    assert (
        f"{KVQ.model_id} has no calibration: its mos is null"
        in call("calibrate", study.tables, "--remove", "second").stderr
    )
    assert listed() == []
    sql = "SELECT count(mos) AS n FROM scores_latest"
    assert json.loads(call("query", study.tables, sql, "-o", "json").stdout) == [{"n": 0}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give one of FILE, --list, --use and --remove"),
        (["--list", "--use", "x"], "Give one of FILE, --list, --use and --remove"),
        (["file.json", "--model", "kvq"], "--model does not apply to FILE"),
        (["--use", "x", "--force"], "--force applies to FILE only"),
        (["--use", "x"], "the tables have no calibration 'x'; they have none"),
        (["--remove", "x", "--model", "nope"], "the tables have no calibration 'x' of model nope; they have none"),
    ],
)
def test_invalid_calibrate_arguments_are_rejected(study: Study, arguments: list[str], message: str) -> None:
    assert message in " ".join(call("calibrate", study.tables, *arguments, exit_code=2).stderr.split())
