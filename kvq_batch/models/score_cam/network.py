"""Score-CAM saliency of VGG-16 (STUDY_SPEC section 4.1): which parts of a frame decide its class.

Every map of the last convolution masks the frame; the probability of the frame's class under the mask is the weight of
the map. As in the authors' code, a mask multiplies the normalised frame, and the sum is over maps that are not scaled.

Axes: M masks, H rows, W columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kvq_batch.models.backbones.vgg import NUM_MAPS, Vgg16


@dataclass(frozen=True, slots=True)
class ScoreCam:
    """Saliency of one frame: the map [H, W] in 0..1, float32; the weight of each mask [M]; and the class."""

    saliency: Tensor
    weights: Tensor
    label: int


def score_cam(network: Vgg16, frame: Tensor, num_masks: int = NUM_MAPS, batch: int = 16) -> ScoreCam:
    """Return the saliency of a normalised frame [1, 3, H, W], from its first `num_masks` maps.

    A constant map is skipped, with weight 0. If no map shows anything, the saliency is 0 everywhere.
    """
    maps = network.activations(frame)
    label = int(network.classify(maps).argmax())
    masks_MHW = F.interpolate(maps[0, :num_masks, None], frame.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    weights = torch.zeros(len(masks_MHW), dtype=torch.float32, device=frame.device)
    for used in _batches_of_varying(masks_MHW, batch):
        masks = masks_MHW[used]
        low, high = (extreme(masks.flatten(1), 1)[:, None, None] for extreme in (torch.amin, torch.amax))
        masked = frame * ((masks - low) / (high - low))[:, None]
        weights[used] = network(masked).softmax(1)[:, label]
    return ScoreCam(weighted_map(masks_MHW, weights), weights, label)


def weighted_map(masks_MHW: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of masks, scaled to 0..1, [H, W]; zeros if it is constant."""
    total = torch.relu(torch.tensordot(weights, masks_MHW, 1))
    low, high = total.min(), total.max()
    return torch.zeros_like(total) if low == high else (total - low) / (high - low)


def _batches_of_varying(masks_MHW: Tensor, batch: int) -> Iterator[Tensor]:
    """Yield the indices of masks that are not constant, in batches."""
    flat = masks_MHW.flatten(1)
    varying = torch.nonzero(flat.amax(1) != flat.amin(1))[:, 0]
    yield from torch.split(varying, batch)
