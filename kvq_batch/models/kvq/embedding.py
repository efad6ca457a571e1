"""From pixels to tokens: what a network sees of a frame, and how it becomes the first grid.

The published network takes RGB by one patch embedding. A small member learns from few sources only where the energy of
detail stands readable at its input, and where strided convolutions make the first tokens: both are sizes of
`KvqConfig`, and off by default. Nothing here is trained on or knows of fragments but by the size of a tile.

Axes: B clips, T frames, D slots, H rows, W columns, C channels, n tiles.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.kvq.blocks import NORM_EPS, linear, normalise_tokens
from kvq_batch.models.kvq.config import KvqConfig

# Of 8-bit RGB (KVQ_SPEC section 2).
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

_LUMA = (0.299, 0.587, 0.114)
# Widths of the Gaussians between which bands lie, in pixels: the finest holds noise and blocks, the next one blur.
_FIRST_SIGMA = 0.8
_SIGMA_STEP = 2.5
# Grey levels below which a band's magnitude says nothing.
_FLOOR = 0.5


def normalise(clips: Tensor) -> Tensor:
    """uint8 RGB [B, T, H, W, 3] -> float32 [B, 3, T, H, W], (x - mean) / std per channel (KVQ_SPEC section 2)."""
    mean, std = (torch.tensor(values, device=clips.device) for values in (MEAN, STD))
    return ((clips.float() - mean) / std).permute(0, 4, 1, 2, 3)


def with_energy_bands(clips: Tensor, config: KvqConfig) -> Tensor:
    """Normalised clips [B, 3, T, H, W] and, of each band of their luma, signed logarithm and log-magnitude.

    Float32 [B, 3 + 2 * num_bands, T, H, W]. Band k is what lies between Gaussians of 0.8 * 2.5^k pixels and the one
    before it (the first: the luma itself), in grey levels, so that its magnitude is how much detail there is. Tiles of
    spliced frames do not see their neighbours.
    """
    if not config.num_bands:
        return clips
    batch, _, frames, height, width = clips.shape
    std, mean, luma = (torch.tensor(values, device=clips.device).view(3, 1, 1, 1) for values in (STD, MEAN, _LUMA))
    grey = ((clips * std + mean) * luma).sum(1)
    tile = config.tile(height, width)
    rows, columns = height // tile[0], width // tile[1]
    tiles = grey.view(-1, rows, tile[0], columns, tile[1]).transpose(2, 3).reshape(-1, 1, *tile)
    planes = []
    finer = tiles
    for band in range(config.num_bands):
        coarser = _blurred(tiles, _FIRST_SIGMA * _SIGMA_STEP**band)
        detail = finer - coarser
        planes += [detail.sign() * torch.log1p(detail.abs()), torch.log(detail.abs() + _FLOOR)]
        finer = coarser
    bands = torch.cat(planes, dim=1).view(batch, frames, rows, columns, -1, *tile)
    # [B, T, rows, columns, C, h, w] -> [B, C, T, H, W]
    bands = bands.permute(0, 4, 1, 2, 5, 3, 6).reshape(batch, -1, frames, height, width)
    return torch.cat([clips, bands], dim=1)


def _blurred(tiles: Tensor, sigma: float) -> Tensor:
    """Tiles [n, 1, h, w] under a Gaussian, edges repeated.

    As two products with band matrices: convolutions of one channel took a third of a small member's training.
    """
    radius = min(math.ceil(3 * sigma), *(extent - 1 for extent in tiles.shape[2:]))
    rows, columns = (_gaussian(extent, sigma, radius, tiles.device) for extent in tiles.shape[2:])
    return rows @ tiles @ columns.t()


def _gaussian(extent: int, sigma: float, radius: int, device: torch.device) -> Tensor:
    """Weights [extent, extent] of the pixels that each pixel becomes."""
    taps = torch.arange(-radius, radius + 1, device=device)
    kernel = torch.exp(-(taps.float() ** 2) / (2 * sigma**2))
    sources = (torch.arange(extent, device=device)[:, None] + taps).clamp(0, extent - 1)
    weights = (kernel / kernel.sum()).expand(extent, -1)
    return torch.zeros(extent, extent, device=device).scatter_add_(1, sources, weights)


class PatchEmbedding(nn.Module):
    """[B, 3, T, H, W] -> [B, D, H, W, C]: a convolution whose steps are its kernel, hence one matrix product."""

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.proj = nn.Conv3d(config.input_channels, config.embed_dim, config.patch, config.patch)
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        x = padded_to(clips, self.config.patch)
        x = with_energy_bands(x, self.config)
        frames, rows, columns = self.config.patch
        batch, channels = x.shape[:2]
        slots, height, width = (extent // step for extent, step in zip(x.shape[2:], self.config.patch, strict=True))
        parts = x.view(batch, channels, slots, frames, height, rows, width, columns)
        patches = parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).to(self.compute_dtype)
        return normalise_tokens(linear(patches, self.proj).float(), self.norm)


class ConvolutionalStem(nn.Module):
    """[B, 3, T, H, W] -> [B, D, H/4, W/4, C]: two 3x3 convolutions of step 2 on each frame; a slot's frames join last.

    "Early convolutions help transformers see better" (NeurIPS 2021): the same tokens, learnt from fewer samples.
    """

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.conv1 = nn.Conv2d(config.input_channels, config.stem_width, 3, 2, 1)
        self.conv2 = nn.Conv2d(config.stem_width, config.embed_dim, 3, 2, 1)
        self.proj = nn.Linear(config.patch[0] * config.embed_dim, config.embed_dim)
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        x = with_energy_bands(padded_to(clips, self.config.patch), self.config)
        batch, _, frames, height, width = x.shape
        x = x.transpose(1, 2).flatten(0, 1).to(self.compute_dtype)
        for convolution in (self.conv1, self.conv2):
            weight, bias = convolution.weight.to(x.dtype), convolution.bias
            x = F.gelu(F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), convolution.stride, 1))
        slot = self.config.patch[0]
        # [B * T, C, H, W] -> [B, D, H, W, frames of a slot * C]
        x = x.view(batch, frames // slot, slot, -1, height // 4, width // 4).permute(0, 1, 4, 5, 2, 3).flatten(4)
        return normalise_tokens(linear(x, self.proj).float(), self.norm)


def padded_to(clips: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Clips whose frames, rows and columns are multiples of a patch's, zeros at the end."""
    short = [-extent % step for extent, step in zip(clips.shape[2:], patch, strict=True)]
    return F.pad(clips, (0, short[2], 0, short[1], 0, short[0])) if any(short) else clips
