"""Tokens from statistics of patches: measurements that no-reference quality metrics use, then one linear layer.

The statistics cover the amount and the spread of detail in each band, correlation of neighbouring pixels, changes
between frames, block grids of codecs, clipped luma, and natural scene statistics (`nss`). With them, a small network
learned more in one pass over its labels than convolutions in ten. No gradient flows back to the pixels.

About 150 operations pass over each pixel, so they run along the axis of tiles, and write into inputs that are not
needed any more.

Axes: B clips, T frames, D slots, H rows, W columns, n tiles, h and w pixels of a tile, S statistics.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kvq_batch.models.backbones.efficientnet_lite import EfficientNetLite, square_features
from kvq_batch.models.kvq.blocks import NORM_EPS, linear, normalise_tokens
from kvq_batch.models.kvq.config import CHANGING_BANDS, KvqConfig
from kvq_batch.models.kvq.nss import colour_spread, nss_features
from kvq_batch.models.kvq.pixels import (
    FLOOR,
    MEAN,
    STD,
    avg_pool,
    bands_of_tiles,
    grey_levels,
    in_tiles,
    luma,
    max_pool,
    min_pool,
    padded_to,
    products,
    zero_edged,
)

# Added to variances in squared grey levels, in denominators and logarithms.
_EPS = 0.1
# Size of a codec's blocks in pixels.
_GRID = 8
# Pixels of luma that are measured together on a CPU: one clip of KVQ-Lite. On two threads a clip took 63 ms, in two
# steps 72 ms, in four 85 ms (on one thread 113, 105 and 109 ms). The limit bounds the memory of a training batch.
_CPU_STEP_PIXELS = 1 << 20
# Pixels that are convolved together on a CPU, so that the planes of a block fit into its caches: 98 tiles of 32 x 32
# took 78 core-ms a clip, 392 (all) 114, 28 took 97.
_CPU_CONVOLVED_PIXELS = 98 << 10
# All statistics are of order 1. Outliers are clipped, so that one of them does not dominate a token.
_CLIP = 4.0


class StatisticsEmbedding(nn.Module):
    """Embedding [B, 3, T, H, W] -> [B, D, H/h, W/w, C]: measurements of every patch of a slot, then one linear layer.

    Only `embed` learns. What `measure` returns depends on the clip and on frozen weights, so it can be stored.
    """

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.convolutions = EfficientNetLite(config.convolutions) if config.convolutions else None
        self.scaling = Scaling(config.num_measurements - config.num_statistics) if config.convolutions else None
        self.proj = nn.Linear(config.num_measurements, config.embed_dim)
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        return self.embed(self.measure(clips))

    def measure(self, clips: Tensor) -> Tensor:
        """Return the statistics and the features of convolutions, float32 [B, D, H/h, W/w, S], all of order 1."""
        clips = padded_to(clips, self.config.patch)
        found = patch_statistics(clips, self.config)
        if self.convolutions is None or self.scaling is None:
            return found
        return torch.cat([found, self.scaling(convolved(clips, self.config, self.convolutions))], dim=-1)

    def embed(self, measured: Tensor) -> Tensor:
        """Return tokens [B, D, H/h, W/w, C] of what `measure` returned."""
        return normalise_tokens(linear(measured.to(self.compute_dtype), self.proj).float(), self.norm)


class Scaling(nn.Module):
    """Frozen factors and offsets that bring features to order 1; outliers are clipped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.bias, features, self.weight).clamp_(-_CLIP, _CLIP)


