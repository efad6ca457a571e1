"""Measures of one frame without a reference: blur, noise, blockiness, clipping, dark pictures and bars.

Functions take 8-bit luma Y, uint8 [H, W]. Those of a place in the frame return one value per cell of a grid, float32
[rows, cols]. A measure that a cell does not show (the blur of a cell without an edge) is NaN there.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Luma = NDArray[np.uint8]
Floats = NDArray[np.float32]
Grid = tuple[int, int]

_BLOCK = 8
# An edge has at least this contrast, in levels.
_EDGE = 24
# Mask of Immerkaer (CVIU 64(2), 1996): blind to planes, and 6 times the deviation of white noise.
_IMMERKAER = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
# Levels of limited range that count as black and as white.
_BLACK, _WHITE = 20, 233


@dataclass(frozen=True, slots=True)
class Bars:
    """Black bars around a picture: rows above and below, columns left and right."""

    top: int
    bottom: int
    left: int
    right: int

    def share(self, height: int, width: int) -> float:
        """Return the share of the frame that bars cover."""
        return 1 - (height - self.top - self.bottom) * (width - self.left - self.right) / (height * width)


def to_limited(luma: Luma) -> Luma:
    """Return full-range luma (0..255) in limited range (16..235)."""
    table = np.rint(16 + np.arange(256) * (219 / 255)).astype(np.uint8)
    return np.asarray(table[luma])


def cell_means(values: NDArray[np.uint8] | Floats, grid: Grid) -> Floats:
    """Return the mean of each cell of [H, W], float32 [rows, cols]; cells share pixels at their borders by area."""
    rows, cols = grid
    means = cv2.resize(values.astype(np.float32), (cols, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(means, np.float32)


def edge_width(luma: Luma, grid: Grid) -> Floats:
    """Return the mean width of edges, pixels: contrast / steepest step of the blocks of 8x8 pixels with an edge.

    A step has a width of 1, an edge with a Gaussian of sigma s about 2.5 s (its 10% to 90% distance), at most 7. NaN
    for a cell with fewer than two blocks that have an edge.
    """
    contrast = (_over_blocks(np.maximum, luma) - _over_blocks(np.minimum, luma)).astype(np.float32)
    # Steps between two blocks are left out: a codec makes them.
    steps = np.zeros((2, *luma.shape), np.uint8)
    steps[0, :, :-1] = cv2.absdiff(luma[:, 1:], luma[:, :-1])
    steps[1, :-1] = cv2.absdiff(luma[1:], luma[:-1])
    steps[0, :, _BLOCK - 1 :: _BLOCK] = steps[1, _BLOCK - 1 :: _BLOCK] = 0
    across, down = (_over_blocks(np.maximum, step) for step in steps)
    steepest = np.maximum(np.maximum(across, down), 1).astype(np.float32)
    is_edge = contrast >= _EDGE
    width = np.where(is_edge, contrast / steepest, 0).astype(np.float32)
    share = cell_means(is_edge.astype(np.float32), grid)
    blocks_per_cell = contrast.size / (grid[0] * grid[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = cell_means(width, grid) / share
    found[share * blocks_per_cell < min(2.0, 0.5 * blocks_per_cell)] = np.nan
    return found


def noise_deviation(luma: Luma, grid: Grid) -> Floats:
    """Return the standard deviation of noise, levels, from the smoothest blocks of each cell.

    Immerkaer's mask cancels planes. Texture passes it, so a cell has the value of the quarter of its blocks of 8x8
    pixels with the lowest one. Blocks that are clipped at black or white have no noise to measure and do not count.
    """
    passed = np.abs(cv2.filter2D(luma, cv2.CV_32F, _IMMERKAER, borderType=cv2.BORDER_REFLECT))
    deviation = _block_means(passed) * np.float32(np.sqrt(np.pi / 2) / 6)
    mean = _block_means(luma.astype(np.float32))
    deviation[(mean <= _BLACK) | (mean >= _WHITE)] = np.nan
    return _quantile_of_cells(deviation.astype(np.float32), grid, 0.25)


def blockiness(luma: Luma, grid: Grid) -> Floats:
    """Return how much more often a step is a peak at multiples of 8 pixels than elsewhere, -1..1 per cell.

    A step is a peak if it is larger than both of its neighbours by more than one level. In a picture without blocks
    that is equally often so at all positions. The mean of horizontal and vertical steps: a straight edge of the picture
    may lie on a multiple of 8, but blocks have borders both ways.
    """
    across, down = _peaks(luma), _peaks(luma.T).T
    both: Floats = (_excess_at_borders(across, grid) + _excess_at_borders(down.T, grid[::-1]).T) / np.float32(2)
    return both


def _peaks(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return whether the step from pixel x to x + 1 is a peak, 0 or 1 [H, W]; 0 at the sides."""
    step = cv2.absdiff(luma[:, 1:], luma[:, :-1])
    beside = cv2.max(step[:, :-2], step[:, 2:])
    found = np.zeros(luma.shape, np.uint8)
    found[:, 1:-2] = cv2.subtract(step[:, 1:-1], beside) > 1
    return found


