"""Scorers and pooler of UVQ 1.5 and 1.0: chunks of frames of native size in, one score a second out, then their mean.

The official scripts resize with swscale. Here the bicubic kernel of torch, antialiased, is used and its result is
rounded to 8 bits: scores differ slightly. Frames after the end, which the official scripts fill with black and score,
are not scored.

Axes: T frames, H rows, W columns, C channels, n patches.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.checkpoints.networks import build_network
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.torch_device import ClipScorer
from kvq_batch.models.uvq.compression import PATCH as COMPRESSION_PATCH
from kvq_batch.models.uvq.compression import Compression10
from kvq_batch.models.uvq.config import (
    AGGREGATION,
    COMPRESSION,
    COMPRESSION_GRID_10,
    CONTENT,
    CONTENT_SIZE_10,
    DISTORTION,
    GRID_10,
    GRID_15,
    HEADS_10,
    RATE_10,
    SIZE_10,
    SIZE_15,
)
from kvq_batch.models.uvq.network import (
    PATCH,
    Aggregation10,
    Aggregation15,
    Content10,
    Content15,
    Distortion10,
    Distortion15,
    joined,
    patches_of,
)


class Uvq15Scorer(ClipScorer):
    """A `Scorer` of UVQ 1.5. Its partial result is the score of each frame, float32 [T, 1], in 1..5."""

    def __init__(self, spec: ScorerSpec, tensors: Mapping[str, Tensors], options: ModelOptions) -> None:
        super().__init__(spec, options)
        self._content = build_network(Content15, tensors[CONTENT], self._device)
        self._distortion = build_network(Distortion15, tensors[DISTORTION], self._device)
        self._aggregation = build_network(Aggregation15, tensors[AGGREGATION], self._device)

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the partial result of a chunk, uint8 RGB [T, H, W, 3]: one frame a second."""
        scores = torch.cat([self._score(in_range(landscape(frame))) for frame in arrays[0]])
        return Prediction(0.0, partial=scores[:, None].cpu().numpy())

    def _score(self, picture: Tensor) -> Tensor:
        patches = patches_of(picture[0], GRID_15, PATCH)
        # One by one: nine patches at once take nine times the memory and the same time on a CPU.
        distortion = torch.cat([self._distortion(patch[None]) for patch in patches])
        score: Tensor = self._aggregation(self._content(picture), joined(distortion, GRID_15))
        return score


class Uvq10Scorer(ClipScorer):
    """A `Scorer` of UVQ 1.0.

    Its partial result has two numbers for each second: the mean score of all heads, and the number of frames.
    """

    def __init__(self, spec: ScorerSpec, tensors: Mapping[str, Tensors], options: ModelOptions) -> None:
        super().__init__(spec, options)
        self._compression = build_network(Compression10, tensors[COMPRESSION], self._device)
        self._content = build_network(Content10, tensors[CONTENT], self._device)
        self._distortion = build_network(Distortion10, tensors[DISTORTION], self._device)
        self._heads = [build_network(Aggregation10, tensors[head], self._device) for head in HEADS_10]

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the partial result of a chunk, uint8 RGB [T, H, W, 3]: five frames a second; the last may have less.

        The frames of a second that is not complete are followed by repetitions of the last one.
        """
        seconds = torch.split(arrays[0], RATE_10)
        rows = [[self._score(_completed(second)).item(), float(len(second))] for second in seconds]
        return Prediction(0.0, partial=np.array(rows, np.float32))

    def _score(self, frames: Tensor) -> Tensor:
        framed = torch.cat([bordered(frame) for frame in frames])
        pictures = in_range(framed)
        content, _ = self._content(in_range(resized(framed[:1], CONTENT_SIZE_10, "bilinear")))
        patches = patches_of(pictures[0], GRID_10, PATCH)
        distortion = torch.cat([self._distortion(patch[None])[0] for patch in patches])
        clips = patches_of(pictures.movedim(0, 1), COMPRESSION_GRID_10, COMPRESSION_PATCH)
        compression = torch.cat([self._compression(clip[None])[0] for clip in clips])
        parts = [joined(compression, COMPRESSION_GRID_10), content, joined(distortion, GRID_10)]
        return torch.stack([head(parts) for head in self._heads]).mean()


class SecondsPooler:
    """`Pooler` of scores of single seconds: their mean; each second is a time slot.

    A second with less than `num_frames` frames counts only if there is no other.
    """

    def __init__(self, num_frames: int = 1) -> None:
        self._num_frames = num_frames

    def pool(self, partial: NDArray[Any]) -> Prediction:
        """See `Pooler.pool`; `partial` is [seconds, 1], or [seconds, 2] with the number of frames."""
        is_complete = partial[:, -1] >= self._num_frames if partial.shape[1] > 1 else np.ones(len(partial), bool)
        scores = partial[is_complete if is_complete.any() else slice(None), 0]
        return Prediction(float(scores.mean(dtype=np.float64)), slot_scores=scores.astype(np.float32))


def _completed(frames: Tensor) -> Tensor:
    """Return five frames: those of a second, and repetitions of the last one."""
    return torch.cat([frames, frames[-1:].expand(RATE_10 - len(frames), -1, -1, -1)])


def landscape(frame_HW3: Tensor) -> Tensor:
    """Return a frame of UVQ 1.5, [1, 3, 1080, 1920] in 0..255: turned left if it is upright, and stretched."""
    if frame_HW3.shape[0] > frame_HW3.shape[1]:
        frame_HW3 = torch.rot90(frame_HW3)
    return resized(frame_HW3.movedim(2, 0)[None], SIZE_15, "bicubic")


def bordered(frame_HW3: Tensor) -> Tensor:
    """Return a frame of UVQ 1.0, [1, 3, 720, 1280] in 0..255: in its own shape, with black borders."""
    height, width = frame_HW3.shape[:2]
    factor = min(SIZE_10[0] / height, SIZE_10[1] / width)
    size = (min(SIZE_10[0], round(height * factor)), min(SIZE_10[1], round(width * factor)))
    picture = resized(frame_HW3.movedim(2, 0)[None], size, "bicubic")
    top, left = (SIZE_10[0] - size[0]) // 2, (SIZE_10[1] - size[1]) // 2
    return F.pad(picture, (left, SIZE_10[1] - size[1] - left, top, SIZE_10[0] - size[0] - top))


def resized(pictures: Tensor, size: tuple[int, int], mode: Literal["bicubic", "bilinear"]) -> Tensor:
    """Return pictures [T, 3, H, W] of 0..255 at another size, whole numbers in 0..255, float32."""
    if pictures.shape[2:] == size:
        return pictures.float()
    found = F.interpolate(pictures.float(), size, mode=mode, align_corners=False, antialias=True)
    return found.round_().clamp_(0, 255)


def in_range(pictures: Tensor) -> Tensor:
    """Return pictures of 0..255 in -1..1."""
    return pictures / 255 * 2 - 1
