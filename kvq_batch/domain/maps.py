"""Quantised maps: signed 8-bit integers with an offset and a scale, from which the score can be computed again.

Texture is stored linearly. Saliency, a softmax times the number of cells, has a heavy tail, so its square root is
stored, which keeps the precision of small values. Rounding errors of 3136 cells do not cancel completely. So that the
means of regions are consistent with the stored score, the offset of the texture is shifted, by far less than one step:
then mean(texture * saliency) of the stored maps equals that of the given maps.

Measured on KVQ maps of 12 clips, untrained (`benchmarks/maps_encoding.py`): 5.8 kB per video, and a score exact to
rounding of doubles. Without the shift, its error is 0.05% of the spread of scores. With int16 saliency it is 0.06% at
13 kB, because the rounding of the texture dominates. The score of a single slot has an error of at most 0.5%.

Axes: S slots, R rows, C columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEVERITY_LEVELS = 100
"""Severities are stored in percent."""

LEVELS = 254
"""Steps between the smallest and the largest value: int8 from -127 to 127; -128 is not used."""


@dataclass(frozen=True, slots=True)
class StoredMaps:
    """Quantised maps of one clip, flat in the order [slot, row, column]; either may be absent.

    texture = q * texture_scale + texture_offset; saliency = (q * saliency_scale + saliency_offset)^2. A constant map
    has scale 0. An absent map has offset and scale None. `causes` are severities in percent by cause, flat [slot, row,
    column], or [slot] for a cause of the whole frame.
    """

    shape: tuple[int, int, int]
    texture: NDArray[np.int8] | None
    texture_offset: float | None
    texture_scale: float | None
    saliency: NDArray[np.int8] | None
    saliency_offset: float | None
    saliency_scale: float | None
    causes: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the columns of the table `maps` that hold these maps."""
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
            "texture_mean": self._mean_over_slots(self.texture, self.texture_offset, self.texture_scale, 1),
            "saliency_mean": self._mean_over_slots(self.saliency, self.saliency_offset, self.saliency_scale, 2),
            "causes": self.causes,
        }

    def _mean_over_slots(
        self, levels: NDArray[np.int8] | None, offset: float | None, scale: float | None, power: int
    ) -> NDArray[np.int8] | None:
        """Return the mean over the slots in the same levels, flat [row, column]; None for an absent map.

        The value of a level q is (q * scale + offset)^power. A mean lies between its values, so it has a level.
        """
        if levels is None or offset is None or scale is None:
            return None
        num_cells = self.shape[1] * self.shape[2]
        if scale == 0:
            return np.zeros(num_cells, np.int8)
        values = (levels.reshape(-1, num_cells) * scale + offset) ** power
        means: NDArray[np.float64] = values.mean(axis=0) ** (1 / power)
        return np.rint((means - offset) / scale).clip(-(LEVELS // 2), LEVELS // 2).astype(np.int8)


def quantise(texture_SRC: NDArray[np.float32] | None, saliency_SRC: NDArray[np.float32] | None) -> StoredMaps:
    """Quantise the maps of one clip.

    The error of a texture value is at most half a step (1/508 of its range) plus the shift of the offset; that of the
    square root of saliency at most half a step.

    Raises:
        ValueError: both maps are absent, or a map is empty, not [slot, row, column], not finite, of another shape than
            the other, or a negative saliency.
    """
    given = [map_SRC for map_SRC in (texture_SRC, saliency_SRC) if map_SRC is not None]
    if not given:
        raise ValueError("Both maps are absent.")
    shape = given[0].shape
    if len(shape) != 3 or 0 in shape or any(map_SRC.shape != shape for map_SRC in given):
        raise ValueError(f"Maps must be [slot, row, column] of one shape, got {[m.shape for m in given]}.")
    if not all(np.isfinite(map_SRC).all() for map_SRC in given):
        raise ValueError("A map has values that are not finite.")
    if saliency_SRC is not None and saliency_SRC.min() < 0:
        raise ValueError("The saliency map has negative values.")
    texture = None if texture_SRC is None else _steps(texture_SRC.astype(np.float64).ravel())
    saliency = None if saliency_SRC is None else _steps(np.sqrt(saliency_SRC.astype(np.float64).ravel()))
    offset = None if texture is None else texture[1]
    if texture_SRC is not None and saliency_SRC is not None and texture is not None and saliency is not None:
        score_sum = np.vdot(texture_SRC.astype(np.float64), saliency_SRC.astype(np.float64))
        weights = (saliency[0] * saliency[2] + saliency[1]) ** 2
        total = weights.sum()
        if total > 0:
            offset = float((score_sum - texture[2] * np.vdot(texture[0].astype(np.float64), weights)) / total)
    return StoredMaps(
        shape=(shape[0], shape[1], shape[2]),
        texture=None if texture is None else texture[0],
        texture_offset=offset,
        texture_scale=None if texture is None else texture[2],
        saliency=None if saliency is None else saliency[0],
        saliency_offset=None if saliency is None else saliency[1],
        saliency_scale=None if saliency is None else saliency[2],
    )


def quantise_causes(causes: Mapping[str, NDArray[np.float32]]) -> StoredMaps:
    """Quantise the severities of one clip, and leave out causes that were found nowhere.

    Raises:
        ValueError: no cause, a severity outside of 0..1, or causes that are not [slot, row, column] or [slot] of one
            grid with at least one cause of [slot, row, column].
    """
    grids = {values.shape for values in causes.values() if values.ndim == 3}
    slots = {values.shape[0] for values in causes.values()}
    if len(grids) != 1 or len(slots) != 1 or any(values.ndim not in (1, 3) for values in causes.values()):
        raise ValueError(f"Causes must be of one grid, got { ({name: v.shape for name, v in causes.items()}) }.")
    if any(not (values.min() >= 0 and values.max() <= 1) for values in causes.values()):
        raise ValueError("A cause has a severity outside of 0..1.")
    levels = {name: np.rint(values * SEVERITY_LEVELS).astype(np.int8).ravel() for name, values in causes.items()}
    (shape,) = grids
    found = {name: percent for name, percent in levels.items() if percent.any()}
    return StoredMaps((shape[0], shape[1], shape[2]), None, None, None, None, None, None, found)


def _steps(values: NDArray[np.float64]) -> tuple[NDArray[np.int8], float, float]:
    """Return levels, offset and scale, with values = levels * scale + offset up to scale / 2."""
    low, high = float(values.min()), float(values.max())
    # Halved before the difference, which could overflow.
    offset, scale = low / 2 + high / 2, (high / 2 - low / 2) / (LEVELS / 2)
    if scale == 0:
        return np.zeros(values.shape, np.int8), offset, 0.0
    levels = np.rint((values - offset) / scale).clip(-(LEVELS // 2), LEVELS // 2)
    return levels.astype(np.int8), offset, scale


def dequantise(maps: StoredMaps) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Return texture and saliency, float32 [slot, row, column], None if absent."""
    texture_SRC = saliency_SRC = None
    if maps.texture is not None and maps.texture_scale is not None and maps.texture_offset is not None:
        texture = maps.texture * maps.texture_scale + maps.texture_offset
        texture_SRC = texture.reshape(maps.shape).astype(np.float32)
    if maps.saliency is not None and maps.saliency_scale is not None and maps.saliency_offset is not None:
        saliency = (maps.saliency * maps.saliency_scale + maps.saliency_offset) ** 2
        saliency_SRC = saliency.reshape(maps.shape).astype(np.float32)
    return texture_SRC, saliency_SRC
