"""The resizes of the published code of models, in numpy: decode processes do not import torch.

Bicubic, of KVQ (KVQ_SPEC section 2): float32, a = -0.75, align_corners false, no antialiasing, clamp to 0..255, round
half to even. A frame that has the size already is returned unchanged. Since torchvision 0.17 the same call antialiases,
which changes the scores. Bilinear, of DOVER and others: torch's, without and with antialiasing.

Both passes are products with a banded matrix, in blocks of output rows (columns): matrix products of a few hundred rows
are faster than gathers. Results differ from torch's by at most 1 level, where a value is within 0.01 of a tie and sums
are added in another order. That is 2e-5 to 5e-5 of the values of noise and grain, up to 1.6e-3 of blurred or coarsely
coded 720p, 2.2e-3 of lettering in two flat colours at 1080p, and none of one flat colour.

Legend: H rows, W columns, 3 = RGB, t source rows (columns) that a block of outputs reads.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from kvq_batch.domain.frames import Resize

_A = np.float32(-0.75)
_LOBES = 3
# The float rows of a block fit into the second-level cache (43 rows of 1080p: 1 MB). Fastest of 8, 16, 32 and 64 for
# 1080p to 448.
_BLOCK = 16


@dataclass(frozen=True, slots=True)
class _Band:
    """Outputs [first, last) of one axis as a product with inputs [low, high).

    `weights` is float32 [last-first, t] for rows, and the transpose for columns, which multiply from the right.
    """

    first: int
    last: int
    low: int
    high: int
    weights: NDArray[np.float32]


def bicubic_taps(num_in: int, num_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return clamped source positions int64 [num_out, 4] and weights float32 [num_out, 4] of one axis.

    Keys' kernel with a = -0.75 around src = (num_in / num_out) * (i + 0.5) - 0.5, in float32 as in torch.
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


def bilinear_taps(num_in: int, num_out: int, is_antialiased: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return clamped source positions int64 [num_out, n] and weights float32 [num_out, n] of one axis.

    torch's bilinear interpolation with align_corners false. With antialiasing, the triangle is as wide as the sources
    of an output when the axis shrinks, and the weights are divided by their sum.
    """
    scale = num_in / num_out
    if not is_antialiased:
        source = np.maximum(np.float32(scale) * (np.arange(num_out, dtype=np.float32) + np.float32(0.5)) - 0.5, 0)
        floor = np.floor(source)
        weights = np.stack([1 - (source - floor), source - floor], axis=1)
        positions = floor.astype(np.int64)[:, None] + np.arange(2)
        return np.clip(positions, 0, num_in - 1), weights.astype(np.float32)
    width = max(scale, 1.0)
    centres = scale * (np.arange(num_out) + 0.5)
    low = np.maximum((centres - width + 0.5).astype(np.int64), 0)
    high = np.minimum((centres + width + 0.5).astype(np.int64), num_in)
    positions = low[:, None] + np.arange(int((high - low).max()))
    triangle = np.maximum(0.0, 1.0 - np.abs((positions - centres[:, None] + 0.5) / width))
    triangle[positions >= high[:, None]] = 0.0
    triangle /= triangle.sum(axis=1, keepdims=True)
    return np.clip(positions, 0, num_in - 1), triangle.astype(np.float32)