def _excess_at_borders(peaks: NDArray[np.uint8], grid: Grid) -> Floats:
    """Return the share of peaks at columns 7, 15, ... minus that of the other columns."""
    peaks = peaks[:, : peaks.shape[1] - peaks.shape[1] % _BLOCK]
    # Not the positions beside a border: they cannot be peaks if the border is.
    others = range(1, _BLOCK - 2)
    elsewhere = np.add.reduce([peaks[:, position::_BLOCK] for position in others], dtype=np.uint8)
    return cell_means(peaks[:, _BLOCK - 1 :: _BLOCK], grid) - cell_means(elsewhere, grid) / np.float32(len(others))


def clipped_share(luma: Luma, grid: Grid) -> Floats:
    """Return the share of pixels of each cell that are white (limited range)."""
    return cell_means((luma >= _WHITE).astype(np.uint8), grid)


def bars_of(luma: Luma) -> Bars:
    """Return the black bars of a frame; none for a frame that is black as a whole."""
    height, width = luma.shape
    # A bar may hold noise of a codec, but not a caption.
    is_bright = (luma > _BLACK + 4).astype(np.uint8)
    row_is_black = cv2.reduce(is_bright, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() <= 0.02 * width
    column_is_black = cv2.reduce(is_bright, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() <= 0.02 * height
    if row_is_black.all() or column_is_black.all():
        return Bars(0, 0, 0, 0)
    top, bottom = int(np.argmin(row_is_black)), int(np.argmin(row_is_black[::-1]))
    left, right = int(np.argmin(column_is_black)), int(np.argmin(column_is_black[::-1]))
    return Bars(top, bottom, left, right)


def _over_blocks(reduce: np.ufunc, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a reduction of each whole block of 8x8 pixels. Rows first: that is many times faster than both at once."""
    height, width = (n - n % _BLOCK for n in values.shape)
    rows = reduce.reduce(values[:height, :width].reshape(height // _BLOCK, _BLOCK, width), axis=1)
    return np.asarray(reduce.reduce(rows.reshape(height // _BLOCK, width // _BLOCK, _BLOCK), axis=2), np.uint8)


def _block_means(values: Floats) -> Floats:
    """Return the mean of each whole block of 8x8 pixels."""
    height, width = (n - n % _BLOCK for n in values.shape)
    size = (width // _BLOCK, height // _BLOCK)
    return np.asarray(cv2.resize(values[:height, :width], size, interpolation=cv2.INTER_AREA), np.float32)


def _quantile_of_cells(values: Floats, grid: Grid, share: float) -> Floats:
    """Return a low quantile of the blocks of each cell, NaN where all of them are NaN."""
    rows, cols = (np.linspace(0, n, k + 1).astype(int) for n, k in zip(values.shape, grid, strict=True))
    found = np.full(grid, np.nan, np.float32)
    for i, j in np.ndindex(grid):
        # A cell that is smaller than a block has the value of the block at its upper left.
        cell = values[rows[i] : max(rows[i] + 1, rows[i + 1]), cols[j] : max(cols[j] + 1, cols[j + 1])]
        cell = cell[np.isfinite(cell)]
        if cell.size:
            found[i, j] = np.partition(cell, int(share * cell.size))[int(share * cell.size)]
    return found
