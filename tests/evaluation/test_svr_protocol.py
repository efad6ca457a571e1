"""The regression protocol repeats splits, selection and metrics of scikit-learn's own run (golden_svr.npz)."""

from pathlib import Path

import numpy as np
import pytest

from kvq_batch.evaluation.svr_protocol import (
    best_parameters,
    make_split,
    replace_undefined,
    run_split,
    train_regressor,
)
from kvq_batch.models.support_vectors import load_regressor, save_regressor
from tests.goldens.study import recipe

GOLDEN = np.load(Path(recipe.__file__).parent / "golden_svr.npz", allow_pickle=False)


@pytest.mark.parametrize("number", [1, 2])
def test_split_equals_golden(number: int) -> None:
    features, labels = recipe.svr_table()
    found = run_split(replace_undefined(features), labels, number)
    key = f"svr.{number}"
    split = found.split
    for rows, name in ((split.train, "train"), (split.test, "test"), (split.fit, "ptrain"), (split.select, "pvalid")):
        assert (rows == GOLDEN[f"{key}.{name}"]).all()
    np.testing.assert_allclose(found.selection_rmse, GOLDEN[f"{key}.val_rmse"], atol=1e-4)
    assert [found.cost, found.gamma] == GOLDEN[f"{key}.best"].tolist()
    np.testing.assert_allclose(found.predictions, GOLDEN[f"{key}.pred"], atol=1e-8)
    np.testing.assert_allclose(list(found.metrics.values()), GOLDEN[f"{key}.metrics"], atol=1e-4)


@pytest.mark.parametrize("number", [1, 2])
def test_rows_of_youtube_splits_equal_golden(number: int) -> None:
    assert (make_split(1039, number).test == GOLDEN[f"youtube.{number}.test"]).all()


def test_stored_regressor_predicts_the_same(tmp_path: Path) -> None:
    features, labels = recipe.svr_table()
    features = replace_undefined(features)
    cost, gamma = best_parameters(GOLDEN["svr.1.val_rmse"])
    split = make_split(len(labels), 1)
    regressor = train_regressor(features[split.train], labels[split.train], cost, gamma)
    np.testing.assert_allclose(regressor.predict(features[split.test]), GOLDEN["svr.1.pred"], atol=1e-8)
    save_regressor(regressor, tmp_path / "model.npz")
    again = load_regressor(tmp_path / "model.npz")
    np.testing.assert_allclose(again.predict(features), regressor.predict(features), atol=1e-5)
