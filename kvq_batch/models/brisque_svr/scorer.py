"""Scorer of BRISQUE features with a support vector regressor, in numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.scorer import Prediction, ScorerSpec
from kvq_batch.features.brisque import live_features
from kvq_batch.features.nss_maps import video_luma
from kvq_batch.features.pooling import mean_of_defined
from kvq_batch.models.support_vectors import SupportVectorRegressor


class BrisqueSvrScorer:
    """A `Scorer` that averages the BRISQUE features of a clip's frames and predicts a MOS of 1..5 from them.

    Features of a flat picture are undefined. They count as 0, as in training.
    """

    def __init__(self, spec: ScorerSpec, regressor: SupportVectorRegressor) -> None:
        self._spec = spec
        self._regressor = regressor

    @property
    def spec(self) -> ScorerSpec:
        return self._spec

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Return one prediction per clip, in order; clips are uint8 RGB [T, H, W, 3] of native size."""
        return [self._predict(clip) for clip in clips]

    def _predict(self, clip: NDArray[np.uint8]) -> Prediction:
        features = mean_of_defined(np.stack([live_features(video_luma(frame)) for frame in clip]))
        features = np.nan_to_num(features, nan=0.0, posinf=0.0, neginf=0.0)
        score = float(self._regressor.predict(features[None])[0])
        return Prediction(raw_score=score, features=features.astype(np.float32))
