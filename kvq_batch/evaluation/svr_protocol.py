"""Support vector regression on features of videos, by the protocol of 100 splits that the literature reports.

Each split trains on 80% of the videos and tests on 20%. C and gamma are selected on a fifth of the training part, by
the RMSE after a logistic curve. Studies report medians and population standard deviations over the splits (STUDY_SPEC
section 5). Axes: N videos, F features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import kendalltau, spearmanr

from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.logistic import Logistic, fit_logistic
from kvq_batch.models.support_vectors import SupportVectorRegressor

Real = NDArray[np.float64]
Rows = NDArray[np.int64]

COSTS = tuple(2.0**power for power in range(1, 11))
GAMMAS = tuple(2.0**power for power in range(-8, 2))
NUM_SPLITS = 100
METRICS = ("srcc", "krcc", "plcc", "rmse")

_TEST_SHARE = 0.2
# Of the support vector machine, as in the published protocol.
_EPSILON, _TOLERANCE = 0.1, 1e-3


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers of split number `number`: `fit` and `select` are the two parts of `train`."""

    number: int
    train: Rows
    test: Rows
    fit: Rows
    select: Rows


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Result of one split: RMSE of each (C, gamma) on the selection part, C outermost; predictions and metrics."""

    split: Split
    selection_rmse: Real
    cost: float
    gamma: float
    predictions: Real
    metrics: dict[str, float]


def make_split(num_videos: int, number: int) -> Split:
    """Return the rows of split `number`, from 1."""
    # In float64 8.8 * 25 is a little more than 220, so its ceiling is 221: the published splits depend on it.
    train, test = _divide(num_videos, math.ceil(8.8 * number))
    fit, select = _divide(len(train), math.ceil(6.6 * number))
    return Split(number, train, test, train[fit], train[select])


def _divide(num: int, seed: int) -> tuple[Rows, Rows]:
    """Return training and test rows as scikit-learn's `train_test_split` draws them."""
    order = np.random.RandomState(seed).permutation(num)
    num_test = math.ceil(_TEST_SHARE * num)
    return order[num_test:], order[:num_test]


def replace_undefined(features: NDArray[np.floating]) -> Real:
    """Return features with NaN and infinite values set to 0, as the published protocol does."""
    return np.nan_to_num(np.asarray(features, np.float64), nan=0.0, posinf=0.0, neginf=0.0)


class MinMax:
    """Scaling of features to 0..1 on the rows that it is fitted to; a constant column becomes 0."""

    def __init__(self, features: Real) -> None:
        self.low = features.min(axis=0)
        spread = features.max(axis=0) - self.low
        self.scale = 1 / np.where(spread > 0, spread, 1.0)

    def __call__(self, features: Real) -> Real:
        scaled: Real = (features - self.low) * self.scale
        return scaled


def run_split(features: Real, labels: Real, number: int) -> SplitResult:
    """Return the result of one split of `features` [N, F] (finite) and `labels` [N]."""
    split = make_split(len(labels), number)
    errors = selection_errors(features, labels, split.fit, split.select)
    cost, gamma = best_parameters(errors)
    scaling = MinMax(features[split.train])
    train, test = scaling(features[split.train]), scaling(features[split.test])
    machine = _machine(cost).fit(np.exp(-gamma * _distances(train, train)), labels[split.train])
    predictions = machine.predict(np.exp(-gamma * _distances(test, train)))
    return SplitResult(split, errors, cost, gamma, predictions, study_metrics(predictions, labels[split.test]))