@torch.no_grad()
def convolved(clips: Tensor, config: KvqConfig, convolutions: EfficientNetLite) -> Tensor:
    """Return the features [B, D, H/h, W/w, S] of the first frame of each slot of normalised clips [B, 3, T, H, W].

    Tiles of spliced frames are pictures of their own.
    """
    first = clips[:, :, :: config.patch[0]].transpose(1, 2)
    batch, slots, _, height, width = first.shape
    tile, side = config.tile(height, width), config.patch[1]
    rows, columns = height // tile[0], width // tile[1]
    pictures = first.reshape(-1, 3, rows, tile[0], columns, tile[1]).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    pictures = grey_levels(pictures)
    step = max(1, _CPU_CONVOLVED_PIXELS // (tile[0] * tile[1])) if clips.device.type == "cpu" else len(pictures)
    found = torch.cat([square_features(convolutions(part), side) for part in torch.split(pictures, step)])
    grid = found.view(batch, slots, rows, columns, tile[0] // side, tile[1] // side, -1).transpose(3, 4)
    return grid.reshape(batch, slots, height // side, width // side, -1)


@torch.no_grad()
def patch_statistics(clips: Tensor, config: KvqConfig) -> Tensor:
    """Return the statistics of normalised clips [B, 3, T, H, W] of complete patches, float32 [B, D, H/h, W/w, S].

    S lists the statistics of each frame of a slot, then those of the changes between frames. Tiles of spliced frames
    are measured separately.
    """
    batch, _, frames, height, width = clips.shape
    length = config.patch[0]
    slots = torch.unflatten(clips, 2, (-1, length)).transpose(1, 2).flatten(0, 1)
    grey = luma(clips).view(-1, length, height, width)
    step = max(1, _CPU_STEP_PIXELS // grey[0].numel()) if clips.device.type == "cpu" else len(grey)
    parts = zip(torch.split(slots, step), torch.split(grey, step), strict=True)
    found = torch.cat([_of_slots(colours, plane, config) for colours, plane in parts])
    return found.view(batch, frames // length, *found.shape[1:]).clamp_(-_CLIP, _CLIP)


def _of_slots(colours: Tensor, grey: Tensor, config: KvqConfig) -> Tensor:
    """Return the statistics [B, H/h, W/w, S] of slots: their colours [B, 3, T, H, W] and luma [B, T, H, W]."""
    count, length, height, width = grey.shape
    tile, side = config.tile(height, width), config.patch[1]
    rows, columns = height // tile[0], width // tile[1]

    def to_grid(found: list[Tensor], length: int) -> Tensor:
        """Stack statistics of tiles [h/side, w/side, n] to [B, H/side, W/side, T, S]."""
        joined = torch.stack(found)
        parts = joined.view(*joined.shape[:3], count, length, rows, columns)
        return parts.permute(3, 5, 1, 6, 2, 4, 0).reshape(count, height // side, width // side, length, len(found))

    tiles = in_tiles(grey, tile)
    bands = list(bands_of_tiles(tiles, config.num_bands))
    of_tiles = list(_steps(tiles, side))
    of_changes: list[Tensor] = []
    for index, band in enumerate(bands):
        of_tiles += _detail(band, side)
        if index == 0:
            of_tiles += _further_correlations(band, side)
        if index < CHANGING_BANDS and length > 1:
            of_slots = band.view(*tile, count, length, -1)
            of_changes += _change((of_slots[:, :, :, 1:] - of_slots[:, :, :, :-1]).flatten(2), side)
    of_tiles += nss_features(tiles, bands[0], side)
    # The order is that of the weights.
    first, last = (
        torch.stack(list(found), dim=-1).transpose(1, 2).transpose(2, 3)
        for found in (_of_pixels(colours, grey, side), _of_colours(colours, grey, side))
    )
    of_frames = torch.cat([first, to_grid(of_tiles, length), last], dim=-1).flatten(3)
    return torch.cat([of_frames, to_grid(of_changes, length - 1).flatten(3)], dim=-1) if of_changes else of_frames


def _of_pixels(colours: Tensor, grey: Tensor, side: int) -> Iterator[Tensor]:
    """Yield mean colours, maximum, minimum and variance of luma, and the shares of black and white pixels.

    Results are [B, T, H/side, W/side]: without neighbours, tiles do not matter.
    """
    for colour in range(3):
        yield avg_pool(colours[:, colour], side, 2)
    mean = avg_pool(grey, side, 2)
    yield max_pool(grey, side, 2) / 64 - 2
    yield min_pool(grey, side, 2) / 64 - 2
    yield torch.log((avg_pool(grey * grey, side, 2) - mean * mean).clamp_(min=0) + _EPS) / 4 - 1
    yield 2 * avg_pool((grey < 3).float(), side, 2)
    yield 2 * avg_pool((grey > 252).float(), side, 2)


def _of_colours(colours: Tensor, grey: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the spread of red and blue around luma, [B, T, H/side, W/side]."""
    for colour in (0, 2):
        yield colour_spread(grey, colours[:, colour] * STD[colour] + MEAN[colour], side)


def _steps(grey: Tensor, side: int) -> Iterator[Tensor]:
    """Yield statistics of the steps to the next pixel, along rows and columns.

    Each: mean size, the largest relative to the mean, share of zero steps, and the strength of a grid of 8 pixels.
    """
    for axis in (1, 0):
        length = grey.shape[axis] - 1
        size, inner = zero_edged(grey, (0, 1 - axis), (0, axis))
        torch.sub(grey.narrow(axis, 1, length), grey.narrow(axis, 0, length), out=inner)
        size.abs_()
        mean = avg_pool(size, side)
        largest = max_pool(size, side)
        # The mean step at each of the 8 phases of a grid, over the other axis of the patch and the periods of the grid.
        across = torch.unflatten(size, 1 - axis, (-1, side)).mean(2 - axis)
        phases = torch.unflatten(across, axis, (-1, side // _GRID, _GRID)).mean(axis + 1).amax(axis + 1)
        yield torch.log(mean + _EPS) / 2
        yield torch.log((largest + FLOOR) / (mean + _EPS)) - 1
        yield 2 * avg_pool(size.lt_(FLOOR), side)
        yield 2 * torch.log((phases + _EPS) / (mean + _EPS))


def _detail(band: Tensor, side: int) -> Iterator[Tensor]:
    """Yield amount, spread, power and kurtosis of a band, and the correlation of neighbouring pixels."""
    logarithm = band.abs().add_(FLOOR).log_()
    mean = avg_pool(logarithm, side)
    square = band * band
    power = avg_pool(square, side)
    yield mean
    yield 2 * (avg_pool(logarithm.square_(), side) - mean * mean).clamp_(min=0).sqrt_() - 1
    yield torch.log(power + _EPS) / 2 - 1
    yield torch.log((avg_pool(square.square_(), side) + _EPS**2) / (power + _EPS).square()) - 1
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
    yield avg_pool(change.abs().add_(FLOOR).log_(), side)
    yield torch.log(power + _EPS) / 2 - 1
    yield _correlation(change, power, side, 0, 1)


def _correlation(band: Tensor, power: Tensor, side: int, down: int, right: int) -> Tensor:
    """Return twice the correlation of pixels with those shifted by these rows and columns, about -2 to 2."""
    return 2 * avg_pool(products(band, down, right), side) / (power + _EPS)
