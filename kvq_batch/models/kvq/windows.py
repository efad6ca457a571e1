"""Where each token of a grid lies once the grid is padded, rolled and cut into windows (KVQ_SPEC section 3.1).

Partition, roll and their inverses are one table of positions here, so that a block gathers some windows, works on
them while they are in cache, and scatters them back. It deliberately knows no channels and no attention.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvq_batch.models.kvq.config import Grid


@dataclass(frozen=True, slots=True)
class WindowGroup:
    """Windows of one layout whose tokens fall into regions in the same way, and so share one attention mask.

    `windows` is int64 [n], numbers of windows; `separated` is bool [N, N], true between tokens of different regions,
    or None where all tokens are of one region.
    """

    windows: Tensor
    separated: Tensor | None


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """The windows of one block: `positions` is int64 [nW, N], the place of each token in the flat padded grid.

    Windows and tokens inside them count (slot, row, column) row-major, on the rolled grid. `padded` is that grid.
    """

    padded: Grid
    positions: Tensor
    groups: tuple[WindowGroup, ...]


def effective(grid: Grid, window: Grid, shifted: bool) -> tuple[Grid, Grid]:
    """(window, shift) on a grid: a window no larger than its axis, and no shift where one window spans the axis."""
    size = [min(extent, full) for extent, full in zip(grid, window, strict=True)]
    # Half a window as Swin rounds it: (4, 3, 3) for (8, 7, 7).
    shift = [full // 2 if shifted and extent > full else 0 for extent, full in zip(grid, window, strict=True)]
    return (size[0], size[1], size[2]), (shift[0], shift[1], shift[2])


def window_layout(grid: Grid, window: Grid, shifted: bool, device: torch.device) -> WindowLayout:
    """The windows of a grid, for an even block (`shifted` false) or an odd one (true)."""
    size, shift = effective(grid, window, shifted)
    counts = tuple(-(-extent // step) for extent, step in zip(grid, size, strict=True))
    padded: Grid = (counts[0] * size[0], counts[1] * size[1], counts[2] * size[2])
    flat = torch.arange(math.prod(padded), device=device).view(padded)
    positions = _cut(torch.roll(flat, [-step for step in shift], dims=(0, 1, 2)), counts, size)

    # A mask differs from its neighbour's only in the last window of a shifted axis, so there are at most 8 of them.
    regions = torch.zeros(padded, dtype=torch.int64, device=device)
    kinds = torch.zeros(counts, dtype=torch.int64, device=device)
    for axis in range(3):
        if shift[axis]:
            place = torch.arange(padded[axis], device=device)
            start, wrapped = padded[axis] - size[axis], padded[axis] - shift[axis]
            region = (place >= start).long() + (place >= wrapped).long()
            last = (torch.arange(counts[axis], device=device) == counts[axis] - 1).long()
            along = [-1 if other == axis else 1 for other in range(3)]
            regions = regions * 3 + region.view(along)
            kinds = kinds * 2 + last.view(along)
    in_window = _cut(regions, counts, size)
    kinds = kinds.flatten()
    groups = []
    for kind in torch.unique(kinds).tolist():
        windows = (kinds == kind).nonzero().flatten()
        tokens = in_window[windows[0]]
        groups.append(WindowGroup(windows, (tokens[:, None] != tokens[None, :]) if kind else None))
    return WindowLayout(padded, positions, tuple(groups))


def bias_index(num_tokens: int, window: Grid, device: torch.device) -> Tensor:
    """Rows of the relative position bias table for each pair of tokens: int64 [N, N] (KVQ_SPEC section 3.2).

    Coordinates are those of a full window even where the real one is smaller: the published network was trained so.
    """
    number = torch.arange(num_tokens, device=device)
    plane = window[1] * window[2]
    index = torch.zeros(num_tokens, num_tokens, dtype=torch.int64, device=device)
    for extent, place in zip(
        window, (number // plane, number // window[2] % window[1], number % window[2]), strict=True
    ):
        index = index * (2 * extent - 1) + (place[:, None] - place[None, :] + extent - 1)
    return index


def _cut(grid: Tensor, counts: tuple[int, ...], size: Grid) -> Tensor:
    """[D, H, W] -> [windows, tokens of a window]."""
    parts = grid.view(counts[0], size[0], counts[1], size[1], counts[2], size[2])
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(math.prod(counts), math.prod(size))
