"""Cubes of a clip, one for each cell of its texture map, that the network also sees alone (KVQ_SPEC section 5).

As coded by the authors a cube is its cell: [2, 32, 32] at the published sizes. As they wrote it is [2, 28, 28]; then a
cube is the middle of its cell, which keeps cubes and cells one to one. That placing is ours: the text names none.
This module cuts and puts together; it computes no texture.
"""

from torch import Tensor

from kvq_batch.domain.errors import SpecError
from kvq_batch.models.kvq.config import Grid, KvqConfig


def check_cube(config: KvqConfig, cube: Grid) -> None:
    """Returns if cubes of this size (frames, rows, columns) can stand in the cells of the configuration's clips.

    Raises:
        SpecError: a cube larger than its cell, or of a size that the network cannot run on.
    """
    _cell((config.num_frames, *config.input_size), config, cube)
    config.maps_shape(*cube)


def cut_cubes(clips: Tensor, config: KvqConfig, cube: Grid) -> Tensor:
    """Normalised clips [B, 3, T, H, W] -> cubes [B * slots * rows * columns, 3, *cube], by clip, slot, row, column.

    Raises:
        SpecError: clips that do not divide into cells, or a cube larger than a cell.
    """
    size = (clips.shape[2], clips.shape[3], clips.shape[4])
    slots, rows, columns = config.maps_shape(*size)
    cell = _cell(size, config, cube)
    margin = [(outer - inner) // 2 for outer, inner in zip(cell, cube, strict=True)]
    cells = clips.view(len(clips), 3, slots, cell[0], rows, cell[1], columns, cell[2])
    inner = cells.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, 3, *cell)
    t, y, x = (slice(start, start + extent) for start, extent in zip(margin, cube, strict=True))
    return inner[:, :, t, y, x]


def texture_of_cubes(texture: Tensor, like: Tensor) -> Tensor:
    """Textures of cubes [B * cells, 1, 1, 1], in the order of `cut_cubes`, as maps of the shape of `like`."""
    return texture.reshape(like.shape)


def _cell(size: Grid, config: KvqConfig, cube: Grid) -> Grid:
    grid = config.maps_shape(*size)
    cell = tuple(extent // cells for extent, cells in zip(size, grid, strict=True))
    if any(extent % cells for extent, cells in zip(size, grid, strict=True)):
        raise SpecError(f"clips of {size} do not divide into {grid} cells of equal size, which the lpc loss needs")
    if any(inner > outer or inner < 1 for inner, outer in zip(cube, cell, strict=True)):
        raise SpecError(f"an lpc cube of {cube} does not fit a cell of {cell} (frames, rows, columns)")
    return cell[0], cell[1], cell[2]
