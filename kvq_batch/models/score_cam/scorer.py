"""Scorers of the saliency systems: frames of 224 x 224 in, maps and features out (STUDY_SPEC section 4).

A map takes 513 passes of VGG-16: use a GPU.

Axes: T frames, H rows, W columns.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kvq_batch.domain.scorer import ModelOptions, Prediction, ScorerSpec
from kvq_batch.models.backbones.imagenet import RESNET50, VGG16
from kvq_batch.models.backbones.resnet import ResNet50, spatial_mean, spatial_std
from kvq_batch.models.backbones.vgg import NUM_MAPS, Vgg16
from kvq_batch.models.checkpoints.networks import build_network
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.score_cam.config import CELL_PX
from kvq_batch.models.score_cam.network import score_cam
from kvq_batch.models.score_cam.similarity import saliency_similarity
from kvq_batch.models.torch_device import ClipScorer

# Passes of VGG-16 at once. On a CPU more are not faster.
_BATCH = {"cpu": 8, "cuda": 128}


class SaliencyScorer(ClipScorer):
    """A `Scorer` of SALIENCY: the profile of the mean map as features, and the map of each frame.

    `num_masks` is the number of maps of VGG-16 that take part.
    """

    def __init__(
        self, spec: ScorerSpec, tensors: Mapping[str, Tensors], options: ModelOptions, num_masks: int = NUM_MAPS
    ) -> None:
        super().__init__(spec, options)
        self._vgg = build_network(Vgg16, tensors[VGG16], self._device)
        self._num_masks = num_masks

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the prediction of frames uint8 RGB [T, H, W, 3]."""
        maps_THW = torch.stack([saliency for _, saliency in self.saliency_of(arrays[0])])
        profile = maps_THW.double().mean((0, 1)).float()
        return Prediction(0.0, saliency=stored_maps(maps_THW).cpu().numpy(), features=profile.cpu().numpy())

    def saliency_of(self, frames_THW3: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each frame, normalised [1, 3, H, W], with its saliency [H, W] in 0..1."""
        batch = _BATCH[self._device.type]
        for frame in frames_THW3:
            x = normalise(frame[None, None])[:, :, 0]
            yield x, score_cam(self._vgg, x, self._num_masks, batch).saliency


class SaliencySumScorer(SaliencyScorer):
    """A `Scorer` of VSFACNN_SALIENCY: features of frames whose saliency was added to their pixels."""

    def __init__(
        self, spec: ScorerSpec, tensors: Mapping[str, Tensors], options: ModelOptions, num_masks: int = NUM_MAPS
    ) -> None:
        super().__init__(spec, tensors, options, num_masks)
        self._resnet = build_network(ResNet50, tensors[RESNET50], self._device)

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the prediction of frames uint8 RGB [T, H, W, 3]."""
        rows = []
        for x, saliency in self.saliency_of(arrays[0]):
            maps = self._resnet(x + saliency)
            rows.append(torch.cat([spatial_mean(maps), spatial_std(maps)], 1))
        return Prediction(0.0, features=torch.cat(rows).double().mean(0).float().cpu().numpy())


class SimilarityScorer(SaliencySumScorer):
    """A `Scorer` of Algorithm 3: how similar the deep features of a frame are to its saliency, for each frame."""

    def score_clip(self, *arrays: Tensor) -> Prediction:
        """Return the prediction of frames uint8 RGB [T, H, W, 3]."""
        cosines = []
        for x, saliency in self.saliency_of(arrays[0]):
            deep = spatial_mean(self._resnet(x))[0]
            cosines.append(saliency_similarity(deep.cpu().numpy(), saliency.cpu().numpy())[0])
        return Prediction(0.0, {"similarity": float(np.mean(cosines))}, slot_scores=np.array(cosines, np.float32))


def stored_maps(maps_THW: Tensor) -> Tensor:
    """Return maps [T, H / 16, W / 16] with mean 1 over the cells of each frame; ones where nothing is salient."""
    cells = F.avg_pool2d(maps_THW[:, None], CELL_PX)[:, 0]
    means = cells.mean((1, 2), keepdim=True)
    return torch.where(means > 0, cells / means.clamp_min(torch.finfo(cells.dtype).tiny), torch.ones_like(cells))
