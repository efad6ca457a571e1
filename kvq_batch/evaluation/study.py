"""Study of features of videos: how well a regressor on each system of features predicts opinion scores."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvq_batch.evaluation.feature_sets import FeatureSet, Real
from kvq_batch.evaluation.svr_protocol import (
    METRICS,
    best_parameters,
    make_split,
    replace_undefined,
    run_split,
    selection_errors,
    study_metrics,
    train_regressor,
)
from kvq_batch.models.support_vectors import SupportVectorRegressor, load_regressor

_NUM_SELECTIONS = 3
VIDEVAL = "videval"
"""Name of the included regressor for VIDEVAL's features, as a value of `--apply`."""


def study_rows(
    sets: Sequence[FeatureSet],
    systems: Sequence[str],
    num_splits: int,
    after_split: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Yield one row for each set and system: medians and population standard deviations over the splits.

    Without `systems` all systems of a set are studied. `split_core_s` is the mean time of a split: training,
    selection of C and gamma, and prediction.

    Raises:
        SpecError: an unknown system, too few opinions, or scikit-learn is not installed.
    """
    for item in sets:
        for system in systems or sorted(item.systems):
            stored, labels = item.system(system), item.opinions
            features = replace_undefined(stored)
            started, splits = time.process_time(), []
            for number in range(1, num_splits + 1):
                splits.append(run_split(features, labels, number))
                after_split()
            row: dict[str, Any] = {
                "set": item.name,
                "system": system,
                "videos": len(features),
                "dim": features.shape[1],
                "splits": num_splits,
                "undefined": int(np.count_nonzero(~np.isfinite(stored))),
            }
            for metric in METRICS:
                values = [split.metrics[metric] for split in splits]
                row |= {metric: float(np.median(values)), f"{metric}_std": float(np.std(values))}
            yield row | {"split_core_s": (time.process_time() - started) / num_splits}


def train_on_all(
    features: Real, labels: Real, parameters: tuple[float, float] | None = None
) -> tuple[SupportVectorRegressor, float, float]:
    """Return the regressor that is trained on all videos, C and gamma.

    Without `parameters`, (C, gamma), those of least mean error in three splits are taken.
    """
    if parameters is None:
        errors = []
        for number in range(1, _NUM_SELECTIONS + 1):
            split = make_split(len(labels), number)
            errors.append(selection_errors(features, labels, split.train, split.test))
        parameters = best_parameters(np.mean(errors, axis=0))
    cost, gamma = parameters
    return train_regressor(features, labels, cost, gamma), cost, gamma


def predictor(name: str) -> Callable[[Real], Real]:
    """Return what predicts opinions of rows of features: a regressor of a file, or `VIDEVAL`.

    Raises:
        SpecError: the file is not a regressor.
    """
    if name == VIDEVAL:
        from kvq_batch.models.videval.family import predict

        return predict
    return load_regressor(Path(name)).predict


def predicted_rows(item: FeatureSet, system: str, predict: Callable[[Real], Real]) -> list[dict[str, Any]]:
    """Return the prediction for each video of a set: set, video, mos (None without opinions), predicted."""
    predictions = predict(item.system(system))
    labels: Sequence[float | None] = [None] * len(predictions) if item.labels is None else item.labels.tolist()
    return [
        {"set": item.name, "video": video, "mos": mos, "predicted": float(value)}
        for video, mos, value in zip(item.videos, labels, predictions, strict=True)
    ]


def prediction_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """Return the metrics of predicted rows, PLCC and RMSE after a logistic fit; None without opinions."""
    if not rows or any(row["mos"] is None for row in rows):
        return None
    predictions, labels = (np.array([row[name] for row in rows], np.float64) for name in ("predicted", "mos"))
    return study_metrics(predictions, labels)
