"""Bicubic resize as MATLAB's `imresize` computes it, which published features depend on.

The kernel is Keys' cubic with a = -0.5. Reduction stretches it (antialiasing), weights of a pixel sum to 1, and the
border is mirrored with the edge pixel repeated (STUDY_SPEC section 1.1). Axes: H rows, W columns, C channels.
"""

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Real = NDArray[np.float64]


def imresize(image: NDArray[Any], scale: float | tuple[int, int]) -> NDArray[Any]:
    """Return `image` [H, W] or [H, W, C] at another size: `scale` times both axes, or (rows, columns).

    A uint8 image is rounded and clipped after each axis, as in MATLAB. Floats keep their type and are not rounded. The
    axis with the smaller scale is resized first, rows first if both are equal.
    """
    if isinstance(scale, tuple):
        sizes = scale
        scales = (sizes[0] / image.shape[0], sizes[1] / image.shape[1])
    else:
        sizes = (math.ceil(scale * image.shape[0]), math.ceil(scale * image.shape[1]))
        scales = (scale, scale)
    for axis in (0, 1) if scales[0] <= scales[1] else (1, 0):
        if scales[axis] == 1 and sizes[axis] == image.shape[axis]:
            continue
        image = _resize_axis(image, axis, sizes[axis], scales[axis])
    return image


def _resize_axis(image: NDArray[Any], axis: int, size: int, scale: float) -> NDArray[Any]:
    """Return `image` with `size` pixels along one axis."""
    matrix = _weights(image.shape[axis], size, scale)
    if image.dtype == np.float32:
        matrix = matrix.astype(np.float32)
    # Rows of memory are pixels that share their weights. OpenCV transposes in blocks, five times faster than numpy.
    lines = cv2.transpose(image) if axis else image
    resized: NDArray[Any] = matrix @ lines.reshape(len(lines), -1).astype(matrix.dtype, copy=False)
    if image.dtype == np.uint8:
        # Half is rounded up: MATLAB rounds half away from zero, and clipping removes negative values.
        resized = np.clip(np.floor(resized + 0.5), 0, 255).astype(np.uint8)
    resized = resized.reshape(size, *lines.shape[1:])
    return cv2.transpose(resized) if axis else resized


@lru_cache(maxsize=64)
def _weights(num: int, size: int, scale: float) -> csr_array:
    """Return the weights of `num` pixels for each of `size` results, sparse float64 [size, num]."""
    shrink = min(scale, 1.0)
    width = 4 / shrink
    # MATLAB counts pixels from 1.
    centres = np.arange(1, size + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = np.floor(centres - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic(shrink * (centres[:, None] - taps))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = (taps.astype(np.int64) - 1) % (2 * num)
    columns = np.where(mirrored < num, mirrored, 2 * num - 1 - mirrored)
    rows = np.repeat(np.arange(size), taps.shape[1])
    matrix = csr_array((weights.ravel(), (rows, columns.ravel())), shape=(size, num))
    matrix.eliminate_zeros()
    return matrix


def _cubic(t: Real) -> Real:
    """Return Keys' cubic kernel with a = -0.5."""
    t = np.abs(t)
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t <= 2, far, 0.0))
