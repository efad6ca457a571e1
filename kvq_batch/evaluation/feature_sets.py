"""Sets of videos with features and opinion scores: from npz files, or from features that are stored in the tables.

A file is an npz file of `SYSTEM` [N, F] arrays and `mos` [N]. Names may have the prefix `SET.`, so that one file holds
several sets. In the tables a system is a model. Fused systems are made of stored ones (STUDY_SPEC section 4.3).
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.labels.files import Labels, NamedVideo, Scale, match_labels
from kvq_batch.models.rapique.config import NUM_BEFORE_CNN
from kvq_batch.tables.session import Session

Real = NDArray[np.float64]

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
_SYSTEM_OF_MODEL = {"cnn-resnet50": "cnn", "vsfa-cnn": "vsfacnn", "vsfa-cnn-saliency": "vsfacnn_saliency"}
"""Names that the literature has for models; other models are systems of their own name."""

_STORED = """
SELECT video_id, model_name, model_id, features FROM features_latest WHERE NOT is_stale AND num_features > 0
ORDER BY video_id
"""
_OPINIONS = "SELECT dataset, video_id, opinion FROM opinions ORDER BY dataset, video_id"
_VIDEOS = "SELECT video_id, uri FROM catalog ORDER BY video_id"


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Features [N, F] of each system, and opinion scores [N] and names of the same videos.

    Without opinion scores `labels` is None; such a set can only be predicted.
    """

    name: str
    systems: dict[str, Real]
    labels: Real | None
    videos: tuple[str, ...]

    @property
    def opinions(self) -> Real:
        """The opinion scores. Raises: SpecError if there are too few, or values that are not finite."""
        labels = self.labels
        if labels is None:
            raise SpecError(f"Set {self.name!r} has no opinion scores: add an array 'mos' or 'SET.mos'.")
        if len(labels) < MIN_VIDEOS or not np.isfinite(labels).all():
            raise SpecError(
                f"Set {self.name!r} needs at least {MIN_VIDEOS} finite opinion scores; it has {len(labels)}."
            )
        return labels

    def system(self, name: str) -> Real:
        """Return the features of a system. Raises: SpecError for an unknown name."""
        if name not in self.systems:
            known = ", ".join(sorted(self.systems))
            raise SpecError(f"Set {self.name!r} has no system {name!r}. It has: {known or 'none'}.")
        return self.systems[name]


