"""Labels renditions of one segment: the measures of the whole frame, and one number for every cell and time slot.

The label of a cell is the VMAF, in its slot, of the whole-frame rendition that the cell is cut from. A local measure
would follow the texture of the cell instead: raw local SSIM as a label taught a small model texture, not quality.
Chains that several recipes share are made and measured once.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvq_batch.config.recipe import Chain, Recipe
from kvq_batch.labeling.degradations import apply, make_rendition
from kvq_batch.labeling.fidelity import Fidelity, measure, slot_means
from kvq_batch.media.planes import Planes, cell_grid

KEPT_BYTES = 512 << 20
"""Renditions of one segment that are cached for other recipes: 50 with 32 frames of 448 x 448."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A rendition and its measures. `cells` is float32 [S, R, C]: the VMAF of each cell (see the module)."""

    rendition: Planes
    fidelity: Fidelity
    cells: NDArray[np.float32]


class Labeler:
    """Makes and measures renditions of one segment; not thread-safe."""

    def __init__(self, source: Planes, kept_bytes: int = KEPT_BYTES) -> None:
        self._source = source
        self._kept_bytes = kept_bytes
        self._renditions: OrderedDict[tuple[Chain, int], Planes] = OrderedDict()
        self._measured: dict[tuple[Chain, int], Fidelity] = {}

    def label(self, recipe: Recipe) -> Labelled:
        """Return the rendition of `recipe` with its measures.

        Raises:
            LabelError: it cannot be made or measured.
            FatalError: ffmpeg has no libvmaf.
        """
        rendition = make_rendition(self._source, recipe, lambda steps: self._rendition(steps, recipe.seed))
        of_chains = {steps: self._measure(steps, recipe.seed) for steps in recipe.chains}
        whole = measure(self._source, rendition) if recipe.patches else of_chains[recipe.steps]
        return Labelled(rendition, whole, self._cells(recipe, of_chains))

    def _cells(self, recipe: Recipe, of_chains: dict[Chain, Fidelity]) -> NDArray[np.float32]:
        slots = {steps: slot_means(fidelity.vmaf) for steps, fidelity in of_chains.items()}
        rows, columns = cell_grid(self._source.height_px, self._source.width_px)
        cells = np.empty((len(slots[recipe.steps]), rows, columns), np.float32)
        cells[:] = slots[recipe.steps][:, None, None]
        for patch in recipe.patches:
            area = patch.cells
            inside = np.s_[:, area.top : area.top + area.rows, area.left : area.left + area.columns]
            cells[inside] = slots[patch.steps][:, None, None]
        return cells

    def _rendition(self, steps: Chain, seed: int) -> Planes:
        key = (steps, seed)
        if key not in self._renditions:
            self._renditions[key] = apply(self._source, steps, seed)
        self._renditions.move_to_end(key)
        while len(self._renditions) > 1 and self._num_bytes() > self._kept_bytes:
            self._renditions.popitem(last=False)
        return self._renditions[key]

    def _num_bytes(self) -> int:
        return sum(rendition.data.nbytes for rendition in self._renditions.values())

    def _measure(self, steps: Chain, seed: int) -> Fidelity:
        key = (steps, seed)
        if key not in self._measured:
            self._measured[key] = measure(self._source, self._rendition(steps, seed))
        return self._measured[key]
