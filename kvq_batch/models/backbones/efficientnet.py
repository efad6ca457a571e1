"""Feature stack of EfficientNet-B0 as UVQ uses it (SWINV2_SPEC section 6): the padding of TensorFlow, a flat list.

Names are those of the published files: `features.0` is the stem, `features.1` to `features.16` are the blocks.

Axes: B pictures, C channels, H rows, W columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.backbones.layers import FrozenNorm

NUM_CHANNELS = 320
"""Channels of the last block."""
STEP = 32
"""Pixels per cell of the last block."""

_NORM_EPS = 1e-3
_STEM = 32
# (expansion, channels, side of the kernel, stride) of each block.
_BLOCKS = (
    (1, 16, 3, 1), (6, 24, 3, 2), (6, 24, 3, 1), (6, 40, 5, 2), (6, 40, 5, 1), (6, 80, 3, 2), (6, 80, 3, 1),
    (6, 80, 3, 1), (6, 112, 5, 1), (6, 112, 5, 1), (6, 112, 5, 1), (6, 192, 5, 2), (6, 192, 5, 1), (6, 192, 5, 1),
    (6, 192, 5, 1), (6, 320, 3, 1),
)  # fmt: skip
# Channels of the squeezed vector, as a share of a block's input.
_SQUEEZE = 4


def same_padding(extent: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after an axis so that ceil(extent / stride) windows fit, the odd one after."""
    total = max((extent - 1) // stride * stride + kernel - extent, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Module):
    """Convolution without bias, with the padding "same" of TensorFlow; its weight is named `conv.weight`."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stride = self.conv.stride[0]
        rows, columns = (
            same_padding(extent, kernel, stride)
            for extent, kernel in zip(x.shape[2:], self.conv.kernel_size, strict=True)
        )
        if rows[0] == rows[1] and columns[0] == columns[1]:
            # The convolution pads without a copy.
            padding = (rows[0], columns[0])
            return F.conv2d(x, self.conv.weight, self.conv.bias, stride, padding, groups=self.conv.groups)
        found: Tensor = self.conv(F.pad(x, (*columns, *rows)))
        return found


class Squeeze(nn.Module):
    """Scale of each channel from the mean of all channels over space."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, inner, 1)
        self.fc2 = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """Expansion, depthwise convolution, squeeze, projection; with a shortcut where the shape does not change."""

    def __init__(self, inputs: int, expansion: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_norm(inputs, width, 1)]
        layers += [_conv_norm(width, width, kernel, stride, width), Squeeze(width, inputs // _SQUEEZE)]
        layers.append(_conv_norm(width, outputs, 1))
        self.block = nn.ModuleList(layers)
        self._has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        for layer in self.block:
            x = layer(x)
            if layer is not self.block[-1] and not isinstance(layer, Squeeze):
                x = F.silu(x, inplace=True)
        return x + shortcut if self._has_shortcut else x


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(SameConv2d(inputs, outputs, (kernel, kernel), stride, groups), FrozenNorm(outputs, _NORM_EPS))


def feature_layers() -> list[nn.Module]:
    """Return the stem and the 16 blocks."""
    layers: list[nn.Module] = [_conv_norm(3, _STEM, 3, 2)]
    inputs = _STEM
    for expansion, outputs, kernel, stride in _BLOCKS:
        layers.append(Block(inputs, expansion, outputs, kernel, stride))
        inputs = outputs
    return layers


def run_features(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Return the last block [B, 320, ceil(H / 32), ceil(W / 32)] of pictures [B, 3, H, W] in -1..1."""
    x = F.silu(layers[0](x), inplace=True)
    for block in list(layers)[1 : len(_BLOCKS) + 1]:
        x = block(x)
    return x
