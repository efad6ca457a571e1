"""Versions of one source as training sees them: single slots, drawn patches, rectangles of two versions.

Frames stand in `.npy` files at their own size. A drawn view is one slot of a clip; its patches are cut at drawn places
(FAST-VQA, ECCV 2022, section 3.1), it is mirrored and its contrast changed by chance, and by chance rectangles of it
show another version of the same pixels, each cell keeping the label of its version: what teaches a texture map to find
regions. Labels of drawn views are the means of their cells. Who decodes and who labels is no matter here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.config.recipe import draw_cells
from kvq_batch.domain.errors import SpecError, shorten_list
from kvq_batch.media.fragments import patch_offsets
from kvq_batch.training.frame_files import loaded
from kvq_batch.training.samples import Sample, Views, seed_of

_MOST_RECTANGLES = 3


@dataclass(frozen=True, slots=True)
class Framing:
    """How views are cut out of files.

    `input_size` (height, width) and `grid` (rows, columns of the maps) are the network's. With `is_cut` a view is
    spliced from a patch for each cell of the grid; else files are of the input's size, and views are whole frames.
    `slot_frames` is the number of frames of a slot. Cell labels have `num_slots` slots, and `frame_slots[i]` is the one
    that frame i of a file lies in. `mix` is the share of drawn views that are mixed. `flip` mirrors half of them each
    way and turns half where they are square. `contrast` is the most by which differences of pixels grow or shrink, so
    that how much detail there is says less of which scene it is; where it is not 1, colours are moved too.
    """

    input_size: tuple[int, int]
    grid: tuple[int, int]
    is_cut: bool
    slot_frames: int
    num_slots: int
    frame_slots: tuple[int, ...]
    mix: float = 0.0
    flip: bool = True
    contrast: float = 1.0


@dataclass(frozen=True)
class RenditionFiles:
    """A `ClipSource` over files of versions.

    `frames[i]` is uint8 RGB [T, H, W, 3], `cells[i]` float32 [slots, rows, columns], labels of the cells of the whole
    frame. Only versions of the same frames are mixed.
    """

    samples: Sequence[Sample]
    frames: Sequence[Path]
    cells: Sequence[Path]
    framing: Framing

    def check(self) -> None:
        """Returns if every file is there with a shape that views can be cut from.

        Raises:
            SpecError: files that are missing, too small, or not of their group's size, the first few by name.
        """
        sizes: dict[str, tuple[int, ...]] = {}
        wrong = []
        for place, (path, cells) in enumerate(zip(self.frames, self.cells, strict=True)):
            reason = self._why_not(path, cells, sizes, self._frames_id(place))
            if reason:
                wrong.append(f"{path} ({reason})")
        if wrong:
            raise SpecError(f"frames or cell labels that cannot be trained on: {shorten_list(wrong, 3)}")

    def read(self, places: Sequence[int], draw: int | None) -> Views:
        """See `ClipSource`. The fixed view is every frame that is kept, its patches in the middle as for scoring."""
        if draw is None:
            clips = np.stack([self._fixed(place) for place in places])
            return Views(clips, np.array([self.samples[place].label for place in places], np.float64))
        drawn = [self._drawn(place, draw) for place in places]
        clips, cells = (np.stack(part) for part in zip(*drawn, strict=True))
        return Views(clips, cells.mean((1, 2, 3), dtype=np.float64), cells)

    @cached_property
    def _versions(self) -> dict[str, list[int]]:
        """The places of each group."""
        groups: dict[str, list[int]] = {}
        for place in range(len(self.samples)):
            groups.setdefault(self._frames_id(place), []).append(place)
        return groups

    def _frames_id(self, place: int) -> str:
        """Of which frames a sample is a version; one that does not tell is alone."""
        sample = self.samples[place]
        return sample.frames_id or f"alone:{sample.sample_id}"

    def _fixed(self, place: int) -> NDArray[np.uint8]:
        frames = loaded(self.frames[place])
        rows, columns = self._patches(frames.shape, None)
        return np.asarray(frames[:, rows[:, None], columns[None, :]], np.uint8)

    def _drawn(self, place: int, draw: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A view [slot_frames, height, width, 3] and its cells [1, rows, columns].

        Where it is, and how it is turned, is drawn for the frames, so that their versions are seen alike; what is
        mixed into it is drawn for itself.
        """
        framing = self.framing
        rng, own = _generator(draw, "frames", self._frames_id(place)), _generator(draw, "mix", place)
        frames = loaded(self.frames[place])
        number = rng.integers(len(framing.frame_slots) // framing.slot_frames) * framing.slot_frames
        slot = slice(number, number + framing.slot_frames)
        rows, columns = self._patches(frames.shape, rng)
        clip = np.array(frames[slot][:, rows[:, None], columns[None, :]], np.uint8)
        cells = self._cells(place, slot)
        if own.random() < framing.mix:
            versions = self._versions[self._frames_id(place)]
            other = versions[own.integers(len(versions))]
            inside = np.zeros(framing.grid, bool)
            for _ in range(own.integers(1, _MOST_RECTANGLES + 1)):
                where = draw_cells(framing.grid, own)
                inside[where.top : where.top + where.rows, where.left : where.left + where.columns] = True
            pixels = inside.repeat(framing.input_size[0] // framing.grid[0], 0)
            pixels = pixels.repeat(framing.input_size[1] // framing.grid[1], 1)
            others = loaded(self.frames[other])[slot][:, rows[:, None], columns[None, :]]
            clip[:, pixels] = others[:, pixels]
            cells = np.where(inside, self._cells(other, slot), cells)
        if framing.flip:
            clip, cells = _turned(clip, cells, rng)
        if framing.contrast > 1:
            gain, shift = framing.contrast ** rng.uniform(-1, 1), rng.uniform(-0.1, 0.1, 3)
            clip = _with_contrast(clip, gain, shift.astype(np.float32))
        return np.ascontiguousarray(clip), np.ascontiguousarray(cells)

    def _patches(
        self, shape: tuple[int, ...], rng: np.random.Generator | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the frame that a view takes."""
        framing = self.framing
        grid = framing.grid if framing.is_cut else (1, 1)
        rows, columns = (
            patch_offsets(extent, wanted, count, rng)
            for extent, wanted, count in zip(shape[1:3], framing.input_size, grid, strict=True)
        )
        return rows, columns

    def _cells(self, place: int, slot: slice) -> NDArray[np.float32]:
        """Labels of the grid's cells in a slot, float32 [1, rows, columns]: those of the places in their middles."""
        labels = loaded(self.cells[place])
        rows, columns = (
            (2 * np.arange(count) + 1) * extent // (2 * count)
            for count, extent in zip(self.framing.grid, labels.shape[1:], strict=True)
        )
        of_frames = labels[list(self.framing.frame_slots[slot])]
        found: NDArray[np.float32] = of_frames.mean(0, dtype=np.float32, keepdims=True)
        return found[:, rows[:, None], columns[None, :]]

    def _why_not(self, path: Path, cells: Path, sizes: dict[str, tuple[int, ...]], pixels: str) -> str:
        missing = [str(file) for file in (path, cells) if not file.is_file()]
        if missing:
            return f"no such file: {', '.join(missing)}"
        try:
            frames, labels = (np.load(file, mmap_mode="r", allow_pickle=False) for file in (path, cells))
        except (OSError, ValueError, EOFError) as error:
            return str(error)
        height, width = self.framing.input_size
        if frames.dtype != "uint8" or frames.ndim != 4 or len(frames) != len(self.framing.frame_slots):
            return f"{frames.dtype} {list(frames.shape)}, not uint8 of {len(self.framing.frame_slots)} frames"
        is_exact = frames.shape[1:3] == (height, width)
        if not is_exact and (not self.framing.is_cut or frames.shape[1] < height or frames.shape[2] < width):
            return f"{frames.shape[2]}x{frames.shape[1]} pixels, the network needs {width}x{height}"
        if labels.dtype != "float32" or labels.ndim != 3 or len(labels) != self.framing.num_slots:
            return f"cell labels {labels.dtype} {list(labels.shape)}, not float32 of {self.framing.num_slots} slots"
        if sizes.setdefault(pixels, frames.shape) != frames.shape:
            return f"{list(frames.shape)}, another version of the same frames is {list(sizes[pixels])}"
        return ""


def _generator(draw: int, purpose: str, of: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_of(draw, purpose, of)))


def _turned(
    clip: NDArray[np.uint8], cells: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Both mirrored by chance, each way, and rows and columns exchanged by chance where there are as many."""
    across, down, turned = rng.random(3) < 0.5
    if across:
        clip, cells = clip[:, :, ::-1], cells[..., ::-1]
    if down:
        clip, cells = clip[:, ::-1], cells[:, ::-1]
    if turned and clip.shape[1] == clip.shape[2] and cells.shape[1] == cells.shape[2]:
        clip, cells = clip.swapaxes(1, 2), cells.swapaxes(1, 2)
    return clip, cells


def _with_contrast(clip: NDArray[np.uint8], gain: float, shift: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The clip, its distance from its mean times `gain`, each colour moved by its `shift` of the whole range."""
    mean = clip.mean(dtype=np.float32)
    moved = (clip - mean) * np.float32(gain) + (mean + np.float32(255 * shift + 0.5))
    changed: NDArray[np.uint8] = np.clip(moved, 0, 255).astype(np.uint8)
    return changed
