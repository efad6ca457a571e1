"""The regression protocol repeats splits, selection and metrics of scikit-learn's own run (golden_svr.npz)."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.svm import SVR

from kvq_batch.evaluation.svr_protocol import (
    COSTS,
    GAMMAS,
    MinMax,
    Real,
    Rows,
    best_parameters,
    make_split,
    replace_undefined,
    run_split,
    selection_errors,
    study_metrics,
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


def make_table(num_videos: int, num_features: int) -> tuple[Real, Real]:
    """Return correlated features of very different scales, one constant and two equal videos, and labels of 1..5."""
    random = np.random.default_rng(3)
    causes = random.normal(size=(num_videos, 12))
    features = causes @ random.normal(size=(12, num_features)) + random.normal(size=(num_videos, num_features))
    features *= 10.0 ** random.uniform(-3, 3, num_features)
    features[:, 5], features[9] = 7.0, features[4]
    return features, np.clip(3 + 0.5 * causes[:, 0] + 0.3 * random.normal(size=num_videos), 1, 5)


def predict_with_rbf(features: Real, labels: Real, train: Rows, test: Rows, cost: float, gamma: float) -> Real:
    """Return what scikit-learn predicts with its own kernel."""
    scaling = MinMax(features[train])
    machine = SVR(kernel="rbf", C=cost, gamma=gamma, epsilon=0.1, tol=1e-3)
    return np.asarray(machine.fit(scaling(features[train]), labels[train]).predict(scaling(features[test])))


def test_predictions_equal_those_of_the_rbf_kernel() -> None:
    features, labels = make_table(120, 500)
    for number in (1, 2):
        found = run_split(features, labels, number)
        expected = predict_with_rbf(features, labels, found.split.train, found.split.test, found.cost, found.gamma)
        np.testing.assert_allclose(found.predictions, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_features", [3, 300])
def test_every_cost_and_gamma_is_compared(num_features: int) -> None:
    """With 300 features most costs give one machine, with 3 features each gives its own."""
    features, labels = make_table(60, max(num_features, 6))
    features = features[:, :num_features]
    split = make_split(len(labels), 1)
    found = selection_errors(features, labels, split.fit, split.select).reshape(len(COSTS), len(GAMMAS))
    predictions = [
        [predict_with_rbf(features, labels, split.fit, split.select, cost, gamma) for gamma in GAMMAS] for cost in COSTS
    ]
    chosen = labels[split.select]
    expected = np.array([[study_metrics(values, chosen, ("rmse",))["rmse"] for values in row] for row in predictions])
    # A curve through predictions that are nearly constant is ill-conditioned.
    is_stable = np.std(predictions, axis=-1) > 0.01
    assert is_stable.mean() > 0.5
    np.testing.assert_allclose(found[is_stable], expected[is_stable], rtol=0, atol=1e-6)
    num_machines = len(np.unique(np.round(np.array(predictions)[:, -4], 9), axis=0))
    assert num_machines == len(COSTS) if num_features == 3 else num_machines < len(COSTS) / 2
