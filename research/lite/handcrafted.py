"""The first baseline: kernel ridge and support vectors over hand-made features, chosen on the validation sources.

It has no texture map, and so no figures of regions. Features are computed once: a file a version, in a folder named by
the code that made them.
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
from kvq_batch.training.validation import correlations
from research.lite import features
from research.lite.clips import LabelledSet

Real = NDArray[np.float64]

# Widths are in units of the number of features: standardised ones lie about sqrt(2 n) apart.
_GAMMAS = (0.3, 1.0, 2.0)
_ALPHAS = (0.01, 0.03, 0.1, 0.3)
_COSTS = (30.0, 100.0, 300.0)
# Grey area of SVR, in points of VMAF.
_EPSILON = 2.0
# Standardised features beyond this are foreign to the training set, and no distance says how foreign.
_CLIP = 4.0


def handcrafted_scores(rows: LabelledSet, folder: Path) -> Iterator[tuple[str, Real, dict[str, Any]]]:
    """Of each regressor its name, the scores of the test's versions, and what was chosen; features go into `folder`."""
    learnt, test = version_features(rows.learnt, folder), version_features(rows.test, folder)
    train, validation = rows.indices("train"), rows.indices("validation")
    labels = np.array([sample.label for sample in rows.learnt.samples])
    # Kernel ridge has no intercept: without it, it would draw scores towards 0.
    centre = labels[train].mean()
    # Which settings are best shows on a third of the versions, of all sources, for a tenth of the time.
    few = train[::3]
    bounded = FunctionTransformer(np.clip, kw_args={"a_min": -_CLIP, "a_max": _CLIP})
    for name, candidates in (("kernel ridge", _ridges), ("SVR", _machines)):
        started = time.monotonic()
        best: tuple[float, dict[str, Any], Any] | None = None
        for facts, regressor in candidates(learnt.shape[1]):
            model = make_pipeline(StandardScaler(), bounded, regressor)
            model.fit(learnt[few], labels[few] - centre)
            srcc, plcc = correlations(model.predict(learnt[validation]), labels[validation])
            if best is None or srcc + plcc > best[0]:
                best = srcc + plcc, facts, model
        assert best is not None
        _, chosen, model = best
        model.fit(learnt[train], labels[train] - centre)
        srcc, plcc = correlations(model.predict(learnt[validation]), labels[validation])
        facts = chosen | {"features": learnt.shape[1], "train_versions": len(train), "validation_srcc": srcc}
        facts |= {"validation_plcc": plcc, "fit_s": round(time.monotonic() - started, 1)}
        yield name, np.asarray(model.predict(test) + centre, np.float64), facts


def version_features(clips: RenditionFiles, folder: Path) -> Real:
    """Features [version, feature] of clips, found in `folder` or computed and kept there."""
    code = hashlib.sha256(Path(features.__file__).read_bytes()).hexdigest()[:12]
    kept = folder / f"features-{code}"
    kept.mkdir(parents=True, exist_ok=True)
    return np.stack([_version(path, kept / path.name, clips.layout.slot_frames) for path in clips.frames])


def _version(frames: Path, kept: Path, slot_frames: int) -> Real:
    if not kept.exists():
        found = features.features_of(np.asarray(load_array(frames)), slot_frames)
        partial = kept.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.array(list(found.values())), allow_pickle=False)
        partial.replace(kept)
    values: Real = np.load(kept, allow_pickle=False)
    return values


def _ridges(num_features: int) -> Iterator[tuple[dict[str, Any], Any]]:
    for gamma in _GAMMAS:
        for alpha in _ALPHAS:
            yield {"gamma": gamma, "alpha": alpha}, KernelRidge(alpha=alpha, gamma=gamma / num_features, kernel="rbf")


def _machines(num_features: int) -> Iterator[tuple[dict[str, Any], Any]]:
    for gamma in _GAMMAS:
        for cost in _COSTS:
            yield {"gamma": gamma, "C": cost}, SVR(C=cost, gamma=gamma / num_features, epsilon=_EPSILON)
