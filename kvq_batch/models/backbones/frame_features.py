"""Features of every frame at native size from ResNet-50, which VSFA, VSFA_CNN and MDTVSFA share (STUDY_SPEC section 3).

A scorer returns partial results for a chunk of frames; the pooler of its family makes the prediction of the video. It
computes one frame at a time, so a result does not depend on where a video was cut into chunks.

Axes: T frames, H rows, W columns, F features.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kvq_batch.domain.errors import ScoreError
from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.backbones.resnet import ResNet50, spatial_mean, spatial_std
from kvq_batch.models.checkpoints.networks import build_network
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.torch_device import ClipScorer

_STEP = 32
"""Pixels per cell of the last stage."""

Reduce = Callable[[Iterator[Tensor]], Tensor]
"""Makes a partial result [n, p] of the features [1, F] of consecutive frames."""


class FrameFeatureScorer(ClipScorer):
    """A `Scorer` of a streamed request: the features of each frame, reduced to a partial result."""

    def __init__(self, spec: ScorerSpec, backbone: Tensors, reduce: Reduce, options: ModelOptions) -> None:
        super().__init__(spec, options)
        self._backbone = build_network(ResNet50, backbone, self._device)
        self._reduce = reduce

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the partial result of a chunk, uint8 RGB [T, H, W, 3].

        Raises:
            ScoreError: frames of one cell, whose features have no standard deviation.
        """
        (frames,) = arrays
        height, width = frames.shape[1:3]
        if max(height, width) <= _STEP:
            raise ScoreError(
                "frame_too_small",
                f"Its frames have {width} x {height} pixels. {self.spec.card.name} needs a side of more than {_STEP}.",
                True,
            )
        return Prediction(0.0, partial=self._reduce(frame_features(self._backbone, frames)).cpu().numpy())


def reducing_scorer(
    spec: ScorerSpec, backbone: Tensors, reduction: Callable[[Tensor], Tensor], options: ModelOptions
) -> FrameFeatureScorer:
    """Return a scorer whose partial result is what `reduction` makes of the features of each frame, float32 [T, R]."""
    return FrameFeatureScorer(spec, backbone, lambda rows: torch.cat([reduction(row) for row in rows]), options)


def frame_features(backbone: ResNet50, frames_THW3: Tensor) -> Iterator[Tensor]:
    """Yield the mean and the unbiased deviation of each channel over space, [1, F], for each frame, uint8 RGB."""
    for frame in frames_THW3:
        maps = backbone(normalise(frame[None, None])[:, :, 0])
        yield torch.cat([spatial_mean(maps), spatial_std(maps)], 1)
