"""The bicubic resize that KVQ was published with, in numpy, so that a decode process need not import torch.

KVQ_SPEC section 2: float32, a = -0.75, align_corners false, no antialiasing, clamp to 0..255, round half to even, and
a frame that has the size already is returned untouched. Both passes are products with a banded matrix, cut into blocks
of output rows (columns), so that the work is matrix products of a few hundred rows instead of gathers.
Against torch: at most 1 grey level apart, where a value lies within 0.01 of a tie and the sums are added in another
order. Of noise and grain that is 2e-5 to 5e-5 of the values, of blurred or coarsely coded 720p up to 1.6e-3, of
lettering in two flat colours at 1080p 2.2e-3, of one flat colour none. It does not antialias on purpose: from
torchvision 0.17 on the same call does, and the scores are others.

Legend: F frames, H rows, W columns, 3 = RGB, t source rows (columns) that a block of outputs reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_A = np.float32(-0.75)
# Blocks small enough that a block's float rows stay in the second-level cache (43 rows of 1080p: 1 MB), measured best
# of 8, 16, 32 and 64 for 1080p -> 448.
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class _Band:
    """Outputs [first, last) of one axis as a product with inputs [low, high).

    `weights` is float32 [last-first, t] for rows; for columns its transpose, as they stand on the right.
    """

    first: int
    last: int
    low: int
    high: int
    weights: NDArray[np.float32]


def bicubic_taps(num_in: int, num_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Clamped source positions int64 [num_out, 4] and weights float32 [num_out, 4] of one axis.

    Keys' kernel with a = -0.75 around src = (num_in / num_out) * (i + 0.5) - 0.5, computed in float32 as the
    published code's library does.
    """
    scale = np.float32(num_in) / np.float32(num_out)
    source = scale * (np.arange(num_out, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    floor = np.floor(source)
    t = source - floor
    one, two = np.float32(1), np.float32(2)

    def near(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return ((_A + two) * x - (_A + np.float32(3))) * x * x + one

    def far(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return ((_A * x - np.float32(5) * _A) * x + np.float32(8) * _A) * x - np.float32(4) * _A

    weights = np.stack([far(t + one), near(t), near(one - t), far(two - t)], axis=1)
    positions = floor.astype(np.int64)[:, None] + np.arange(-1, 3)
    return np.clip(positions, 0, num_in - 1), weights.astype(np.float32)


@lru_cache(maxsize=32)
def _bands(num_in: int, num_out: int, channels: int) -> tuple[_Band, ...]:
    """The axis cut into blocks; with `channels` > 1 each weight acts on interleaved channels of one pixel."""
    positions, weights = bicubic_taps(num_in, num_out)
    bands = []
    for first in range(0, num_out, _BLOCK):
        last = min(first + _BLOCK, num_out)
        low, high = int(positions[first:last].min()), int(positions[first:last].max()) + 1
        dense = np.zeros((last - first, high - low), np.float32)
        rows = np.repeat(np.arange(last - first), 4)
        np.add.at(dense, (rows, (positions[first:last] - low).reshape(-1)), weights[first:last].reshape(-1))
        if channels > 1:
            dense = np.ascontiguousarray(np.kron(dense, np.eye(channels, dtype=np.float32)).T)
        bands.append(_Band(first * channels, last * channels, low * channels, high * channels, dense))
    return tuple(bands)


def resize(frames: NDArray[np.uint8], size: tuple[int, int], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Frames uint8 [..., h, w, 3] of `size` (h, w) from frames uint8 [..., H, W, 3]; `frames` itself where it fits.

    With `out` (uint8 [..., h, w, 3]) the result is written there, whatever the size, and returned.
    """
    height, width = frames.shape[-3:-1]
    if (height, width) == size:
        if out is None:
            return frames
        out[...] = frames
        return out
    if out is None:
        out = np.empty((*frames.shape[:-3], *size, 3), np.uint8)
    for index in _each(frames.shape[:-3]):
        _resize_frame(frames[index], size, out[index])
    return out


def _each(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return iter(np.ndindex(*shape))


def _resize_frame(frame: NDArray[np.uint8], size: tuple[int, int], out: NDArray[np.uint8]) -> None:
    """One frame uint8 [H, W, 3] into `out` uint8 [h, w, 3]: rows first, because their memory is contiguous."""
    height, width = frame.shape[:2]
    rows = frame.reshape(height, width * 3)
    down = _bands(height, size[0], 1)
    # One float buffer for all blocks, which stays in the cache: fresh ones cost more than the conversion.
    source = np.empty((max(band.high - band.low for band in down), width * 3), np.float32)
    mixed = np.empty((size[0], width * 3), np.float32)
    for band in down:
        block = source[: band.high - band.low]
        np.copyto(block, rows[band.low : band.high])
        np.matmul(band.weights, block, out=mixed[band.first : band.last])
    result = np.empty((size[0], size[1] * 3), np.float32)
    for band in _bands(width, size[1], 3):
        np.matmul(mixed[:, band.low : band.high], band.weights, out=result[:, band.first : band.last])
    np.rint(result, out=result)
    np.clip(result, 0.0, 255.0, out=result)
    out[...] = result.reshape(*size, 3)
