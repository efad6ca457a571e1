"""Study of features of videos: how well a regressor on each system of features predicts opinion scores.

A file of features is an npz file of `SYSTEM` [N, F] arrays and `mos` [N]. Names may have the prefix `SET.`, so that one
file holds several sets. Fused systems are made of stored ones (STUDY_SPEC section 4.3).
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.svr_protocol import (
    METRICS,
    Real,
    best_parameters,
    make_split,
    replace_undefined,
    run_split,
    selection_errors,
    train_regressor,
)
from kvq_batch.models.rapique.config import NUM_BEFORE_CNN
from kvq_batch.models.support_vectors import SupportVectorRegressor

MIN_VIDEOS = 20
"""Videos that a set needs, so that each part of a split has some."""

FUSIONS = {
    "nss_saliency": ("nss", "saliency"),
    "nss_cnn": ("nss", "cnn"),
    "nss_cnn_saliency": ("nss", "cnn", "saliency"),
    "cnn_saliency": ("cnn", "saliency"),
    "nss_vsfacnn": ("nss", "vsfacnn"),
    "nss_vsfacnn_saliency": ("nss", "vsfacnn_saliency"),
}
_NUM_SELECTIONS = 3


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Features [N, F] of each system, and the opinion scores [N] of the same videos."""

    name: str
    systems: dict[str, Real]
    labels: Real


def read_feature_sets(path: Path) -> list[FeatureSet]:
    """Return the sets of a file. Arrays that are neither features nor `mos` are ignored; no code of the file is run.

    Raises:
        SpecError: the file cannot be read, has no set, or a set has too few videos or labels that are not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            prefixes = [name[: -len("mos")] for name in stored.files if name == "mos" or name.endswith(".mos")]
            found = [_read_set(stored, prefix, path) for prefix in prefixes]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SpecError(f"Cannot read features from {path}: {error}. Expected an npz file.") from error
    if not found:
        raise SpecError(f"{path} has no array 'mos' or 'SET.mos'. It needs one beside the features of each set.")
    return found


def _read_set(stored: Any, prefix: str, path: Path) -> FeatureSet:
    labels = np.asarray(stored[f"{prefix}mos"], np.float64)
    name = prefix.rstrip(".") or path.stem
    if len(labels) < MIN_VIDEOS or not np.isfinite(labels).all():
        raise SpecError(
            f"Set {name!r} of {path} needs at least {MIN_VIDEOS} finite opinion scores; it has {len(labels)}."
        )
    systems = {}
    for key in stored.files:
        system = key[len(prefix) :]
        # The names of videos may be stored as objects, which are not read.
        if key.startswith(prefix) and "." not in system and not system.startswith(("mos", "id", "name", "resolution")):
            array = stored[key]
            if array.ndim == 2 and len(array) == len(labels) and np.issubdtype(array.dtype, np.number):
                systems[system] = np.asarray(array, np.float64)
    for fused, parts in FUSIONS.items():
        if all(part in systems for part in parts):
            systems[fused] = _fuse([systems[part] for part in parts], parts)
    return FeatureSet(name, systems, labels)


def _fuse(arrays: Sequence[Real], parts: Sequence[str]) -> Real:
    if parts[:2] == ("nss", "cnn"):
        before, after = np.split(arrays[0], [NUM_BEFORE_CNN], axis=1)
        arrays = [before, arrays[1], after, *arrays[2:]]
    return np.concatenate(arrays, axis=1)


def study_rows(sets: Sequence[FeatureSet], systems: Sequence[str], num_splits: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each set and system: medians and population standard deviations over the splits.

    Without `systems` all systems of a set are studied.
    """
    for item in sets:
        for system in systems or sorted(item.systems):
            if system not in item.systems:
                known = ", ".join(sorted(item.systems))
                raise SpecError(f"Set {item.name!r} has no system {system!r}. It has: {known}.")
            features = replace_undefined(item.systems[system])
            splits = [run_split(features, item.labels, number) for number in range(1, num_splits + 1)]
            row: dict[str, Any] = {
                "set": item.name,
                "system": system,
                "videos": len(features),
                "dim": features.shape[1],
                "splits": num_splits,
                "undefined": int(np.count_nonzero(~np.isfinite(item.systems[system]))),
            }
            for metric in METRICS:
                values = [split.metrics[metric] for split in splits]
                row |= {metric: float(np.median(values)), f"{metric}_std": float(np.std(values))}
            yield row


def train_on_all(features: Real, labels: Real) -> tuple[SupportVectorRegressor, float, float]:
    """Return the regressor that is trained on all videos, with the C and gamma of least mean error in three splits."""
    errors = []
    for number in range(1, _NUM_SELECTIONS + 1):
        split = make_split(len(labels), number)
        errors.append(selection_errors(features, labels, split.train, split.test))
    cost, gamma = best_parameters(np.mean(errors, axis=0))
    return train_regressor(features, labels, cost, gamma), cost, gamma
