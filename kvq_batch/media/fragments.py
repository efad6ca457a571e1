"""Small frames that are made of patches at native resolution, so that a model gets pixels as they were coded.

Resizing hides blocks, noise and softness. A patch from each cell of a grid keeps them, and a cell of the texture map
describes the cell of the frame that its patch came from. Positions are fixed, so the same video gives the same score;
only training draws them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from kvq_batch.media.resize import resize


def splice(frame: NDArray[np.uint8], grid: tuple[int, int], out: NDArray[np.uint8]) -> None:
    """Fill `out` uint8 [h, w, 3] with `grid` (rows, columns) patches of `frame` uint8 [H, W, 3], row by row.

    A patch is cut from the middle of its cell. A frame that is too small for whole patches is enlarged first, with the
    bicubic of KVQ_SPEC section 2 and its aspect ratio kept.
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
    """Return the pixels of one axis that the patches take, int64 [num_wanted]: the middle of each of equal cells.

    `rng` draws another position within each cell, as FAST-VQA does in training.
    """
    edges = np.arange(num_patches + 1, dtype=np.int64) * num_pixels // num_patches
    size = num_wanted // num_patches
    room = np.diff(edges) - size
    starts = edges[:-1] + (room // 2 if rng is None else rng.integers(0, room + 1))
    offsets: NDArray[np.int64] = (starts[:, None] + np.arange(size)).reshape(-1)
    return offsets
