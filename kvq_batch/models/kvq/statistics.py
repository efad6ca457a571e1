"""Tokens from statistics of patches: measurements that no-reference quality metrics use, then one linear layer.

The statistics cover the amount and the spread of detail in each band, correlation of neighbouring pixels, changes
between frames, block grids of codecs, clipped luma, and natural scene statistics (`nss`). With them, a small network
learned more in one pass over its labels than convolutions in ten. No gradient flows back to the pixels.

Axes: B clips, T frames, D slots, H rows, W columns, n tiles, h and w pixels of a tile, S statistics.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.kvq.blocks import NORM_EPS, linear, normalise_tokens
from kvq_batch.models.kvq.config import CHANGING_BANDS, KvqConfig
from kvq_batch.models.kvq.nss import nss_features
from kvq_batch.models.kvq.pixels import (
    FLOOR,
    MEAN,
    STD,
    avg_pool,
    bands_of_tiles,
    in_tiles,
    luma,
    max_pool,
    min_pool,
    padded_to,
    products,
)

# Added to variances in squared grey levels, in denominators and logarithms.
_EPS = 0.1
# Size of a codec's blocks in pixels.
_GRID = 8
# All statistics are of order 1. Outliers are clipped, so that one of them does not dominate a token.
_CLIP = 4.0


class StatisticsEmbedding(nn.Module):
    """Embedding [B, 3, T, H, W] -> [B, D, H/h, W/w, C]: statistics of every patch of a slot, then one linear layer."""

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.proj = nn.Linear(config.num_statistics, config.embed_dim)
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        found = patch_statistics(padded_to(clips, self.config.patch), self.config).to(self.compute_dtype)
        return normalise_tokens(linear(found, self.proj).float(), self.norm)


@torch.no_grad()
def patch_statistics(clips: Tensor, config: KvqConfig) -> Tensor:
    """Return the statistics of normalised clips [B, 3, T, H, W] of complete patches, float32 [B, D, H/h, W/w, S].

    S lists the statistics of each frame of a slot, then those of the changes between frames. Tiles of spliced frames
    are measured separately.
    """
    batch, height, width = len(clips), *clips.shape[3:]
    tile = config.tile(height, width)
    rows, columns, side = height // tile[0], width // tile[1], config.patch[1]

    def to_grid(found: list[Tensor]) -> Tensor:
        """Stack statistics [n, h/side, w/side] to [B, frames or changes of all slots, H/side, W/side, S]."""
        joined = torch.stack(found, dim=-1)
        parts = joined.view(batch, -1, rows, columns, *joined.shape[1:])
        return parts.transpose(3, 4).reshape(batch, -1, height // side, width // side, len(found))

    grey = in_tiles(luma(clips), tile)
    bands = list(bands_of_tiles(grey, config.num_bands))
    of_frames = [avg_pool(in_tiles(clips[:, colour], tile), side) for colour in range(3)]
    of_frames += [*_luma_range(grey, side), *_steps(grey, side)]
    for band_index, band in enumerate(bands):
        of_frames += _detail(band, side)
        if band_index == 0:
            of_frames += _further_correlations(band, side)
    red, blue = (in_tiles(clips[:, colour] * STD[colour] + MEAN[colour], tile) for colour in (0, 2))
    of_frames += nss_features(grey, bands[0], red, blue, side)
    of_changes: list[Tensor] = []
    for band in bands[:CHANGING_BANDS]:
        of_slots = band.view(-1, config.patch[0], rows * columns, *tile)
        of_changes += _change((of_slots[:, 1:] - of_slots[:, :-1]).reshape(-1, *tile), side)
    parts = [torch.unflatten(to_grid(of_frames), 1, (-1, config.patch[0]))]
    if config.patch[0] > 1:
        parts.append(torch.unflatten(to_grid(of_changes), 1, (-1, config.patch[0] - 1)))
    # [B, D, frames, H, W, S] -> [B, D, H, W, frames * S]
    return torch.cat([part.permute(0, 1, 3, 4, 2, 5).flatten(4) for part in parts], dim=-1).clamp_(-_CLIP, _CLIP)


def _luma_range(grey: Tensor, side: int) -> Iterator[Tensor]:
    """Yield maximum, minimum and variance of luma, and the shares of black and white pixels."""
    mean = avg_pool(grey, side)
    yield max_pool(grey, side) / 64 - 2
    yield min_pool(grey, side) / 64 - 2
    yield torch.log((avg_pool(grey * grey, side) - mean * mean).clamp_(min=0) + _EPS) / 4 - 1
    yield 2 * avg_pool((grey < 3).float(), side)
    yield 2 * avg_pool((grey > 252).float(), side)


def _steps(grey: Tensor, side: int) -> Iterator[Tensor]:
    """Yield statistics of the steps to the next pixel, along rows and columns.

    Each: mean size, the largest relative to the mean, share of zero steps, and the strength of a grid of 8 pixels.
    """
    for along in (grey, grey.transpose(1, 2)):
        size = F.pad((along[:, :, 1:] - along[:, :, :-1]).abs(), (0, 1))
        mean = avg_pool(size, side)
        largest = max_pool(size, side)
        # The mean step at each of the 8 phases of a grid, over the rows of the patch and the periods of the grid.
        of_columns = F.avg_pool2d(size[:, None], (side, 1))[:, 0]
        phases = of_columns.view(*of_columns.shape[:2], -1, side // _GRID, _GRID).mean(3)
        found = (
            torch.log(mean + _EPS) / 2,
            torch.log((largest + FLOOR) / (mean + _EPS)) - 1,
            2 * avg_pool((size < FLOOR).float(), side),
            2 * torch.log((phases.amax(-1) + _EPS) / (mean + _EPS)),
        )
        yield from (values if along is grey else values.transpose(1, 2) for values in found)


def _detail(band: Tensor, side: int) -> Iterator[Tensor]:
    """Yield amount, spread, power and kurtosis of a band, and the correlation of neighbouring pixels."""
    logarithm = torch.log(band.abs() + FLOOR)
    mean = avg_pool(logarithm, side)
    square = band * band
    power = avg_pool(square, side)
    yield mean
    yield 2 * (avg_pool(logarithm.square_(), side) - mean * mean).clamp_(min=0).sqrt_() - 1
    yield torch.log(power + _EPS) / 2 - 1
    yield torch.log((avg_pool(square * square, side) + _EPS**2) / (power + _EPS).square()) - 1
    yield _correlation(band, power, side, 0, 1)
    yield _correlation(band, power, side, 1, 0)


def _further_correlations(band: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the correlations of a band with diagonal neighbours and with pixels two steps away."""
    power = avg_pool(band * band, side)
    for down, right in ((1, 1), (1, -1), (0, 2), (2, 0)):
        yield _correlation(band, power, side, down, right)


def _change(change: Tensor, side: int) -> Iterator[Tensor]:
    """Yield amount, power and correlation of the change of a band: noise changes much, with little correlation."""
    power = avg_pool(change * change, side)
    yield avg_pool(torch.log(change.abs() + FLOOR), side)
    yield torch.log(power + _EPS) / 2 - 1
    yield _correlation(change, power, side, 0, 1)


def _correlation(band: Tensor, power: Tensor, side: int, down: int, right: int) -> Tensor:
    """Return twice the correlation of pixels with those shifted by these rows and columns, about -2 to 2."""
    return 2 * avg_pool(products(band, down, right), side) / (power + _EPS)
