"""Luma and sharpness statistics of a clip, in numpy alone.

The handcrafted scorer: it goes the whole way of a video without a network, and is the template for the next scorer. It
measures some frames, not all, and deliberately returns no maps.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.scorer import Prediction, ScorerSpec
from kvq_batch.models.luma_sharpness.config import LumaConfig

# Luma is kept in 256ths: whole numbers below 2^16, so that sums are exact and the same in any order.
_UNIT = 256


class LumaSharpnessScorer:
    """Implements `kvq_batch.domain.scorer.Scorer`.

    Outputs, of 8-bit luma Y (0..255) over the measured frames: `luma_mean`; `luma_std`, over all their pixels;
    `sharpness`, mean |4 Y - up - down - left - right| over inner pixels; `temporal_difference`, mean |Y' - Y| of the
    measured pairs of neighbours, 0 for a clip of one frame. The raw score is `sharpness`: sharper, or noisier.
    """

    def __init__(self, spec: ScorerSpec, config: LumaConfig) -> None:
        self._spec = spec
        self._config = config

    @property
    def spec(self) -> ScorerSpec:
        return self._spec

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """One prediction per clip, in order; clips uint8 RGB [T, H, W, 3] of any size, frames at least 3x3 pixels."""
        return [self._predict(clip) for clip in clips]

    def _predict(self, clip: NDArray[np.uint8]) -> Prediction:
        starts = pair_starts(len(clip), self._config.num_pairs)
        frames = [frame for start in starts for frame in (start, start + 1)] or [0]
        lumas = [luma(clip[frame], self._config.luma) for frame in frames]
        mean = np.mean([y.mean() for y in lumas])
        square = np.mean([np.square(y, dtype=np.float32).mean(dtype=np.float64) for y in lumas])
        sharpness = np.mean([np.abs(laplacian(y)).mean() for y in lumas]) / _UNIT
        moved = [np.abs(after - before).mean() for before, after in zip(lumas[::2], lumas[1::2], strict=False)]
        outputs = {
            "luma_mean": float(mean) / _UNIT,
            "luma_std": float(np.sqrt(max(0.0, square - mean**2))) / _UNIT,
            "sharpness": float(sharpness),
            "temporal_difference": float(np.mean(moved)) / _UNIT if moved else 0.0,
        }
        return Prediction(raw_score=outputs["sharpness"], outputs=outputs)


def pair_starts(num_frames: int, num_pairs: int) -> list[int]:
    """First frames of the measured pairs, evenly spread; none where there is but one frame."""
    pairs = min(num_pairs, num_frames // 2)
    return [pair * (num_frames // pairs) for pair in range(pairs)]


def luma(frame: NDArray[np.uint8], weights: tuple[int, int, int]) -> NDArray[np.int32]:
    """Luma of an RGB frame [H, W, 3] in 256ths, int32 [H, W], 0..65280."""
    # The sum of the weights is 256, so 16 bits hold it, and take a third of the time of 32.
    total = np.multiply(frame[..., 0], weights[0], dtype=np.uint16)
    for channel in (1, 2):
        total += np.multiply(frame[..., channel], weights[channel], dtype=np.uint16)
    return total.astype(np.int32)


def laplacian(y: NDArray[np.int32]) -> NDArray[np.int32]:
    """4 y - up - down - left - right at the inner pixels: int32 [H - 2, W - 2]."""
    inner = 4 * y[1:-1, 1:-1]
    for neighbour in (y[:-2, 1:-1], y[2:, 1:-1], y[1:-1, :-2], y[1:-1, 2:]):
        inner -= neighbour
    return inner
