"""Operations on pixels before they become tokens: normalisation, luma, bands of detail, pooling.

Functions that use neighbouring pixels work on tiles, because adjacent patches of a spliced frame were not neighbours
in the video. The tiles are the last axis: then a shift by one pixel is an offset of many numbers, and an operation on
shifted pixels runs over long rows instead of rows of 31.

Axes: B clips, T frames, H rows, W columns, n tiles, h and w pixels of a tile.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Mean and standard deviation of 8-bit RGB (KVQ_SPEC section 2).
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

# Half a grey level: smaller values are rounding errors.
FLOOR = 0.5

_LUMA = (0.299, 0.587, 0.114)
# Standard deviations of the Gaussians between bands, in pixels: the finest band shows noise and blocks, the next blur.
_FIRST_SIGMA = 0.8
_SIGMA_STEP = 2.5


def normalise(clips: Tensor) -> Tensor:
    """Return (x - mean) / std of uint8 RGB [B, T, H, W, 3], float32 [B, 3, T, H, W] (KVQ_SPEC section 2)."""
    # A whole row of constants, because operations on rows of three values take three times as long.
    rows = clips.flatten(3)
    mean, std = (_repeated(values, clips.shape[3], clips.device) for values in (MEAN, STD))
    return rows.to(torch.float32).sub_(mean).div_(std).view(clips.shape).permute(0, 4, 1, 2, 3)


def grey_levels(pictures: Tensor) -> Tensor:
    """Return normalised pictures [n, 3, H, W] in grey levels, 0 to 255."""
    std, mean = _colour_constants(pictures.device)
    return pictures * std + mean


def luma(clips: Tensor) -> Tensor:
    """Return the luma in grey levels [B, T, H, W] of normalised clips [B, 3, T, H, W]."""
    scale, offset = _luma_constants(clips.device)
    found: Tensor = torch.tensordot(scale, clips, dims=([0], [1])) + offset
    return found


# Constants are made once for each device: copying them there would make the host wait for it on every call. They are
# no inference tensors, so that a network can be trained after it scored.
@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _repeated(values: tuple[float, ...], count: int, device: torch.device) -> Tensor:
    return torch.tensor(values).repeat(count).to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _colour_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the deviations and the means of colours, float32 [3, 1, 1] each."""
    std, mean = (torch.tensor(values).view(3, 1, 1).to(device) for values in (STD, MEAN))
    return std, mean


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _luma_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the factors float32 [3] and the offset float32 [] that make luma of normalised colours."""
    std, mean, weights = (torch.tensor(values) for values in (STD, MEAN, _LUMA))
    return (std * weights).to(device), (mean * weights).sum().to(device)


def in_tiles(planes: Tensor, tile: tuple[int, int]) -> Tensor:
    """Cut planes [..., H, W] into tiles [h, w, n], ordered frame by frame and row by row."""
    rows, columns = planes.shape[-2] // tile[0], planes.shape[-1] // tile[1]
    tiles = planes.reshape(-1, rows, tile[0], columns, tile[1]).transpose(2, 3).reshape(-1, tile[0] * tile[1])
    return tiles.t().contiguous().view(*tile, -1)


def bands_of_tiles(tiles: Tensor, count: int) -> Iterator[Tensor]:
    """Yield the `count` finest bands of luma [h, w, n], finest first: differences of Gaussians of growing width."""
    finer = tiles
    for band in range(count):
        coarser = gaussian_blur(tiles, _FIRST_SIGMA * _SIGMA_STEP**band)
        yield finer - coarser
        finer = coarser


def gaussian_blur(tiles: Tensor, sigma: float) -> Tensor:
    """Blur tiles [h, w, n] with a Gaussian; edges are repeated.

    Computed as two products with band matrices: one-channel convolutions took a third of a small network's training.
    """
    height, width, count = tiles.shape
    radius = min(math.ceil(3 * sigma), height - 1, width - 1)
    rows, columns = (_gaussian(extent, sigma, radius, tiles.device) for extent in (height, width))
    along_rows = (rows @ tiles.view(height, -1)).view(height, width, count)
    return torch.bmm(columns.expand(height, -1, -1), along_rows)


def avg_pool(values: Tensor, side: int, axis: int = 0) -> Tensor:
    """Return the mean of each square of rows and columns, which are `axis` and the next: [h, w, n] unless it is given.

    Like all pooling here, it ignores incomplete squares at the end.
    """
    # Rows first, so whole rows are added at once. Both axes in one call take ten times as long.
    return _squares(_squares(values, side, axis).mean(axis + 1), side, axis + 1).mean(axis + 2)


def max_pool(values: Tensor, side: int, axis: int = 0) -> Tensor:
    """Return the maximum of each square, as `avg_pool`."""
    return _squares(_squares(values, side, axis).amax(axis + 1), side, axis + 1).amax(axis + 2)


def min_pool(values: Tensor, side: int, axis: int = 0) -> Tensor:
    """Return the minimum of each square, as `avg_pool`."""
    return _squares(_squares(values, side, axis).amin(axis + 1), side, axis + 1).amin(axis + 2)


def _squares(values: Tensor, side: int, axis: int) -> Tensor:
    """Split an axis into complete pieces of `side` elements."""
    whole = values.shape[axis] // side
    return torch.unflatten(values.narrow(axis, 0, whole * side), axis, (whole, side))


def products(values: Tensor, down: int, right: int) -> Tensor:
    """Return [h, w, n] times itself shifted by these rows and columns, 0 outside."""
    height, width = values.shape[0] - down, values.shape[1] - abs(right)
    near = values[:height, max(0, -right) :][:, :width]
    far = values[down:, max(0, right) :][:, :width]
    found, inner = zero_edged(values, (0, down), (0, abs(right)))
    torch.mul(near, far, out=inner)
    return found


def zero_edged(like: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return a tensor [h, w, n] with this number of zero rows and columns before and after, and the area inside.

    The area is not set: write the result of an operation to it. Padding the result would copy it.
    """
    found = torch.empty_like(like)
    height, width = found.shape[:2]
    found[: rows[0]] = found[height - rows[1] :] = 0
    found[:, : columns[0]] = found[:, width - columns[1] :] = 0
    return found, found[rows[0] : height - rows[1], columns[0] : width - columns[1]]


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _gaussian(extent: int, sigma: float, radius: int, device: torch.device) -> Tensor:
    """Return the matrix [extent, extent] that blurs one axis: row i has the weights of the sources of pixel i."""
    taps = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-(taps.float() ** 2) / (2 * sigma**2))
    sources = (torch.arange(extent)[:, None] + taps).clamp(0, extent - 1)
    weights = (kernel / kernel.sum()).expand(extent, -1)
    return torch.zeros(extent, extent).scatter_add_(1, sources, weights).to(device)


def padded_to(clips: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Pad clips with zeros at the end, so that frames, rows and columns are multiples of the patch's."""
    short = [-extent % step for extent, step in zip(clips.shape[2:], patch, strict=True)]
    return F.pad(clips, (0, short[2], 0, short[1], 0, short[0])) if any(short) else clips
