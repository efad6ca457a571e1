"""Embedding of pixels as tokens: the published patch embedding, and a convolutional stem.

The published network embeds patches of RGB. `KvqConfig` can add bands of detail to the input, and replace the patch
embedding by the stem or by `statistics`.

Axes: B clips, T frames, D slots, H rows, W columns, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.kvq.blocks import NORM_EPS, linear, normalise_tokens
from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.models.kvq.pixels import FLOOR, bands_of_tiles, in_tiles, luma, padded_to


def with_energy_bands(clips: Tensor, config: KvqConfig) -> Tensor:
    """Return `add_energy_bands` for the bands and tiles of a configuration."""
    return add_energy_bands(clips, config.num_bands, config.tile(clips.shape[3], clips.shape[4]))


def add_energy_bands(clips: Tensor, num_bands: int, tile: tuple[int, int]) -> Tensor:
    """Add two planes per band to normalised clips [B, 3, T, H, W]: the signed logarithm and the log-magnitude.

    Returns float32 [B, 3 + 2 * num_bands, T, H, W]. Band k is the difference between the luma blurred by a Gaussian of
    0.8 * 2.5^k pixels and the one before it (for k = 0 the luma), in grey levels. Tiles of spliced frames are blurred
    separately.
    """
    if not num_bands:
        return clips
    batch, _, frames, height, width = clips.shape
    # Planes are written in place: concatenating them took as long as everything else here.
    planes = clips.new_empty(batch, 3 + 2 * num_bands, frames, height, width)
    planes[:, :3] = clips
    split = (batch, -1, frames, height // tile[0], tile[0], width // tile[1], tile[1])
    tiled = planes.view(split).transpose(4, 5)
    for band, detail in enumerate(bands_of_tiles(in_tiles(luma(clips), tile), num_bands)):
        of_clips = detail.flatten(0, 1).t().reshape(batch, *tiled.shape[2:])
        size = of_clips.abs()
        tiled[:, 3 + 2 * band] = torch.log1p(size).copysign_(of_clips)
        tiled[:, 4 + 2 * band] = size.add_(FLOOR).log_()
    return planes


class PatchEmbedding(nn.Module):
    """Patch embedding [B, 3, T, H, W] -> [B, D, H, W, C]: a convolution without overlap, computed as one product."""

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.proj = nn.Conv3d(config.input_channels, config.embed_dim, config.patch, config.patch)
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        x = with_energy_bands(padded_to(clips, self.config.patch), self.config)
        return embed_patches(x, self.proj, self.norm, self.compute_dtype)


def embed_patches(clips: Tensor, proj: nn.Conv3d, norm: nn.LayerNorm, compute_dtype: torch.dtype) -> Tensor:
    """Apply a convolution without overlap as one product, and a norm: [B, C', T, H, W] -> float32 [B, D, H, W, C].

    The ends are padded with zeros to whole patches.
    """
    patch = (proj.kernel_size[0], proj.kernel_size[1], proj.kernel_size[2])
    x = padded_to(clips, patch)
    batch, channels = x.shape[:2]
    slots, height, width = (extent // step for extent, step in zip(x.shape[2:], patch, strict=True))
    parts = x.view(batch, channels, slots, patch[0], height, patch[1], width, patch[2])
    patches = parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).to(compute_dtype)
    return normalise_tokens(linear(patches, proj).float(), norm)


class ConvolutionalStem(nn.Module):
    """Stem [B, 3, T, H, W] -> [B, D, H/4, W/4, C]: two 3x3 convolutions of stride 2, then one layer that joins frames.

    It needs fewer samples than a patch embedding ("Early convolutions help transformers see better", NeurIPS 2021).
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
