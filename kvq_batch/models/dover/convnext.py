"""ConvNeXt in 3D, versions 1 and 2, as DOVER uses it (FASTVQA_SPEC section 6).

Tokens are [B, D, H, W, C] as in the Swin networks here, so products and norms work on the last axis without transposes.

Axes: B clips, T frames, D slots, H rows, W columns, C channels.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.dover.config import ConvNextConfig
from kvq_batch.models.kvq.blocks import linear, normalise_tokens
from kvq_batch.models.kvq.embedding import embed_patches

_NORM_EPS = 1e-6
_KERNEL = 7
_STEM = (2, 4, 4)
# Blocks 1, 4, 7, ... of a stage see three slots, the others one.
_TIME_PERIOD, _TIME_INDEX = 3, 1


class ConvNext(nn.Module):
    """Stem, stages and final norm: normalised clips [B, 3, T, H, W] -> features [B, T/2, H/32, W/32, C]."""

    def __init__(self, config: ConvNextConfig) -> None:
        super().__init__()
        dims = config.dims
        stem = nn.Sequential(nn.Conv3d(3, dims[0], _STEM, _STEM), nn.LayerNorm(dims[0], eps=_NORM_EPS))
        merges = [
            nn.Sequential(nn.LayerNorm(narrow, eps=_NORM_EPS), nn.Conv3d(narrow, wide, (1, 2, 2), (1, 2, 2)))
            for narrow, wide in pairwise(dims)
        ]
        self.downsample_layers = nn.ModuleList([stem, *merges])
        block = BlockV1 if config.version == 1 else BlockV2
        self.stages = nn.ModuleList(
            nn.Sequential(*(block(width, 3 if number % _TIME_PERIOD == _TIME_INDEX else 1) for number in range(depth)))
            for width, depth in zip(dims, config.depths, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=_NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        x = clips
        for number, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = stage(_embed(x, downsample) if number == 0 else _merge(x, downsample))
        return normalise_tokens(x, self.norm)


class BlockV1(nn.Module):
    """Depthwise convolution, norm and MLP, scaled per channel, with a residual connection."""

    def __init__(self, width: int, num_slots: int) -> None:
        super().__init__()
        self.dwconv = _depthwise(width, num_slots)
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        normal = normalise_tokens(convolve_depthwise(x, self.dwconv), self.norm)
        return x + self.gamma * linear(F.gelu(linear(normal, self.pwconv1)), self.pwconv2)


class BlockV2(nn.Module):
    """The block of version 2: response normalisation inside the MLP replaces the scale per channel."""

    def __init__(self, width: int, num_slots: int) -> None:
        super().__init__()
        self.dwconv = _depthwise(width, num_slots)
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.grn = ResponseNorm(4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normal = normalise_tokens(convolve_depthwise(x, self.dwconv), self.norm)
        return x + linear(self.grn(F.gelu(linear(normal, self.pwconv1))), self.pwconv2)


class ResponseNorm(nn.Module):
    """Global response normalisation of [B, D, H, W, C].

    As published, the norm is over slots and rows, for each column: the code was written for pictures.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(1, 1, 1, width))
        self.beta = nn.Parameter(torch.empty(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        size: Tensor = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share: Tensor = size / (size.mean(-1, keepdim=True) + 1e-6)
        out: Tensor = x * (self.gamma * share + 1) + self.beta
        return out


def convolve_depthwise(x: Tensor, convolution: nn.Conv3d) -> Tensor:
    """Apply a depthwise convolution of 1 or 3 slots and 7x7 tokens to [B, D, H, W, C]; the ends are padded with zeros.

    It is a sum of 2D convolutions in channels-last memory, one for each slot of the kernel.
    """
    batch, slots = x.shape[:2]
    kernel = convolution.weight
    reach = kernel.shape[2] // 2
    planes = x.flatten(0, 1).permute(0, 3, 1, 2)
    total = None
    for offset in range(-reach, reach + 1):
        weight = kernel[:, :, offset + reach]
        bias = convolution.bias if offset == 0 else None
        part = F.conv2d(planes, weight, bias, padding=_KERNEL // 2, groups=x.shape[-1])
        part = torch.unflatten(part.permute(0, 2, 3, 1), 0, (batch, slots))
        if offset == 0:
            total = part if total is None else total + part
        else:
            # The result of slot d is added to slot d - offset; slots outside the clip are zeros.
            kept = part[:, max(0, offset) : slots + min(0, offset)]
            kept = F.pad(kept, (0, 0, 0, 0, 0, 0, max(0, -offset), max(0, offset)))
            total = kept if total is None else total + kept
    assert total is not None
    return total


def _embed(clips: Tensor, stem: nn.Module) -> Tensor:
    assert isinstance(stem, nn.Sequential)
    convolution, norm = stem
    assert isinstance(convolution, nn.Conv3d)
    assert isinstance(norm, nn.LayerNorm)
    return embed_patches(clips, convolution, norm, torch.float32)


def _merge(x: Tensor, merging: nn.Module) -> Tensor:
    """Merge 2x2 tokens: a norm, then a convolution without overlap, computed as one product."""
    assert isinstance(merging, nn.Sequential)
    norm, convolution = merging
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(convolution, nn.Conv3d)
    rows, columns = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    normal = normalise_tokens(x[:, :, :rows, :columns], norm)
    squares = torch.unflatten(torch.unflatten(normal, 3, (-1, 2)), 2, (-1, 2))
    # [B, D, H, 2, W, 2, C] -> [B, D, H, W, C, 2, 2], the order of the kernel.
    return linear(squares.permute(0, 1, 2, 4, 6, 3, 5).flatten(4), convolution)


def _depthwise(width: int, num_slots: int) -> nn.Conv3d:
    return nn.Conv3d(width, width, (num_slots, _KERNEL, _KERNEL), groups=width)