def lanczos_taps(num_in: int, num_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return clamped source positions int64 [num_out, n] and weights float32 [num_out, n] of one axis.

    sinc(x) sinc(x / 3) for |x| < 3, as wide as the sources of an output when the axis shrinks; weights sum to 1.
    """
    scale = num_in / num_out
    width = max(scale, 1.0)
    centres = scale * (np.arange(num_out) + 0.5)
    low = np.maximum((centres - _LOBES * width + 0.5).astype(np.int64), 0)
    high = np.minimum((centres + _LOBES * width + 0.5).astype(np.int64), num_in)
    positions = low[:, None] + np.arange(int((high - low).max()))
    x = (positions + 0.5 - centres[:, None]) / width
    weights = np.where((np.abs(x) < _LOBES) & (positions < high[:, None]), np.sinc(x) * np.sinc(x / _LOBES), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(positions, 0, num_in - 1), weights.astype(np.float32)


def _taps(num_in: int, num_out: int, kind: Resize) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if kind == "bicubic":
        return bicubic_taps(num_in, num_out)
    if kind == "lanczos":
        return lanczos_taps(num_in, num_out)
    return bilinear_taps(num_in, num_out, kind == "bilinear-antialias")


@lru_cache(maxsize=32)
def _bands(num_in: int, num_out: int, channels: int, kind: Resize) -> tuple[_Band, ...]:
    """Return the blocks of an axis. With `channels` > 1 each weight is repeated for the channels of a pixel."""
    positions, weights = _taps(num_in, num_out, kind)
    bands = []
    for first in range(0, num_out, _BLOCK):
        last = min(first + _BLOCK, num_out)
        low, high = int(positions[first:last].min()), int(positions[first:last].max()) + 1
        dense = np.zeros((last - first, high - low), np.float32)
        rows = np.repeat(np.arange(last - first), positions.shape[1])
        np.add.at(dense, (rows, (positions[first:last] - low).reshape(-1)), weights[first:last].reshape(-1))
        if channels > 1:
            dense = np.ascontiguousarray(np.kron(dense, np.eye(channels, dtype=np.float32)).T)
        bands.append(_Band(first * channels, last * channels, low * channels, high * channels, dense))
    return tuple(bands)


def resize(
    frames: NDArray[np.uint8], size: tuple[int, int], out: NDArray[np.uint8] | None = None, kind: Resize = "bicubic"
) -> NDArray[np.uint8]:
    """Return frames uint8 [..., h, w, 3] of `size` (h, w) for frames uint8 [..., H, W, 3].

    Frames that have the size are returned as they are. With `out` (uint8 [..., h, w, 3]) the result is written there
    and `out` is returned. The first call limits the BLAS of this process to one thread.
    """
    height, width = frames.shape[-3:-1]
    if (height, width) == size:
        if out is None:
            return frames
        out[...] = frames
        return out
    if out is None:
        out = np.empty((*frames.shape[:-3], *size, 3), np.uint8)
    _limit_blas_threads()
    for index in _each(frames.shape[:-3]):
        _resize_frame(frames[index], size, out[index], kind)
    return out


@cache
def _limit_blas_threads() -> None:
    """Limit numpy's matrix products to one thread, for the rest of this process.

    The products of a frame are small: other threads spin between them, and took 6.0 instead of 1.8 core-seconds for a
    clip (measured). The number is not restored after each frame, because it is one number for all threads of Python.
    """
    threadpool_limits(1, user_api="blas")


def _each(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return iter(np.ndindex(*shape))


def _resize_frame(frame: NDArray[np.uint8], size: tuple[int, int], out: NDArray[np.uint8], kind: Resize) -> None:
    """Resize a frame uint8 [H, W, 3] into `out` uint8 [h, w, 3], rows first, as their memory is contiguous."""
    height, width = frame.shape[:2]
    rows = frame.reshape(height, width * 3)
    down = _bands(height, size[0], 1, kind)
    # All blocks share one float buffer that stays in the cache. New buffers cost more than the conversion.
    source = np.empty((max(band.high - band.low for band in down), width * 3), np.float32)
    mixed = np.empty((size[0], width * 3), np.float32)
    for band in down:
        block = source[: band.high - band.low]
        np.copyto(block, rows[band.low : band.high])
        np.matmul(band.weights, block, out=mixed[band.first : band.last])
    result = np.empty((size[0], size[1] * 3), np.float32)
    for band in _bands(width, size[1], 3, kind):
        np.matmul(mixed[:, band.low : band.high], band.weights, out=result[:, band.first : band.last])
    np.rint(result, out=result)
    np.clip(result, 0.0, 255.0, out=result)
    out[...] = result.reshape(*size, 3)


def resize_and_crop(frame: NDArray[np.uint8], short_side: int, kind: Resize, out: NDArray[np.uint8]) -> None:
    """Fill `out` uint8 [h, w, 3] with the middle of `frame` uint8 [H, W, 3].

    A frame with a longer short side is first resized to `short_side` in its own shape. One that is smaller than `out`
    after that is resized to its size.
    """
    factor = short_side / min(frame.shape[:2])
    if factor < 1:
        frame = resize(frame, (round(frame.shape[0] * factor), round(frame.shape[1] * factor)), kind=kind)
    top, left = ((extent - wanted) // 2 for extent, wanted in zip(frame.shape[:2], out.shape[:2], strict=True))
    if min(top, left) < 0:
        resize(frame, (out.shape[0], out.shape[1]), out=out, kind=kind)
    else:
        out[...] = frame[top : top + out.shape[0], left : left + out.shape[1]]


def splice(frame: NDArray[np.uint8], grid: tuple[int, int], out: NDArray[np.uint8]) -> None:
    """Fill `out` uint8 [h, w, 3] with `grid` (rows, columns) patches of `frame` uint8 [H, W, 3], row by row.

    A patch shows blocks, noise and softness at the coded resolution, which resizing hides, and the cell of a texture
    map below it scores that cell of the frame. It is cut from the middle of its cell: the same indices in every frame
    of one size. A frame that is too small for whole patches is enlarged first, in its own shape (KVQ_SPEC section 2).
    """
    height, width = out.shape[:2]
    factor = max(height / frame.shape[0], width / frame.shape[1])
    if factor > 1:
        enlarged = [math.ceil(extent * factor) for extent in frame.shape[:2]]
        frame = resize(frame, (max(height, enlarged[0]), max(width, enlarged[1])))
    rows = patch_offsets(frame.shape[0], height, grid[0])
    columns = patch_offsets(frame.shape[1], width, grid[1])
    out[...] = frame[rows[:, None], columns[None, :]]


def patch_offsets(
    num_pixels: int, num_wanted: int, num_patches: int, rng: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """Return the indices of one axis that the patches take, int64 [num_wanted], in order.

    A patch is in the middle of each of equal cells; with `rng`, anywhere in its cell, as in the training of FAST-VQA.
    """
    edges = np.arange(num_patches + 1, dtype=np.int64) * num_pixels // num_patches
    size = num_wanted // num_patches
    room = np.diff(edges) - size
    starts = edges[:-1] + (room // 2 if rng is None else rng.integers(0, room + 1))
    indices: NDArray[np.int64] = (starts[:, None] + np.arange(size)).reshape(-1)
    return indices