def selection_errors(features: Real, labels: Real, fit: Rows, select: Rows) -> Real:
    """Return the RMSE of each (C, gamma) on the rows `select` after training on `fit`, float64 [100], C outermost."""
    scaling = MinMax(features[fit])
    known, unknown = scaling(features[fit]), scaling(features[select])
    own, other = _distances(known, known), _distances(unknown, known)
    errors = np.empty((len(COSTS), len(GAMMAS)))
    # One kernel serves all costs.
    for j, gamma in enumerate(GAMMAS):
        kernel, cross = np.exp(-gamma * own), np.exp(-gamma * other)
        before = None
        for i, cost in enumerate(COSTS):
            machine = _machine(cost).fit(kernel, labels[fit])
            if before is not None and _is_same(machine, before):
                # No coefficient reached the smaller cost while the solver ran, so none reaches a larger one either:
                # every larger cost gives this machine. With many features most machines are such.
                errors[i:, j] = errors[i - 1, j]
                break
            errors[i, j] = study_metrics(machine.predict(cross), labels[select], ("rmse",))["rmse"]
            before = machine
    return errors.ravel()


def _is_same(a: Any, b: Any) -> bool:
    """Return whether two machines have the same support vectors, coefficients and intercept, bit by bit."""
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("support_", "dual_coef_", "intercept_"))


def best_parameters(errors: Real) -> tuple[float, float]:
    """Return the (C, gamma) with the smallest error, the first of equal ones."""
    best = int(np.argmin(errors))
    return COSTS[best // len(GAMMAS)], GAMMAS[best % len(GAMMAS)]


def study_metrics(predictions: Real, labels: Real, names: Sequence[str] = METRICS) -> dict[str, float]:
    """Return SRCC and KRCC of predictions, and PLCC and RMSE after a logistic curve that is fitted to them.

    The curve starts at the highest and lowest label, the mean prediction and a width of 0.5. If it does not converge,
    the predictions are used as they are.
    """
    found: dict[str, float] = {}
    if "srcc" in names:
        found["srcc"] = float(spearmanr(predictions, labels).statistic)
    if "krcc" in names:
        found["krcc"] = float(kendalltau(predictions, labels).statistic)
    start = Logistic(float(labels.max()), float(labels.min()), float(predictions.mean()), 0.5)
    curve = fit_logistic(predictions, labels, start=start)
    fitted = predictions if isinstance(curve, str) else curve(predictions)
    if "plcc" in names:
        found["plcc"] = float(np.corrcoef(fitted, labels)[0, 1])
    found["rmse"] = float(np.sqrt(np.mean((fitted - labels) ** 2)))
    return found


def train_regressor(features: Real, labels: Real, cost: float, gamma: float) -> SupportVectorRegressor:
    """Return the regressor that is trained on all rows with these parameters."""
    scaling = MinMax(features)
    scaled = scaling(features)
    # Not `_distances`, which rounds differently: regressors that are made again equal stored ones bit by bit.
    machine = _machine(cost).fit(np.exp(-gamma * cdist(scaled, scaled, "sqeuclidean")), labels)
    return SupportVectorRegressor(
        vectors=scaled[machine.support_],
        weights=machine.dual_coef_.ravel(),
        intercept=float(machine.intercept_[0]),
        gamma=gamma,
        scale=scaling.scale,
        offset=-scaling.low * scaling.scale,
    )


def _distances(a: Real, b: Real) -> Real:
    """Return squared distances as |a|^2 - 2 a b + |b|^2, float64 [rows of a, rows of b].

    The matrix product takes a tenth of the time of differences. It rounds to 1e-14 of the largest distance, which moves
    predictions by less than 1e-9.
    """
    distances = -2 * (a @ b.T)
    distances += np.einsum("nf,nf->n", a, a)[:, np.newaxis]
    distances += np.einsum("nf,nf->n", b, b)
    if a is b:
        # Rounding would leave 1e-12. The solver breaks ties by such differences, and would take other steps.
        np.fill_diagonal(distances, 0)
    return np.maximum(distances, 0, out=distances)


def _machine(cost: float) -> Any:
    """Return an untrained epsilon-SVR of scikit-learn on a precomputed kernel. Raises: SpecError if not installed."""
    try:
        from sklearn.svm import SVR
    except ImportError as error:
        raise SpecError(
            "Training regressors needs scikit-learn. Install it:  pip install 'kvq-batch[study]'"
        ) from error

    return SVR(kernel="precomputed", C=cost, epsilon=_EPSILON, tol=_TOLERANCE, cache_size=500)
