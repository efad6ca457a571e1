"""Baseline: kernel ridge and support vector regression on pooled features, selected on the validation split.

It has no texture map, so regions are not evaluated. Features are hand-made ones of `features`, computed once and stored
in one file per rendition, in a folder named by the digest of the code, or pooled measurements of the network itself.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVR

from kvq_batch.training.frame_files import RenditionFiles, load_array
from kvq_batch.training.measured_files import MeasuredFiles
from kvq_batch.training.validation import correlations
from research.lite import features
from research.lite.clips import LabelledSet

Real = NDArray[np.float64]

# Kernel widths relative to the number of features: standardised vectors are about sqrt(2 n) apart.
_GAMMAS = (0.3, 1.0, 2.0)
_ALPHAS = (0.01, 0.03, 0.1, 0.3)
_COSTS = (30.0, 100.0, 300.0)
# Insensitive zone of SVR, in points of VMAF.
_EPSILON = 2.0
# Standardised features beyond this are outliers of the training set, and are clipped.
_CLIP = 4.0


def regressor_scores(rows: LabelledSet, training: Real, test: Real) -> Iterator[tuple[str, Real, dict[str, Any]]]:
    """Yield the name of each regressor, its scores of the test renditions, and facts.

    `training` and `test` are features [rendition, feature] of the renditions of `rows`.
    """
    train, validation = rows.indices("train"), rows.indices("validation")
    labels = np.array([sample.label for sample in rows.training.samples])
    # Kernel ridge has no intercept, so labels are centred.
    centre = labels[train].mean()
    # Settings are selected on a third of the renditions, of all scenes, in a tenth of the time.
    few = train[::3]
    bounded = FunctionTransformer(np.clip, kw_args={"a_min": -_CLIP, "a_max": _CLIP})
    for name, candidates in (("kernel ridge", _ridges), ("SVR", _machines)):
        started = time.monotonic()
        best: tuple[float, dict[str, Any], Any] | None = None
        for facts, regressor in candidates(training.shape[1]):
            model = make_pipeline(StandardScaler(), bounded, regressor)
            model.fit(training[few], labels[few] - centre)
            srcc, plcc = correlations(model.predict(training[validation]), labels[validation])
            if best is None or srcc + plcc > best[0]:
                best = srcc + plcc, facts, model
        assert best is not None
        _, chosen, model = best
        model.fit(training[train], labels[train] - centre)
        srcc, plcc = correlations(model.predict(training[validation]), labels[validation])
        facts = chosen | {"features": training.shape[1], "train_renditions": len(train), "validation_srcc": srcc}
        facts |= {"validation_plcc": plcc, "fit_s": round(time.monotonic() - started, 1)}
        yield name, np.asarray(model.predict(test) + centre, np.float64), facts


def rendition_features(clips: RenditionFiles, folder: Path) -> Real:
    """Return the features [rendition, feature] of clips, from files in `folder`; compute and store missing ones."""
    code = hashlib.sha256(Path(features.__file__).read_bytes()).hexdigest()[:12]
    stored = folder / f"features-{code}"
    stored.mkdir(parents=True, exist_ok=True)
    return np.stack([_features(path, stored / path.name, clips.layout.slot_frames) for path in clips.frames])


def pooled_measurements(clips: MeasuredFiles) -> Real:
    """Return mean and standard deviation of each measurement over slots and tokens, [rendition, 2 * S]."""
    pooled = []
    for path, *_ in clips.measured:
        tokens = np.asarray(load_array(path), np.float64)
        tokens = tokens.reshape(-1, tokens.shape[-1])
        pooled.append(np.concatenate([tokens.mean(0), tokens.std(0)]))
    return np.stack(pooled)


def _features(frames: Path, stored: Path, slot_frames: int) -> Real:
    if not stored.exists():
        found = features.features_of(np.asarray(load_array(frames)), slot_frames)
        partial = stored.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.array(list(found.values())), allow_pickle=False)
        partial.replace(stored)
    values: Real = np.load(stored, allow_pickle=False)
    return values


def _ridges(num_features: int) -> Iterator[tuple[dict[str, Any], Any]]:
    for gamma in _GAMMAS:
        for alpha in _ALPHAS:
            yield {"gamma": gamma, "alpha": alpha}, KernelRidge(alpha=alpha, gamma=gamma / num_features, kernel="rbf")


def _machines(num_features: int) -> Iterator[tuple[dict[str, Any], Any]]:
    for gamma in _GAMMAS:
        for cost in _COSTS:
            yield {"gamma": gamma, "C": cost}, SVR(C=cost, gamma=gamma / num_features, epsilon=_EPSILON)
