"""Windows of a grid of FAST-VQA: which tokens they contain, which of them are separated, and which share a fragment.

Regions of a rolled grid and distances of fragments are sums over the axes, so each axis has a few kinds of windows, and
windows of one kind on every axis share one bias (FASTVQA_SPEC section 3.3).

Axes: D slots, H rows, W columns, N tokens of a window, k kinds of windows of an axis, w tokens of a window on an axis.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kvq_batch.models.fastvqa.config import Grid


@dataclass(frozen=True, slots=True)
class AxisKinds:
    """Windows of one axis, by kind, on the host.

    `kind` int64 [windows] is the kind of each window. `regions` int64 [k, w, w] is 1 between tokens of different
    regions of the rolled grid, `distance` int64 [k, w, w] the number of fragments between two tokens.
    """

    kind: Tensor
    regions: Tensor
    distance: Tensor


@dataclass(frozen=True, slots=True)
class WindowKind:
    """Windows that share one bias: their indices int64 [n], and what tells their tokens apart.

    `is_separated` bool [N, N] is true between tokens of different regions, None if there is one region. `distance`
    float32 [N, N] is the distance of the fragments of two tokens, in fragments: rows plus columns.
    """

    windows: Tensor
    is_separated: Tensor | None
    distance: Tensor


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """The windows of one block, on one device. It is immutable and shared: `window_layout` keeps it.

    `indices` int64 [windows, N] is the index of each token in the flat padded grid; `is_padding` bool [windows, N] is
    true for tokens outside the grid, None if there are none. Windows, and tokens in them, are ordered by (slot, row,
    column) of the rolled grid.
    """

    padded: Grid
    size: Grid
    indices: Tensor
    is_padding: Tensor | None
    axes: tuple[AxisKinds, AxisKinds, AxisKinds]

    def kinds(self) -> Iterable[WindowKind]:
        """Return the kinds of windows.

        A CPU makes their matrices one after the other, because the 64 of stage 0 take 60 MB. A GPU keeps them, because
        the host would wait for it to make them again.
        """
        return self._make_kinds() if self.indices.device.type == "cpu" else _kept_kinds(self)

    def _make_kinds(self) -> Iterator[WindowKind]:
        device = self.indices.device
        slots, rows, columns = self.axes
        for kind in torch.cartesian_prod(*(torch.arange(len(axis.regions)) for axis in self.axes)).tolist():
            chosen = [axis.kind == number for axis, number in zip(self.axes, kind, strict=True)]
            mask = chosen[0][:, None, None] & chosen[1][:, None] & chosen[2]
            separated = _pairwise_sum(*(axis.regions[number] for axis, number in zip(self.axes, kind, strict=True)))
            distance = _pairwise_sum(
                torch.zeros_like(slots.distance[kind[0]]), rows.distance[kind[1]], columns.distance[kind[2]]
            )
            is_separated = separated.bool().to(device) if separated.any() else None
            yield WindowKind(mask.flatten().nonzero().flatten().to(device), is_separated, distance.float().to(device))


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _kept_kinds(layout: WindowLayout) -> tuple[WindowKind, ...]:
    return tuple(layout._make_kinds())


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def window_layout(grid: Grid, size: Grid, shift: Grid, device: torch.device) -> WindowLayout:
    """Return the windows of `size` of a grid that is padded at its end and rolled by -`shift`.

    The layout is computed on the host and kept, so the host never waits for a device. A shift may exceed the window
    (FASTVQA_SPEC section 3.2). As published, a frame is taken to have as many fragments as the window has tokens, on
    the padded grid.
    """
    counts = tuple(-(-extent // step) for extent, step in zip(grid, size, strict=True))
    padded: Grid = (counts[0] * size[0], counts[1] * size[1], counts[2] * size[2])
    is_inside = F.pad(torch.ones(grid, dtype=torch.bool), _padding(grid, padded))
    flat = torch.arange(math.prod(padded)).view(padded)
    indices = _in_windows(flat, size, shift)
    inside = _in_windows(is_inside, size, shift)
    kinds = [axis_kinds(*axis) for axis in zip(padded, size, shift, strict=True)]
    is_padding = None if inside.all() else (~inside).to(device)
    return WindowLayout(padded, size, indices.to(device), is_padding, (kinds[0], kinds[1], kinds[2]))


def axis_kinds(length: int, size: int, shift: int) -> AxisKinds:
    """Return the kinds of windows of `size` on an axis of `length` tokens that is rolled by -`shift`."""
    index = torch.arange(length)
    if shift:
        # The last region wins where the shift exceeds the window.
        regions = torch.where(index >= length - shift, 2, (index >= length - size).long())
    else:
        regions = torch.zeros_like(index)
    # The product is in float32, as that of torch's nearest interpolation; it can be below the exact quotient.
    scale = torch.tensor(size, dtype=torch.float32) / length
    fragment = torch.roll((index * scale).floor().long(), -shift)
    of_window = [values.view(-1, size) for values in (regions, fragment)]
    differs = (of_window[0][:, :, None] != of_window[0][:, None, :]).long()
    distance = (of_window[1][:, :, None] - of_window[1][:, None, :]).abs()
    unique, kind = torch.unique(torch.stack([differs, distance], 1), dim=0, return_inverse=True)
    return AxisKinds(kind, unique[:, 0], unique[:, 1])


def _pairwise_sum(slots: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the sum over the axes for each pair of tokens of a window, [N, N], of one matrix [w, w] per axis."""
    total = (
        slots[:, None, None, :, None, None] + rows[None, :, None, None, :, None] + columns[None, None, :, None, None, :]
    )
    return total.flatten(3).flatten(0, 2)


def _in_windows(grid: Tensor, size: Grid, shift: Grid) -> Tensor:
    """Roll a grid [D, H, W] by -`shift` and cut it into windows, [windows, N]."""
    rolled = torch.roll(grid, [-step for step in shift], dims=(0, 1, 2))
    for axis, extent in enumerate(size):
        rolled = torch.unflatten(rolled, 2 * axis, (-1, extent))
    return rolled.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)


def _padding(grid: Grid, padded: Grid) -> list[int]:
    """Return the amounts of `F.pad` that extend a grid [D, H, W] at its end."""
    short = [after - before for before, after in zip(grid, padded, strict=True)]
    return [0, short[2], 0, short[1], 0, short[0]]
