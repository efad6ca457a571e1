"""Maps as they are stored: signed 8-bit integers with an offset and a scale, from which the score comes out again.

Texture is stored linearly. Saliency is a softmax times the number of cells, with a heavy tail, so its square root is
stored: the small values, which are most of them, keep their digits. Rounding errors of 3136 cells do not cancel
wholly, and a region's mean should add up to the stored score, so where both maps exist the offset of
the texture is moved, by far less than one step, until mean(texture * saliency) of the stored maps is that of the given
ones. Measured on KVQ maps of 12 clips, untrained (`benchmarks/maps_encoding.py`): 5.8 kB a video, score exact to
rounding of doubles; unshifted 0.05% of the spread of scores, with int16 saliency 0.06% and 13 kB, because it is the
texture's rounding that counts; a single slot's score is off by 0.5% at most.

Legend of axes: S slots, R rows, C columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 254
"""Steps between the smallest and the largest value: int8 from -127 to 127, symmetric, -128 unused."""


@dataclass(frozen=True, slots=True)
class StoredMaps:
    """Both maps of one clip, quantised, flat in the order [slot, row, column]; either may be absent.

    texture = q * texture_scale + texture_offset; saliency = (q * saliency_scale + saliency_offset) squared. A scale is
    0 for a constant map. Offsets and scales of an absent map are None.
    """

    shape: tuple[int, int, int]
    texture: NDArray[np.int8] | None
    texture_offset: float | None
    texture_scale: float | None
    saliency: NDArray[np.int8] | None
    saliency_offset: float | None
    saliency_scale: float | None

    def row(self) -> dict[str, Any]:
        """The columns of the table `maps` that this fills."""
        return {
            "num_slots": self.shape[0],
            "num_rows": self.shape[1],
            "num_cols": self.shape[2],
            "texture": self.texture,
            "texture_offset": self.texture_offset,
            "texture_scale": self.texture_scale,
            "saliency": self.saliency,
            "saliency_offset": self.saliency_offset,
            "saliency_scale": self.saliency_scale,
        }


def quantise(texture_SRC: NDArray[np.float32] | None, saliency_SRC: NDArray[np.float32] | None) -> StoredMaps:
    """The maps of one clip as they are stored.

    A value of the texture comes back within half a step (1/508 of its range) and the shift of the offset, saliency
    within half a step of its square root. Raises: ValueError for maps that are absent both, empty, not [slot, row,
    column], of different shapes, not finite, or for a negative saliency.
    """
    given = [map_SRC for map_SRC in (texture_SRC, saliency_SRC) if map_SRC is not None]
    if not given:
        raise ValueError("there is neither a texture nor a saliency map")
    shape = given[0].shape
    if len(shape) != 3 or 0 in shape or any(map_SRC.shape != shape for map_SRC in given):
        raise ValueError(f"maps must be [slot, row, column] of one shape, got {[m.shape for m in given]}")
    if not all(np.isfinite(map_SRC).all() for map_SRC in given):
        raise ValueError("a map has values that are not finite")
    if saliency_SRC is not None and saliency_SRC.min() < 0:
        raise ValueError("saliency is a softmax and cannot be negative")
    texture = None if texture_SRC is None else _steps(texture_SRC.astype(np.float64).ravel())
    saliency = None if saliency_SRC is None else _steps(np.sqrt(saliency_SRC.astype(np.float64).ravel()))
    offset = None if texture is None else texture[1]
    if texture_SRC is not None and saliency_SRC is not None and texture is not None and saliency is not None:
        wanted = np.vdot(texture_SRC.astype(np.float64), saliency_SRC.astype(np.float64))
        weights = (saliency[0] * saliency[2] + saliency[1]) ** 2
        total = weights.sum()
        if total > 0:
            offset = float((wanted - texture[2] * np.vdot(texture[0].astype(np.float64), weights)) / total)
    return StoredMaps(
        shape=(shape[0], shape[1], shape[2]),
        texture=None if texture is None else texture[0],
        texture_offset=offset,
        texture_scale=None if texture is None else texture[2],
        saliency=None if saliency is None else saliency[0],
        saliency_offset=None if saliency is None else saliency[1],
        saliency_scale=None if saliency is None else saliency[2],
    )


def _steps(values: NDArray[np.float64]) -> tuple[NDArray[np.int8], float, float]:
    """Levels, offset and scale: values = levels * scale + offset, to within scale / 2."""
    low, high = float(values.min()), float(values.max())
    # Halved before the difference: the range of finite values may not be finite.
    offset, scale = low / 2 + high / 2, (high / 2 - low / 2) / (LEVELS / 2)
    if scale == 0:
        return np.zeros(values.shape, np.int8), offset, 0.0
    levels = np.rint((values - offset) / scale).clip(-(LEVELS // 2), LEVELS // 2)
    return levels.astype(np.int8), offset, scale


def dequantise(maps: StoredMaps) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Texture and saliency, float32 [slot, row, column], None where absent."""
    texture_SRC = saliency_SRC = None
    if maps.texture is not None and maps.texture_scale is not None and maps.texture_offset is not None:
        texture = maps.texture * maps.texture_scale + maps.texture_offset
        texture_SRC = texture.reshape(maps.shape).astype(np.float32)
    if maps.saliency is not None and maps.saliency_scale is not None and maps.saliency_offset is not None:
        saliency = (maps.saliency * maps.saliency_scale + maps.saliency_offset) ** 2
        saliency_SRC = saliency.reshape(maps.shape).astype(np.float32)
    return texture_SRC, saliency_SRC
