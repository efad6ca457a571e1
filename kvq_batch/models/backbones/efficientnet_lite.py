"""Early and middle blocks of EfficientNet-Lite0 with weights of ImageNet, as frozen features of squares of a picture.

Tiles are small pictures of their own: no feature of a tile depends on its neighbours.

Axes: B pictures, C channels, H rows, W columns.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kvq_batch.domain.errors import CheckpointError
from kvq_batch.models.backbones.efficientnet import same_padding
from kvq_batch.models.backbones.lite_blocks import (
    STEM_CHANNELS,
    LiteBlock,
    convolution_shapes,
    feature_blocks,
    lite_blocks,
)
from kvq_batch.models.checkpoints.state_dict import as_array, read_state_dict
from kvq_batch.models.checkpoints.tensors import check_tensor

_NORM_EPS = 1e-3
# Pictures are (x - 127) / 128 (the authors' preprocessing).
_CENTRE, _RANGE = 127.0, 128.0


class FoldedConvolution(nn.Module):
    """Convolution with the padding "same" of TensorFlow, and optionally ReLU6."""

    def __init__(self, shape: tuple[int, ...], stride: int = 1, groups: int = 1, is_activated: bool = True) -> None:
        super().__init__()
        self._stride, self._groups, self._is_activated = stride, groups, is_activated
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(shape[0]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        rows, columns = (same_padding(extent, kernel, self._stride) for extent in x.shape[2:])
        padding = (rows[0], columns[0])
        if padding != (rows[1], columns[1]):
            x, padding = F.pad(x, (*columns, *rows)), (0, 0)
        x = F.conv2d(x, self.weight, self.bias, self._stride, padding, groups=self._groups)
        return F.relu6(x, inplace=True) if self._is_activated else x


class EfficientNetLite(nn.Module):
    """The stem and the first `num_blocks` blocks; frozen: no gradient flows back to the pixels."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self._blocks = lite_blocks(num_blocks)
        stem = FoldedConvolution(convolution_shapes(0)[0], stride=2)
        self.layers = nn.ModuleList([stem, *(layer for block in self._blocks for layer in _layers(block))])

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Return the output of every block for float32 RGB [B, 3, H, W] in grey levels, 0 to 255."""
        x = ((pictures - _CENTRE) / _RANGE).contiguous(memory_format=torch.channels_last)
        layers = iter(self.layers)
        x = next(layers)(x)
        found = []
        for block in self._blocks:
            inner = x
            for _ in block.shapes:
                inner = next(layers)(inner)
            x = x + inner if block.has_shortcut else inner
            found.append(x)
        return found


def _layers(block: LiteBlock) -> list[FoldedConvolution]:
    *expand, depthwise, project = block.shapes
    return [
        *(FoldedConvolution(shape) for shape in expand),
        FoldedConvolution(depthwise, block.stride, groups=block.width),
        FoldedConvolution(project, is_activated=False),
    ]


def square_features(outputs: list[Tensor], side: int) -> Tensor:
    """Return the features [B, H/side, W/side, S] of squares of `side` pixels: means, then deviations, of each block."""
    found = []
    for index in feature_blocks(len(outputs), side):
        output = outputs[index]
        count = side // lite_blocks(index + 1)[-1].step
        mean = F.avg_pool2d(output, count)
        found.append(mean)
        if count > 1:
            found.append((F.avg_pool2d(output * output, count) - mean * mean).clamp_(min=0).sqrt_())
    return torch.cat(found, dim=1).permute(0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class LiteWeights:
    """Weights and biases of the stem and the blocks with folded normalisation, and the scaling of the features.

    `factors` and `offsets` [S] bring `square_features` to order 1. They follow from the normalisation of each
    projection, whose output has a known mean and deviation on ImageNet; shortcuts add means and variances.
    """

    weights: list[NDArray[np.float32]]
    biases: list[NDArray[np.float32]]
    factors: NDArray[np.float32]
    offsets: NDArray[np.float32]


def load_efficientnet_lite(path: Path, num_blocks: int, side: int) -> LiteWeights:
    """Read a file of EfficientNet-Lite0 with the names of PyTorch ports, such as `_blocks.0._bn1.weight`.

    Raises:
        CheckpointError: a file that cannot be read, or tensors of another network.
    """
    source = str(path)
    state = read_state_dict(path, ("",))

    def tensor(name: str, *shape: int) -> NDArray[np.float64]:
        if name not in state:
            raise CheckpointError(f"{source}: {name} is missing. Use a file of EfficientNet-Lite0.")
        return check_tensor(name, as_array(name, state[name], source), shape, source).astype(np.float64)

    weights, biases = [], []

    def fold(name: str, norm: str, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Append a convolution; return the mean and the deviation of its normalised output."""
        gain, offset = tensor(f"{norm}.weight", shape[0]), tensor(f"{norm}.bias", shape[0])
        factor = gain / np.sqrt(tensor(f"{norm}.running_var", shape[0]) + _NORM_EPS)
        weights.append((tensor(f"{name}.weight", *shape) * factor[:, None, None, None]).astype(np.float32))
        biases.append((offset - tensor(f"{norm}.running_mean", shape[0]) * factor).astype(np.float32))
        return offset, np.abs(gain)

    fold("_conv_stem", "_bn0", (STEM_CHANNELS, 3, 3, 3))
    factors, offsets = [], []
    mean, variance = np.zeros(0), np.zeros(0)
    for index, block in enumerate(lite_blocks(num_blocks)):
        root = f"_blocks.{index}"
        *expand, depthwise, project = block.shapes
        for shape in expand:
            fold(f"{root}._expand_conv", f"{root}._bn0", shape)
        fold(f"{root}._depthwise_conv", f"{root}._bn1", depthwise)
        offset, deviation = fold(f"{root}._project_conv", f"{root}._bn2", project)
        if block.has_shortcut:
            mean, variance = mean + offset, variance + deviation**2
        else:
            mean, variance = offset, deviation**2
        if index in feature_blocks(num_blocks, side):
            scale = 1 / np.sqrt(variance + _NORM_EPS)
            factors.append(scale)
            offsets.append(-mean * scale)
            if block.step < side:
                factors.append(scale)
                offsets.append(np.zeros_like(scale))
    scaling = (np.concatenate(values).astype(np.float32) for values in (factors, offsets))
    return LiteWeights(weights, biases, *scaling)
