"""VIDEVAL's regressor: an opinion score from 60 features that only the authors' MATLAB code computes.

It scores rows of features (`kvq-batch study FEATURES --apply videval`), not videos: as a model of a job it is rejected
with an error that says so. The trained regressor and its curve are those of vztu/VIDEVAL (VIDEVAL_LICENSE.txt, MIT).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.scorer import ModelOptions, Scorer, ScorerSpec
from kvq_batch.models.support_vectors import load_regressor

Real = NDArray[np.float64]

NUM_FEATURES = 60
REGRESSOR_FILE = Path(__file__).parent / "videval.npz"


def predict(features: NDArray[np.floating]) -> Real:
    """Return opinion scores of 1..5, float64 [N], for rows of features [N, 60]; undefined features count as 0.

    Raises:
        SpecError: the rows do not have 60 features.
    """
    if features.ndim != 2 or features.shape[1] != NUM_FEATURES:
        raise SpecError(f"videval needs rows of {NUM_FEATURES} features, got an array of shape {features.shape}.")
    with np.load(REGRESSOR_FILE, allow_pickle=False) as stored:
        b1, b2, b3, b4 = (float(value) for value in stored["logistic"])
    raw = load_regressor(REGRESSOR_FILE).predict(features)
    return np.asarray(b2 + (b1 - b2) / (1 + np.exp(-(raw - b3) / abs(b4))))


@dataclass(frozen=True, slots=True)
class VidevalFamily:
    """Rejects videos: VIDEVAL's features cannot be computed here."""

    name: str = "videval"
    summary: str = "VIDEVAL (IEEE TIP 2021): its regressor for tables of 60 features (`study --apply`); not for videos"

    def describe(self, options: ModelOptions) -> ScorerSpec:
        """Raise SpecError: the features of a video cannot be computed."""
        raise SpecError(
            f"Model {options.name!r} predicts from VIDEVAL's {NUM_FEATURES} features, which only the MATLAB code of "
            "its authors (vztu/VIDEVAL on GitHub, MIT) computes. Give a table of them to "
            "`kvq-batch study --apply videval`."
        )

    def build(self, options: ModelOptions) -> Scorer:
        """Raise SpecError: as `describe`."""
        self.describe(options)
        raise AssertionError("unreachable")


videval = VidevalFamily()