def read_feature_sets(path: Path) -> list[FeatureSet]:
    """Return the sets of a file. Arrays that are neither features nor `mos` are ignored; no code of the file is run.

    Raises:
        SpecError: the file cannot be read, or has no features.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            prefixes = [name[: -len("mos")] for name in stored.files if name == "mos" or name.endswith(".mos")]
            found = [_read_set(stored, prefix, path) for prefix in prefixes or [""]]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SpecError(f"Cannot read features from {path}: {error}. Expected an npz file.") from error
    if not any(item.systems for item in found):
        raise SpecError(f"{path} has no features: expected arrays of two dimensions, one row a video.")
    return found


def _read_set(stored: Any, prefix: str, path: Path) -> FeatureSet:
    labels = np.asarray(stored[f"{prefix}mos"], np.float64) if f"{prefix}mos" in stored.files else None
    systems: dict[str, Real] = {}
    names: Sequence[str] | None = None
    for key in stored.files:
        part = key[len(prefix) :]
        if not key.startswith(prefix) or "." in part or part == "mos":
            continue
        try:
            array = stored[key]
        except ValueError:
            # Names of videos may be stored as objects, which are not read.
            continue
        if part in ("id", "name") and array.ndim == 1:
            names = [str(value) for value in array]
        num = len(array) if labels is None else len(labels)
        if array.ndim == 2 and len(array) == num and np.issubdtype(array.dtype, np.number):
            systems[part] = np.asarray(array, np.float64)
    num = len(next(iter(systems.values()))) if systems else 0
    if names is None or len(names) != num:
        names = [str(row) for row in range(num)]
    return FeatureSet(prefix.rstrip(".") or path.stem, _with_fusions(systems), labels, tuple(names))


def read_stored_features(session: Session, labels: Labels | None, systems: Sequence[str] = ()) -> list[FeatureSet]:
    """Return the sets of the tables: videos with an opinion, and current features of every system (model).

    `labels` is a list of labels; without one, each data set of the table `opinions` is a set. Without `systems`, all
    models with stored features are taken.

    Raises:
        SpecError: no features, no opinions, or two versions of a model.
    """
    features: dict[str, dict[str, Any]] = {}
    ids: dict[str, set[str]] = {}
    for row in session.sql(_STORED).to_pylist():
        system = _SYSTEM_OF_MODEL.get(row["model_name"], row["model_name"])
        features.setdefault(system, {})[row["video_id"]] = row["features"]
        ids.setdefault(system, set()).add(row["model_id"])
    parts = {part for name in systems for part in FUSIONS.get(name, (name,))}
    missing = sorted(parts - features.keys())
    if missing or not features:
        known = ", ".join(sorted(features)) or "none: store them with --features"
        raise SpecError(
            f"These tables have no current features of {', '.join(missing) or 'any model'}. Stored: {known}."
        )
    chosen = {name: rows for name, rows in features.items() if not parts or name in parts}
    for name in chosen:
        if len(ids[name]) > 1:
            raise SpecError(f"Features of {name} are of {len(ids[name])} versions: {', '.join(sorted(ids[name]))}.")
    found = []
    for dataset, opinions in _opinions(session, labels).items():
        videos = sorted(video for video in opinions if all(video in rows for rows in chosen.values()))
        arrays = {name: np.array([rows[video] for video in videos], np.float64) for name, rows in chosen.items()}
        values = np.array([opinions[video] for video in videos], np.float64)
        found.append(FeatureSet(dataset, _with_fusions(arrays) if videos else {}, values, tuple(videos)))
    return found


def _opinions(session: Session, labels: Labels | None) -> dict[str, dict[str, float]]:
    """Return {data set: {video: opinion}}."""
    if labels is not None:
        videos = [NamedVideo(row["video_id"], row["uri"], None) for row in session.sql(_VIDEOS).to_pylist()]
        matching = match_labels(labels.names, videos)
        pairs = zip(matching.video_of, labels.values.tolist(), strict=True)
        return {labels.dataset: {video: value for video, value in pairs if video is not None}}
    found: dict[str, dict[str, float]] = {}
    for row in session.sql(_OPINIONS).to_pylist():
        found.setdefault(row["dataset"], {})[row["video_id"]] = row["opinion"]
    if not found:
        raise SpecError("These tables have no opinions. Name a list with --labels, or import one: `labels import`.")
    return found


def _with_fusions(systems: dict[str, Real]) -> dict[str, Real]:
    """Return the systems and those that are made of them."""
    fused = {
        name: _fuse([systems[part] for part in parts], parts)
        for name, parts in FUSIONS.items()
        if all(part in systems for part in parts)
    }
    return systems | fused


def _fuse(arrays: Sequence[Real], parts: Sequence[str]) -> Real:
    if parts[:2] == ("nss", "cnn"):
        # In RAPIQUE's vector the features of the network are before the temporal ones.
        before, after = np.split(arrays[0], [NUM_BEFORE_CNN], axis=1)
        arrays = [before, arrays[1], after, *arrays[2:]]
    return np.concatenate(arrays, axis=1)


@dataclass(frozen=True, slots=True)
class Mapping:
    """Maps opinions of one set to the scale 1..5 of another: 5 - 4 (slope (high - y) / (high - low) + offset).

    This is the form in which iterated nested least squares are published (VIDEVAL, IEEE TIP 2021).
    """

    dataset: str
    slope: float
    offset: float
    scale: Scale

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse text such as "LIVE_VQC=0.7132,0.0253,0..100". Raises: SpecError."""
        dataset, _, rest = text.rpartition("=")
        try:
            slope, offset, scale = rest.split(",")
            found = cls(dataset, float(slope), float(offset), Scale.from_text(scale))
        except ValueError as error:
            raise SpecError(
                f"Invalid mapping {text!r}: expected SET=SLOPE,OFFSET,LOW..HIGH such as LIVE_VQC=0.7132,0.0253,0..100."
            ) from error
        if not np.isfinite([found.slope, found.offset]).all():
            raise SpecError(f"Invalid mapping {text!r}: slope and offset must be finite.")
        return found

    def __call__(self, opinions: Real) -> Real:
        high, low = self.scale.high, self.scale.low
        return np.asarray(5 - 4 * (self.slope * (high - opinions) / (high - low) + self.offset))


def map_labels(sets: Sequence[FeatureSet], mappings: Sequence[Mapping]) -> list[FeatureSet]:
    """Return the sets with mapped opinions.

    Raises:
        SpecError: a mapping of a set that does not exist.
    """
    of_set = {mapping.dataset: mapping for mapping in mappings}
    unknown = sorted(of_set.keys() - {item.name for item in sets})
    if unknown:
        raise SpecError(f"--map: no set {', '.join(unknown)}. Sets are {', '.join(item.name for item in sets)}.")
    return [replace(item, labels=of_set[item.name](item.opinions)) if item.name in of_set else item for item in sets]


def merge_sets(sets: Sequence[FeatureSet]) -> FeatureSet:
    """Return one set of all videos, in order, with the systems that every set has.

    Raises:
        SpecError: no common system, or one with different numbers of features.
    """
    common = [name for name in sets[0].systems if all(name in item.systems for item in sets)]
    if not common:
        raise SpecError("--merge: the sets have no system in common.")
    for name in common:
        sizes = {item.systems[name].shape[1] for item in sets}
        if len(sizes) > 1:
            raise SpecError(f"--merge: system {name!r} has {' and '.join(map(str, sorted(sizes)))} features.")
    return FeatureSet(
        "+".join(item.name for item in sets),
        {name: np.concatenate([item.systems[name] for item in sets]) for name in common},
        np.concatenate([item.opinions for item in sets]),
        tuple(f"{item.name}:{video}" for item in sets for video in item.videos),
    )
