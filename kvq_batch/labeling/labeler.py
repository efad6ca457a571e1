"""Labels renditions of one segment: the measures of the whole frame, and one number for every cell and time slot.

The measures are VMAF by two models, PSNR and SSIM of every frame, by libvmaf in one pass. Both clips are sent as one,
with the frames stacked vertically, and get the same time base and time stamps, so frames never get out of step. The
measures compare with a reference. They are not opinions of people.

The labels of a cell are the VMAFs, in its slot, of the whole-frame rendition that the cell is cut from. A local measure
would follow the texture of the cell instead: raw local SSIM as a label taught a small model texture, not quality.
Chains that several recipes share are made and measured once.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_batch.config.recipe import SLOT_FRAMES, Chain, Recipe
from kvq_batch.domain.errors import LabelError
from kvq_batch.labeling.degradations import apply, make_rendition
from kvq_batch.media.ffmpeg import require_filter, run_ffmpeg
from kvq_batch.media.planes import Planes, cell_grid, stacked

VMAF_MODEL = "vmaf_v0.6.1"
VMAF_V1_MODEL = "vmaf_v1.0.16_3d0h"
"""For a viewing distance of three picture heights, as v0.6.1. It counts noise and banding, which v0.6.1 hardly does."""
_V1_SHORT_PX, _V1_LONG_PX = 160, 216
"""Smallest sides that libvmaf 3 measures with VMAF_V1_MODEL: on smaller frames its CAMBI gives an error or crashes."""

_LOG = "log_fmt=json:log_path=/dev/stdout:n_threads=1"
_GRAPH = (
    "[0:v]split[a][b];"
    "[a]crop=iw:ih/2:0:0,settb=1/25,setpts=N[source];"
    "[b]crop=iw:ih/2:0:ih/2,settb=1/25,setpts=N[version];"
    f"[version][source]libvmaf={_LOG}"
)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Measures of every frame of a rendition against its reference, float64 [T] each.

    `vmaf` (VMAF_MODEL) and `vmaf_v1` (VMAF_V1_MODEL) are 0 to 100 (the reference itself gets 97 to 100), `psnr_db` is
    of luma and at most 60, `ssim` is of luma and at most 1. `vmaf_v1` is None for frames below 216 x 160 pixels, which
    its model cannot measure. `libvmaf` is the version of the library.
    """

    vmaf: NDArray[np.float64]
    vmaf_v1: NDArray[np.float64] | None
    psnr_db: NDArray[np.float64]
    ssim: NDArray[np.float64]
    libvmaf: str


def measure(source: Planes, rendition: Planes) -> Fidelity:
    """Return the measures of `rendition`, which has as many frames and the same size as `source`.

    Raises:
        LabelError: ffmpeg fails, or its log does not contain every frame (measure_failed).
        FatalError: this ffmpeg has no libvmaf.
    """
    short_px, long_px = sorted((source.height_px, source.width_px))
    models = {"vmaf": VMAF_MODEL}
    if short_px >= _V1_SHORT_PX and long_px >= _V1_LONG_PX:
        models["vmaf_v1"] = VMAF_V1_MODEL
    found, libvmaf = libvmaf_metrics(source, rendition, models, {"psnr": "psnr_y", "float_ssim": None})
    return Fidelity(found["vmaf"], found.get("vmaf_v1"), found["psnr_y"], found["float_ssim"], libvmaf)


def libvmaf_metrics(
    source: Planes, rendition: Planes, models: Mapping[str, str], features: Mapping[str, str | None]
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Return metrics of every frame by name, float64 [T] each, and the version of libvmaf.

    `models` maps the name of a result to a model of libvmaf, `features` a feature to the name in the log of what is
    wanted of it, None for the same name.

    Raises:
        LabelError, FatalError: as `measure`.
    """
    require_filter("libvmaf")
    both = stacked(source, rendition)
    chosen = "|".join(f"version={version}\\:name={name}" for name, version in models.items())
    graph = f"{_GRAPH}:model='{chosen}':feature='{'|'.join(f'name={name}' for name in features)}'"
    text = run_ffmpeg([*both.raw_arguments, "-lavfi", graph, "-f", "null", "-"], both.data.tobytes())
    names = [*models, *(wanted or name for name, wanted in features.items())]
    try:
        log: dict[str, Any] = json.loads(text)
        frames = [frame["metrics"] for frame in sorted(log["frames"], key=lambda frame: frame["frameNum"])]
        found = {name: np.array([frame[name] for frame in frames]) for name in names}
        libvmaf = str(log["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise LabelError("measure_failed", f"libvmaf's log cannot be read: {text[:200]!r}") from error
    if len(frames) != source.num_frames or not all(np.isfinite(column).all() for column in found.values()):
        raise LabelError("measure_failed", f"libvmaf measured {len(frames)} of {source.num_frames} frames")
    return found, libvmaf


def slot_means(frames: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the mean over the frames of each time slot, float32 [S]; the last slot may be shorter."""
    starts = np.arange(0, len(frames), SLOT_FRAMES)
    counts = np.diff([*starts, len(frames)])
    means: NDArray[np.float32] = (np.add.reduceat(frames, starts) / counts).astype(np.float32)
    return means


KEPT_BYTES = 512 << 20
"""Renditions of one segment that are cached for other recipes: 50 with 32 frames of 448 x 448."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A rendition and its measures; `cells` and `cells_v1`, float32 [S, R, C], are the VMAFs of each cell.

    `cells_v1` is None where `vmaf_v1` is.
    """

    rendition: Planes
    fidelity: Fidelity
    cells: NDArray[np.float32]
    cells_v1: NDArray[np.float32] | None


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
        cells = self._cells(recipe, {steps: fidelity.vmaf for steps, fidelity in of_chains.items()})
        v1 = {steps: fidelity.vmaf_v1 for steps, fidelity in of_chains.items() if fidelity.vmaf_v1 is not None}
        return Labelled(rendition, whole, cells, self._cells(recipe, v1) if v1 else None)

    def _cells(self, recipe: Recipe, of_chains: Mapping[Chain, NDArray[np.float64]]) -> NDArray[np.float32]:
        slots = {steps: slot_means(frames) for steps, frames in of_chains.items()}
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
