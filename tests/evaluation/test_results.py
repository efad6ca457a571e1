"""Rows and files of an evaluation agree with the metrics."""

import json
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from scipy import stats

from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.scores import (
    ALL,
    COLUMNS,
    JoinOptions,
    Labelled,
    calibration,
    evaluate,
    join_labels,
    result_rows,
    write_files,
)
from kvq_batch.labels.files import Scale, read_labels
from kvq_batch.tables.session import open_session
from tests.support.evaluation_tables import NUM, Study, make_study
from tests.support.results import KVQ, LUMA


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def labelled(study: Study) -> Labelled:
    with open_session(study.tables) as session:
        return join_labels(session, read_labels(study.labels), JoinOptions(by="country", reference="scene_id"))


def test_rows_cover_all_videos_then_each_segment(study: Study, labelled: Labelled) -> None:
    rows = result_rows(labelled, evaluate(labelled, n_resamples=100))
    assert [(row["model_id"], row["segment"], row["videos"], row["references"]) for row in rows] == [
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


def test_files_match_the_rows(study: Study, labelled: Labelled, tmp_path: Path) -> None:
    results = evaluate(labelled, n_resamples=100)
    written = write_files(labelled, results, tmp_path / "new" / "out", Scale(0, 100))
    assert {path.name for path in written} == {path.name for path in (tmp_path / "new" / "out").iterdir()}
    rows = result_rows(labelled, results)
    assert pq.read_table(tmp_path / "new/out/agreement.parquet").to_pylist() == rows
    from_csv = pyarrow.csv.read_csv(tmp_path / "new/out/agreement.csv").to_pylist()
    assert [row["srcc_low"] for row in from_csv] == [row["srcc_low"] for row in rows]
    videos = pq.read_table(tmp_path / "new/out/videos.parquet").to_pylist()
    assert len(videos) == NUM + NUM // 2
    first = videos[0]
    assert (first["video_id"], first["segment"], first["reference"]) == (study.videos[0], "CH", "scene00")
    assert (first["raw_score"], first["label"]) == (study.scores[0], study.values[0])
    assert first["residual"] == pytest.approx(first["fitted"] - first["label"])
    errors = [row["residual"] for row in videos if row["model_id"] == KVQ.model_id]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(rows[0]["rmse"])


def test_calibration_reproduces_the_fitted_labels(study: Study, labelled: Labelled, tmp_path: Path) -> None:
    write_files(labelled, evaluate(labelled, n_resamples=100), tmp_path, Scale(0, 100))
    written = json.loads((tmp_path / f"{KVQ.model_id}.calibration.json").read_text())
    assert (written["calibration"], written["model_id"], written["scale"]) == ("study", KVQ.model_id, [0.0, 100.0])
    mos = written["b2"] + (written["b1"] - written["b2"]) / (
        1 + np.exp(-(study.scores - written["b3"]) / abs(written["b4"]))
    )
    assert np.sqrt(((mos - study.values) ** 2).mean()) == pytest.approx(written["rmse"])
    assert stats.pearsonr(mos, study.values).statistic == pytest.approx(written["plcc"])


def test_calibration_stays_on_the_scale(study: Study, labelled: Labelled) -> None:
    result = evaluate(labelled, n_resamples=100)[0]
    free = calibration(labelled, result, None)
    narrow = Scale(float(study.values.min()), float(study.values.max()))
    kept = calibration(labelled, result, narrow)
    assert not narrow.low <= min(free["b1"], free["b2"]) <= max(free["b1"], free["b2"]) <= narrow.high
    assert narrow.low <= min(kept["b1"], kept["b2"]) < max(kept["b1"], kept["b2"]) <= narrow.high
    assert free["rmse"] <= kept["rmse"] < 1.2 * free["rmse"]
    assert kept["srcc"] == free["srcc"]


def test_no_curve_means_no_calibration(study: Study, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("file,mos\nv000.mp4,1\nv001.mp4,2\nv002.mp4,3\nv003.mp4,4\n")
    with open_session(study.tables) as session:
        labelled = join_labels(session, read_labels(str(few)), JoinOptions(models=("kvq-tiny",)))
    results = evaluate(labelled)
    names = {path.name for path in write_files(labelled, results, tmp_path / "out", None)}
    assert "agreement.csv" in names
    assert not any(name.endswith(".calibration.json") for name in names)
    with pytest.raises(ValueError, match="no fitted curve"):
        calibration(labelled, results[0], None)


def test_step_curve_is_not_a_calibration(study: Study, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    half = study.scores > np.median(study.scores)
    lines = [f"{v},{50 + 40 * h + generator.normal():.2f}" for v, h in zip(study.videos, half, strict=True)]
    (tmp_path / "halves.csv").write_text("\n".join(["file,mos", *lines]) + "\n")
    with open_session(study.tables) as session:
        labelled = join_labels(session, read_labels(str(tmp_path / "halves.csv")), JoinOptions(models=("kvq-tiny",)))
    results = evaluate(labelled, n_resamples=100)
    assert results[0].agreement.is_step
    names = {path.name for path in write_files(labelled, results, tmp_path / "out", None)}
    assert "agreement.csv" in names
    assert not any(name.endswith(".calibration.json") for name in names)


def test_output_folder_that_is_a_file_is_rejected(labelled: Labelled, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SpecError, match="Cannot write to"):
        write_files(labelled, evaluate(labelled, n_resamples=100), tmp_path / "out", None)
