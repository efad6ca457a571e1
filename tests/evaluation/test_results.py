"""Rows and files of an evaluation: what a reader finds in them is what the metrics said."""

import json
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.labelled import Asked, Labelled, join_labels
from kvq_batch.evaluation.results import ALL, COLUMNS, calibration, evaluate, rows_of, write_files
from kvq_batch.evaluation.scatter import HEIGHT_PX, MAX_GROUPS, WIDTH_PX, Scatter, draw_scatter, ticks
from kvq_batch.labels.files import Scale, read_labels
from kvq_batch.metrics.logistic import Logistic
from kvq_batch.tables.session import open_session
from tests.support.evaluation_tables import NUM, Study, make_study
from tests.support.results import KVQ, LUMA


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def labelled(study: Study) -> Labelled:
    with open_session(study.tables) as session:
        return join_labels(session, read_labels(study.labels), Asked(by="country", source="scene_id"))


def test_rows_are_all_videos_and_then_each_segment(study: Study, labelled: Labelled) -> None:
    rows = rows_of(labelled, evaluate(labelled, n_resamples=100))
    assert [(row["model_id"], row["segment"], row["videos"], row["sources"]) for row in rows] == [
        (KVQ.model_id, ALL, NUM, 12),
        (KVQ.model_id, "CH", NUM // 2, 12),
        (KVQ.model_id, "DE", NUM // 2, 12),
        (LUMA.model_id, ALL, NUM // 2, 6),
        (LUMA.model_id, "CH", NUM // 4, 6),
        (LUMA.model_id, "DE", NUM // 4, 6),
    ]
    assert {row["dataset"] for row in rows} == {"study"}
    assert all(tuple(row) == COLUMNS for row in rows)
    assert rows[1]["srcc"] == pytest.approx(stats.spearmanr(study.scores[::2], study.values[::2]).statistic)
    assert rows[3]["srcc"] < -0.8


def test_files_hold_what_the_rows_say(study: Study, labelled: Labelled, tmp_path: Path) -> None:
    results = evaluate(labelled, n_resamples=100)
    written = write_files(labelled, results, tmp_path / "new" / "out", Scale(0, 100))
    assert {path.name for path in written} == {path.name for path in (tmp_path / "new" / "out").iterdir()}
    rows = rows_of(labelled, results)
    assert pq.read_table(tmp_path / "new/out/agreement.parquet").to_pylist() == rows
    from_csv = pyarrow.csv.read_csv(tmp_path / "new/out/agreement.csv").to_pylist()
    assert [row["srcc_low"] for row in from_csv] == [row["srcc_low"] for row in rows]
    videos = pq.read_table(tmp_path / "new/out/videos.parquet").to_pylist()
    assert len(videos) == NUM + NUM // 2
    first = videos[0]
    assert (first["video_id"], first["segment"], first["source"]) == (study.videos[0], "CH", "scene00")
    assert (first["raw_score"], first["label"]) == (study.scores[0], study.values[0])
    assert first["residual"] == pytest.approx(first["fitted"] - first["label"])
    errors = [row["residual"] for row in videos if row["model_id"] == KVQ.model_id]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(rows[0]["rmse"])


def test_the_calibration_is_the_curve_that_gives_labels(study: Study, labelled: Labelled, tmp_path: Path) -> None:
    write_files(labelled, evaluate(labelled, n_resamples=100), tmp_path, Scale(0, 100))
    told = json.loads((tmp_path / f"{KVQ.model_id}.calibration.json").read_text())
    assert (told["calibration"], told["model_id"], told["scale"]) == ("study", KVQ.model_id, [0.0, 100.0])
    mos = told["b2"] + (told["b1"] - told["b2"]) / (1 + np.exp(-(study.scores - told["b3"]) / abs(told["b4"])))
    assert np.sqrt(((mos - study.values) ** 2).mean()) == pytest.approx(told["rmse"])
    assert stats.pearsonr(mos, study.values).statistic == pytest.approx(told["plcc"])


def test_a_calibration_stays_on_the_scale_of_its_labels(study: Study, labelled: Labelled) -> None:
    result = evaluate(labelled, n_resamples=100)[0]
    free = calibration(labelled, result, None)
    narrow = Scale(float(study.values.min()), float(study.values.max()))
    kept = calibration(labelled, result, narrow)
    assert not narrow.low <= min(free["b1"], free["b2"]) <= max(free["b1"], free["b2"]) <= narrow.high
    assert narrow.low <= min(kept["b1"], kept["b2"]) < max(kept["b1"], kept["b2"]) <= narrow.high
    assert free["rmse"] <= kept["rmse"] < 1.2 * free["rmse"]
    assert kept["srcc"] == free["srcc"]


def test_a_model_without_a_curve_has_no_calibration(study: Study, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("file,mos\nv000.mp4,1\nv001.mp4,2\nv002.mp4,3\nv003.mp4,4\n")
    with open_session(study.tables) as session:
        labelled = join_labels(session, read_labels(str(few)), Asked(models=("kvq-tiny",)))
    results = evaluate(labelled)
    names = {path.name for path in write_files(labelled, results, tmp_path / "out", None)}
    assert f"{KVQ.model_id}.png" in names
    assert not any(name.endswith(".calibration.json") for name in names)
    with pytest.raises(ValueError, match="no fitted curve"):
        calibration(labelled, results[0], None)


def test_a_step_makes_no_calibration(study: Study, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    half = study.scores > np.median(study.scores)
    lines = [f"{v},{50 + 40 * h + generator.normal():.2f}" for v, h in zip(study.videos, half, strict=True)]
    (tmp_path / "halves.csv").write_text("\n".join(["file,mos", *lines]) + "\n")
    with open_session(study.tables) as session:
        labelled = join_labels(session, read_labels(str(tmp_path / "halves.csv")), Asked(models=("kvq-tiny",)))
    results = evaluate(labelled, n_resamples=100)
    assert results[0].agreement.is_step
    names = {path.name for path in write_files(labelled, results, tmp_path / "out", None)}
    assert f"{KVQ.model_id}.png" in names
    assert not any(name.endswith(".calibration.json") for name in names)


def test_a_folder_that_is_a_file_is_refused(labelled: Labelled, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SpecError, match="out cannot be written"):
        write_files(labelled, evaluate(labelled, n_resamples=100), tmp_path / "out", None)


def scatter(num: int, groups: int | None = None) -> Scatter:
    x = np.linspace(-2, 2, num)
    names = None if groups is None else [f"a group with a long name {i % groups}" for i in range(num)]
    return Scatter(
        x, 50 + 20 * np.tanh(x), Logistic(70, 30, 0, 0.5), [("title", False), ("bad", True)], "x", "y", names
    )


@pytest.mark.parametrize(("num", "groups"), [(1, None), (40, 3), (40, MAX_GROUPS), (40, MAX_GROUPS + 1), (4000, None)])
def test_the_picture_has_points_curve_and_title(tmp_path: Path, num: int, groups: int | None) -> None:
    draw_scatter(scatter(num, groups), tmp_path / "deep" / "s.png")
    with Image.open(tmp_path / "deep" / "s.png") as picture:
        assert picture.size == (WIDTH_PX, HEIGHT_PX)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    assert red[:80].any(), "the warning"
    inside = pixels[110:640, 100:920]
    coloured = inside.max(axis=2) - inside.min(axis=2) > 40
    assert coloured.any(), "the points"
    assert num == 1 or (inside.max(axis=2) < 40).any(), "the curve"
    # Low scores lie low and left, high ones high and right.
    rows, columns = np.nonzero(coloured)
    assert num == 1 or rows[columns.argmin()] > rows[columns.argmax()]


def test_a_picture_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a picture is written as"):
        draw_scatter(scatter(5), tmp_path / "s.pdf")
    with pytest.raises(SpecError, match="no video to draw"):
        draw_scatter(scatter(0), tmp_path / "s.png")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (-0.3, 0.31, [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]),
        (1.02, 4.98, [1.5, 2, 2.5, 3, 3.5, 4, 4.5]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
