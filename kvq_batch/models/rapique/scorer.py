"""Scorers of RAPIQUE's features: measured NSS features, and ResNet-50 on the centre of each second.

Axes: T chunks, H rows, W columns.
"""

import torch
from torch import Tensor

from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.backbones.resnet import ResNet50, spatial_mean
from kvq_batch.models.checkpoints.networks import build_network
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.rapique.config import NUM_BEFORE_CNN
from kvq_batch.models.torch_device import ClipScorer


class CnnScorer(ClipScorer):
    """A `Scorer` of the 2048 features of RAPIQUE's network alone.

    Raises:
        SpecError: the device is a GPU, and the machine has none.
    """

    def __init__(self, spec: ScorerSpec, backbone: Tensors, options: ModelOptions) -> None:
        super().__init__(spec, options)
        self._backbone = build_network(ResNet50, backbone, self._device)

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the features of a clip, pictures uint8 RGB [T, H, W, 3]."""
        return Prediction(0.0, features=cnn_features(self._backbone, arrays[0]).cpu().numpy())


class RapiqueScorer(CnnScorer):
    """A `Scorer` of all 3884 features."""

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the features of a clip: NSS features float32 [1, 1836], and pictures uint8 RGB [T, H, W, 3]."""
        nss, pictures = arrays
        cnn = cnn_features(self._backbone, pictures)
        features = torch.cat([nss[0, :NUM_BEFORE_CNN], cnn, nss[0, NUM_BEFORE_CNN:]])
        return Prediction(0.0, features=features.cpu().numpy())


def cnn_features(backbone: ResNet50, pictures_THW3: Tensor) -> Tensor:
    """Return the mean over pictures of the mean of each channel over space, [2048]."""
    # One picture at a time, so that the mean does not depend on a batch.
    vectors = [spatial_mean(backbone(normalise(picture[None, None])[:, :, 0])) for picture in pictures_THW3]
    return torch.cat(vectors).double().mean(0).float()
