"""Scorers and poolers of VSFA and VSFA_CNN: chunks of frames in, partial results out; then one prediction a video.

Axes: T frames, F features, R reduced features.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.backbones.frame_features import FrameFeatureScorer, reducing_scorer
from kvq_batch.models.checkpoints.networks import build_network
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.torch_device import set_up_device
from kvq_batch.models.vsfa.config import VsfaConfig
from kvq_batch.models.vsfa.network import VsfaHead

_FIXED_POINT = 2.0**24
"""Features are rounded to 6e-8, so that their sums in float64 are exact, in any order, up to 5e8."""


def build_vsfa(spec: ScorerSpec, backbone: Tensors, head: Tensors, options: ModelOptions) -> FrameFeatureScorer:
    """Return the scorer of VSFA. Its partial result is the reduced features of each frame, float32 [T, R].

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """
    return reducing_scorer(spec, backbone, _head(head, set_up_device(options)).reduction, options)


class VsfaPooler:
    """`Pooler` of VSFA: the recurrent part of the head, over all frames. The score is that of the authors' demo."""

    def __init__(self, head: Tensors) -> None:
        self._head = _head(head, torch.device("cpu"))

    @torch.inference_mode()
    def pool(self, partial: NDArray[Any]) -> Prediction:
        """See `Pooler.pool`; `partial` is [T, R]."""
        return Prediction(self._head.score(torch.tensor(partial)).item())


def _head(tensors: Tensors, device: torch.device) -> VsfaHead:
    return build_network(lambda: VsfaHead(VsfaConfig()), tensors, device)


def build_vsfa_cnn(spec: ScorerSpec, backbone: Tensors, options: ModelOptions) -> FrameFeatureScorer:
    """Return the scorer of VSFA_CNN. Its partial result is the sum of the features, float64 [1, F], and the count.

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """
    return FrameFeatureScorer(spec, backbone, sum_of_features, options)


def sum_of_features(features: Iterator[Tensor]) -> Tensor:
    """Return the sum of rows [1, F] and their number, float64 [1, F + 1]."""
    rows = torch.cat(list(features)).double()
    total = torch.round(rows * _FIXED_POINT).sum(0, keepdim=True) / _FIXED_POINT
    return torch.cat([total, total.new_full((1, 1), len(rows))], 1)


class MeanPooler:
    """`Pooler` of features: their mean over all frames. There is no score."""

    def pool(self, partial: NDArray[Any]) -> Prediction:
        """See `Pooler.pool`; `partial` is float64 [chunks, F + 1]."""
        total = partial.sum(0)
        return Prediction(0.0, features=(total[:-1] / total[-1]).astype(np.float32))
