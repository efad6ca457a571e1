"""Operations on pixels before they become tokens: normalisation, luma, bands of detail, pooling.

Functions that use neighbouring pixels work on tiles, because adjacent patches of a spliced frame were not neighbours
in the video.

Axes: B clips, T frames, H rows, W columns, n tiles, h and w pixels of a tile.
"""

import math
from collections.abc import Iterator

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
    mean, std = (torch.tensor(values, device=clips.device) for values in (MEAN, STD))
    return ((clips.float() - mean) / std).permute(0, 4, 1, 2, 3)


def luma(clips: Tensor) -> Tensor:
    """Return the luma in grey levels [B, T, H, W] of normalised clips [B, 3, T, H, W]."""
    std, mean, weights = (torch.tensor(values, device=clips.device) for values in (STD, MEAN, _LUMA))
    found: Tensor = torch.tensordot(std * weights, clips, dims=([0], [1])) + (mean * weights).sum()
    return found


def in_tiles(planes: Tensor, tile: tuple[int, int]) -> Tensor:
    """Cut planes [B, T, H, W] into tiles [n, h, w], row by row, frame by frame."""
    rows, columns = planes.shape[2] // tile[0], planes.shape[3] // tile[1]
    return planes.reshape(-1, rows, tile[0], columns, tile[1]).transpose(2, 3).reshape(-1, *tile)


def bands_of_tiles(tiles: Tensor, count: int) -> Iterator[Tensor]:
    """Yield the `count` finest bands of luma [n, h, w], finest first: differences of Gaussians of growing width."""
    finer = tiles
    for band in range(count):
        coarser = gaussian_blur(tiles, _FIRST_SIGMA * _SIGMA_STEP**band)
        yield finer - coarser
        finer = coarser


def gaussian_blur(tiles: Tensor, sigma: float) -> Tensor:
    """Blur tiles [n, h, w] with a Gaussian; edges are repeated.

    Computed as two products with band matrices: one-channel convolutions took a third of a small network's training.
    """
    radius = min(math.ceil(3 * sigma), *(extent - 1 for extent in tiles.shape[1:]))
    rows, columns = (_gaussian(extent, sigma, radius, tiles.device) for extent in tiles.shape[1:])
    return rows @ tiles @ columns.t()


def avg_pool(values: Tensor, side: int) -> Tensor:
    """Return the mean of each square of [n, h, w]. Like all pooling here, it ignores incomplete squares at the end."""
    # Rows first, so whole rows are added at once. torch's average pooling takes 1.5 to 2 times as long, its max
    # pooling 4 times.
    return _squares(_squares(values, side, 1).mean(2), side, 2).mean(3)


def max_pool(values: Tensor, side: int) -> Tensor:
    """Return the maximum of each square of [n, h, w]."""
    return _squares(_squares(values, side, 1).amax(2), side, 2).amax(3)


def _squares(values: Tensor, side: int, axis: int) -> Tensor:
    """Split an axis into complete pieces of `side` elements."""
    whole = values.shape[axis] // side
    return torch.unflatten(values.narrow(axis, 0, whole * side), axis, (whole, side))


def min_pool(values: Tensor, side: int) -> Tensor:
    """Return the minimum of each square of [n, h, w]."""
    return -max_pool(-values, side)


def products(values: Tensor, down: int, right: int) -> Tensor:
    """Return [n, h, w] times itself shifted by these rows and columns, 0 outside."""
    height, width = values.shape[1:]
    near = values[:, : height - down, max(0, -right) : width - max(0, right)]
    far = values[:, down:, max(0, right) : width - max(0, -right)]
    return F.pad(near * far, (0, abs(right), 0, down))


def _gaussian(extent: int, sigma: float, radius: int, device: torch.device) -> Tensor:
    """Return the matrix [extent, extent] that blurs one axis: row i has the weights of the sources of pixel i."""
    taps = torch.arange(-radius, radius + 1, device=device)
    kernel = torch.exp(-(taps.float() ** 2) / (2 * sigma**2))
    sources = (torch.arange(extent, device=device)[:, None] + taps).clamp(0, extent - 1)
    weights = (kernel / kernel.sum()).expand(extent, -1)
    return torch.zeros(extent, extent, device=device).scatter_add_(1, sources, weights)


def padded_to(clips: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Pad clips with zeros at the end, so that frames, rows and columns are multiples of the patch's."""
    short = [-extent % step for extent, step in zip(clips.shape[2:], patch, strict=True)]
    return F.pad(clips, (0, short[2], 0, short[1], 0, short[0])) if any(short) else clips
