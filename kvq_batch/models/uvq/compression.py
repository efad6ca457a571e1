"""Compression network of UVQ 1.0: a 3D Inception with gates (SWINV2_SPEC section 7).

Its input is a patch of five frames of a second. Modules have the names of the published file.

Axes: B patches, C channels, T frames, H rows, W columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.backbones.efficientnet import same_padding
from kvq_batch.models.backbones.layers import FrozenNorm

PATCH = (180, 320)
"""Size of a patch in pixels."""
_WIDTH = 100

# Channels of the branches of a block: b0; b1 inner and outer; b2 inner and outer; b3.
_FIRST = {"inception_mixed1_3b": (64, 96, 128, 16, 32, 32), "inception_mixed2_3c": (128, 128, 192, 32, 96, 64)}
_SECOND = {
    "inception_mixed3_4b": (192, 96, 208, 16, 48, 64),
    "inception_mixed4_4c": (160, 112, 224, 24, 64, 64),
    "inception_mixed5_4d": (128, 128, 256, 24, 64, 64),
    "inception_mixed6_4e": (112, 144, 288, 32, 64, 64),
    "inception_mixed7_4f": (256, 160, 320, 32, 128, 128),
}
_THIRD = {
    "inception_mixed8_5b": (256, 160, 320, 32, 128, 128),
    "inception_mixed9_5c": (384, 192, 384, 48, 128, 128),
}


class SameConv3d(nn.Module):
    """3D convolution with the padding "same" of TensorFlow; its weight is named `conv.weight`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1, has_bias: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, bias=has_bias)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size, self.conv.stride
        found: Tensor = self.conv(pad_same(x, (kernel[0], kernel[1], kernel[2]), (stride[0], stride[1], stride[2])))
        return found


class Gated(nn.Module):
    """1x1x1 convolution, norm, ReLU; then each channel times a gate from the mean of all channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv3d_1 = SameConv3d(inputs, outputs, (1, 1, 1))
        self.batch_norm = FrozenNorm(outputs)
        self.conv3d_2 = SameConv3d(outputs, outputs, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return _gate(F.relu(self.batch_norm(self.conv3d_1(x)), inplace=True), self.conv3d_2)


class Separable(nn.Module):
    """1x1x1, then 1x3x3, then 3x1x1 convolution, then a gate."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.conv3d_1 = SameConv3d(inputs, inner, (1, 1, 1))
        self.batch_norm1 = FrozenNorm(inner)
        self.conv3d_2 = SameConv3d(inner, outputs, (1, 3, 3))
        self.batch_norm2 = FrozenNorm(outputs)
        self.conv3d_3 = SameConv3d(outputs, outputs, (3, 1, 1), has_bias=True)
        self.conv3d_4 = SameConv3d(outputs, outputs, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.batch_norm1(self.conv3d_1(x)), inplace=True)
        x = F.relu(self.batch_norm2(self.conv3d_2(x)), inplace=True)
        return _gate(F.relu(self.conv3d_3(x), inplace=True), self.conv3d_4)


class Mixed(nn.Module):
    """Four branches side by side; the last one pools its input first."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Gated(inputs, widths[0])
        self.b1 = Separable(inputs, widths[1], widths[2])
        self.b2 = Separable(inputs, widths[3], widths[4])
        self.b3 = Gated(inputs, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1(x), self.b2(x), self.b3(max_pool_same(x, (3, 3, 3), (1, 1, 1)))], 1)


class Inception(nn.Module):
    """The stack of mixed blocks up to [B, 1024, 1, H / 16 rounded up, W / 16 rounded up]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d_1a = SameConv3d(3, 64, (3, 7, 7), 2)
        self.batch_norm_1a = FrozenNorm(64)
        self.pre_2b2c = Separable(64, 64, 192)
        inputs = 192
        for blocks in (_FIRST, _SECOND, _THIRD):
            for name, widths in blocks.items():
                self.add_module(name, Mixed(inputs, widths))
                inputs = widths[0] + widths[2] + widths[4] + widths[5]
        self.outputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.batch_norm_1a(self.conv3d_1a(x)), inplace=True)
        x = self.pre_2b2c(max_pool_same(x, (1, 3, 3), (1, 2, 2)))
        x = max_pool_same(x, (1, 3, 3), (1, 2, 2))
        x = self._run(_FIRST, x)
        x = self._run(_SECOND, max_pool_same(x, (3, 3, 3), (2, 2, 2)))
        return self._run(_THIRD, max_pool_same(x, (2, 2, 2), (2, 2, 2)))

    def _run(self, blocks: dict[str, tuple[int, int, int, int, int, int]], x: Tensor) -> Tensor:
        for name in blocks:
            x = self.get_submodule(name)(x)
        return x


class Compression10(nn.Module):
    """Compression features [B, 4, 4, 100] of patches [B, 3, 5, 180, 320] in -1..1, and the compression level [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.inception_block1 = Inception()
        self.final_conv3d = nn.Conv3d(self.inception_block1.outputs, _WIDTH, (1, 3, 7), bias=False)
        self.conv3d_0c = nn.ModuleDict({"conv": nn.Conv3d(_WIDTH, 1, 1)})

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        x = self.final_conv3d(self.inception_block1(patches))
        label = torch.sigmoid(self.conv3d_0c["conv"](F.avg_pool3d(x, (1, 4, 4))).mean((2, 3, 4)))
        return x[:, :, 0].movedim(1, -1), label


def pad_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Pad the last three axes with zeros, so that ceil(extent / stride) windows fit."""
    pads = [same_padding(extent, k, s) for extent, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    return F.pad(x, (*pads[2], *pads[1], *pads[0])) if any(map(any, pads)) else x


def max_pool_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Return max pooling with the padding "same"; the zeros of the padding take part, as in the authors' code."""
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


def _gate(x: Tensor, layer: SameConv3d) -> Tensor:
    return x * torch.sigmoid(layer(x.mean((2, 3, 4), keepdim=True)))
