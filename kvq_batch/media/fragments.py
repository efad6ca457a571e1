"""Native-resolution patches spliced into one small frame, so that a model sees pixels as they were coded.

Resizing to a model's input hides blocks, noise and softness; a patch from each cell of a grid shows them all, and the
cell of a texture map that lies under it speaks for that cell of the frame. Places are fixed: the same video gives the
same score; only a training draws them. This module chooses no frames.
"""

import math

import numpy as np
from numpy.typing import NDArray

from kvq_batch.media.resize import resize


def splice(frame: NDArray[np.uint8], grid: tuple[int, int], out: NDArray[np.uint8]) -> None:
    """Fills `out` uint8 [h, w, 3] with `grid` (rows, columns) patches of `frame` uint8 [H, W, 3], row by row.

    A patch is cut from the middle of its cell; the same places in every frame of one size. A frame that is too small
    to give whole patches is first enlarged, by the bicubic of KVQ_SPEC section 2, keeping its shape.
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
    """Pixels of one axis that the patches take, int64 [num_wanted], in order: the middle of each of equal cells.

    `rng` draws another place within each cell, as FAST-VQA does in training.
    """
    edges = np.arange(num_patches + 1, dtype=np.int64) * num_pixels // num_patches
    size = num_wanted // num_patches
    room = np.diff(edges) - size
    starts = edges[:-1] + (room // 2 if rng is None else rng.integers(0, room + 1))
    places: NDArray[np.int64] = (starts[:, None] + np.arange(size)).reshape(-1)
    return places
