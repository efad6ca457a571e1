"""The command `study` reports the medians of the golden splits and stores a regressor."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from kvq_batch.cli.app import app
from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.feature_sets import read_feature_sets
from kvq_batch.models.support_vectors import load_regressor
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer
from tests.goldens.study import recipe
from tests.support.results import KVQ, make_batch, make_catalog, make_model, make_run

GOLDEN = np.load(Path(recipe.__file__).parent / "golden_svr.npz", allow_pickle=False)


def write_features(folder: Path) -> Path:
    features, labels = recipe.svr_table()
    np.savez(folder / "table.npz", **{"synthetic.twelve": features, "synthetic.mos": labels})  # type: ignore[arg-type]
    return folder / "table.npz"


def call(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == exit_code, result.output
    return result


def test_study_reports_golden_medians_and_saves(tmp_path: Path) -> None:
    row = json.loads(call("study", str(write_features(tmp_path)), "--splits", "2", "--output", "json").stdout)[0]
    expected = np.median([GOLDEN["svr.1.metrics"], GOLDEN["svr.2.metrics"]], axis=0)
    assert [row[name] for name in ("srcc", "krcc", "plcc", "rmse")] == pytest.approx(expected.tolist(), abs=1e-4)
    assert (row["set"], row["dim"], row["undefined"]) == ("synthetic", 12, 3)
    # C and gamma are selected.
    features, labels = recipe.svr_table()
    np.savez(tmp_path / "few.npz", twelve=features[:25], mos=labels[:25])
    call("study", str(tmp_path / "few.npz"), "--splits", "0", "--save", str(tmp_path / "model.npz"))
    assert load_regressor(tmp_path / "model.npz").num_features == 12


def test_fusion_keeps_the_order_of_rapique(tmp_path: Path) -> None:
    arrays = {"nss": np.arange(20 * 1836.0).reshape(20, 1836), "cnn": np.zeros((20, 4)), "mos": np.arange(20.0)}
    np.savez(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
    fused = read_feature_sets(tmp_path / "set.npz")[0].systems["nss_cnn"]
    assert fused.shape == (20, 1840)
    assert fused[0, 1359:1366].tolist() == [1359, 0, 0, 0, 0, 1360, 1361]


def test_files_without_labels_can_only_be_predicted(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", nss=np.zeros((30, 3)))
    assert "has no opinion scores: add an array 'mos'" in call("study", str(tmp_path / "set.npz"), exit_code=2).output
    np.savez(tmp_path / "empty.npz", mos=np.zeros(30))
    with pytest.raises(SpecError, match="has no features"):
        read_feature_sets(tmp_path / "empty.npz")


def test_merged_sets_are_mapped_to_one_scale(tmp_path: Path) -> None:
    features, labels = recipe.svr_table()
    parts = {"a.x": features[:70], "a.mos": labels[:70], "b.x": features[70:], "b.mos": (labels[70:] - 1) * 25}
    np.savez(tmp_path / "sets.npz", **parts)  # type: ignore[arg-type]
    np.savez(tmp_path / "whole.npz", x=features, mos=labels)
    options = ["--splits", "0", "--cost", "4", "--gamma", "0.25", "--save"]
    merge = ["--merge", "--map", "b=1,0,0..100", *options, str(tmp_path / "merged_model.npz")]
    call("study", str(tmp_path / "sets.npz"), *merge)
    call("study", str(tmp_path / "whole.npz"), *options, str(tmp_path / "model.npz"))
    merged, whole = (load_regressor(tmp_path / f"{name}.npz") for name in ("merged_model", "model"))
    np.testing.assert_allclose(merged.predict(features), whole.predict(features), rtol=0, atol=2e-3)
    for options, message in (
        (["--map", "c=1,2,1..5"], "no set c"),
        (["--map", "a=1"], "expected SET=SLOPE,OFFSET,LOW..HIGH"),
        (["--save", "x.npz"], "needs one set"),
        (["--cost", "3"], "belong together"),
        (["--set", "c"], "No set c"),
    ):
        assert message in call("study", str(tmp_path / "sets.npz"), *options, exit_code=2).output.replace("\n", " ")


def test_saved_regressor_and_videval_predict(tmp_path: Path) -> None:
    path = write_features(tmp_path)
    call("study", str(path), "--splits", "0", "--cost", "4", "--gamma", "0.25", "--save", str(tmp_path / "m.npz"))
    result = call("study", str(path), "--system", "twelve", "--apply", str(tmp_path / "m.npz"), "-o", "json")
    rows = json.loads(result.stdout)
    expected = load_regressor(tmp_path / "m.npz").predict(recipe.svr_table()[0])
    np.testing.assert_allclose([row["predicted"] for row in rows], expected)
    assert (rows[3]["video"], "srcc" in result.stderr) == ("3", True)
    published = np.load(Path(recipe.__file__).parent / "golden_pictures.npz", allow_pickle=False)
    np.savez(tmp_path / "v.npz", videval=published["videval.features"], name=np.array(["x", "y", "z"]))
    result = call("study", str(tmp_path / "v.npz"), "--system", "videval", "--apply", "videval", "-o", "json")
    rows = json.loads(result.stdout)
    predicted = [row["predicted"] for row in rows[:2]]
    np.testing.assert_allclose(predicted, published["videval.published"][:2], rtol=0, atol=1e-8)
    assert [(row["video"], row["mos"]) for row in rows] == [("x", None), ("y", None), ("z", None)]


def test_stored_features_give_the_same_figures_as_a_file(tmp_path: Path) -> None:
    features, labels = recipe.svr_table()
    videos = [f"v{i:03d}" for i in range(len(labels))]
    tables = Tables.create(str(tmp_path / "tables"))
    writer = Writer(tables, "run-1")
    writer.write_models(make_model(KVQ))
    listed = make_catalog(videos).append_column("catalog", pa.array(["nightly"] * len(videos)))
    writer.write_catalog(listed.append_column("in_catalog", pa.array([True] * len(videos))))
    writer.write_run(make_run([KVQ], state="finished"))
    batch = make_batch(videos)
    keys = ("video_id", "content_id", "model_id", "fingerprint", "model_name")
    rows = [
        {name: row[name] for name in keys} | {"num_features": 12, "features": features[i].tolist()}
        for i, row in enumerate(batch.scores.to_pylist())
    ]
    writer.commit(replace(batch, maps=None, features=make_rows("features", rows)))
    lines = [f"{video},{label!r}" for video, label in zip(videos, labels.tolist(), strict=True)]
    (tmp_path / "study.csv").write_text("\n".join(["video,mos", *lines]) + "\n")
    stored = call("study", tables.uri, "--labels", str(tmp_path / "study.csv"), "--splits", "1", "-o", "json")
    row = json.loads(stored.stdout)[0]
    assert (row["system"], row["videos"], row["undefined"]) == (KVQ.name, 150, 3)
    # Features are stored as float32.
    assert row["srcc"] == pytest.approx(GOLDEN["svr.1.metrics"][0], abs=0.01)
    assert "have no opinions" in call("study", tables.uri, exit_code=2).output
    missing = call("study", tables.uri, "--labels", str(tmp_path / "study.csv"), "--system", "nss", exit_code=2)
    assert f"features of nss. Stored: {KVQ.name}" in missing.output.replace("\n", " ")


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    result = call("study", str(write_features(tmp_path)), "--splits", "1", exit_code=2)
    assert "pip install 'kvq-batch[study]'" in result.output
