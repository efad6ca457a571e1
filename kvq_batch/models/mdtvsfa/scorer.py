"""Scorer and pooler of MDTVSFA: chunks of frames in, reduced features out; then one prediction a video.

Axes: T frames, F features, R reduced features.
"""

from typing import Any

import torch
from numpy.typing import NDArray

from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.backbones.frame_features import FrameFeatureScorer, reducing_scorer
from kvq_batch.models.checkpoints.networks import build_network
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.mdtvsfa.config import DATA_SETS, MixedHeadConfig
from kvq_batch.models.mdtvsfa.network import MixedHead, MixedScore
from kvq_batch.models.torch_device import set_up_device


def build_mdtvsfa(spec: ScorerSpec, backbone: Tensors, head: Tensors, options: ModelOptions) -> FrameFeatureScorer:
    """Return the scorer of MDTVSFA. Its partial result is the reduced features of each frame, float32 [T, R].

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """
    reduction = build_head(MixedHeadConfig(), head, set_up_device(options)).reduction
    return reducing_scorer(spec, backbone, reduction, options)


class MixedPooler:
    """`Pooler` of MDTVSFA: the recurrent part of the head, over all frames."""

    def __init__(self, head: Tensors) -> None:
        self._head = build_head(MixedHeadConfig(), head, torch.device("cpu"))

    @torch.inference_mode()
    def pool(self, partial: NDArray[Any]) -> Prediction:
        """See `Pooler.pool`; `partial` is [T, R]."""
        return prediction(self._head.score(torch.tensor(partial)))


def build_head(config: MixedHeadConfig, tensors: Tensors, device: torch.device) -> MixedHead:
    """Return the head with these tensors."""
    return build_network(lambda: MixedHead(config), tensors, device)


def prediction(score: MixedScore) -> Prediction:
    """Return the mapped quality as the raw score, the relative and the aligned ones as outputs."""
    aligned = {DATA_SETS[name]: value for name, value in score.aligned.items()}
    return Prediction(score.mapped, {"relative": score.relative, **aligned})
