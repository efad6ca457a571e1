"""The command `study` reports the medians of the golden splits and stores a regressor."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kvq_batch.cli.app import app
from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.study import read_feature_sets
from kvq_batch.models.support_vectors import load_regressor
from tests.goldens.study import recipe

GOLDEN = np.load(Path(recipe.__file__).parent / "golden_svr.npz", allow_pickle=False)


def write_features(folder: Path) -> Path:
    features, labels = recipe.svr_table()
    np.savez(folder / "table.npz", **{"synthetic.twelve": features, "synthetic.mos": labels})  # type: ignore[arg-type]
    return folder / "table.npz"


def test_study_reports_golden_medians_and_saves(tmp_path: Path) -> None:
    path, model = write_features(tmp_path), tmp_path / "model.npz"
    options = ["study", str(path), "--splits", "2", "--save", str(model), "--output", "json"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)[0]
    expected = np.median([GOLDEN["svr.1.metrics"], GOLDEN["svr.2.metrics"]], axis=0)
    assert [row[name] for name in ("srcc", "krcc", "plcc", "rmse")] == pytest.approx(expected.tolist(), abs=1e-4)
    assert (row["set"], row["dim"], row["undefined"]) == ("synthetic", 12, 3)
    assert load_regressor(model).num_features == 12


def test_fusion_keeps_the_order_of_rapique(tmp_path: Path) -> None:
    arrays = {"nss": np.arange(20 * 1836.0).reshape(20, 1836), "cnn": np.zeros((20, 4)), "mos": np.arange(20.0)}
    np.savez(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
    fused = read_feature_sets(tmp_path / "set.npz")[0].systems["nss_cnn"]
    assert fused.shape == (20, 1840)
    assert fused[0, 1359:1366].tolist() == [1359, 0, 0, 0, 0, 1360, 1361]


def test_files_without_labels_are_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", nss=np.zeros((30, 3)))
    with pytest.raises(SpecError, match="has no array 'mos'"):
        read_feature_sets(tmp_path / "set.npz")
