"""Clip sources over `.npy` files of decoded frames: whole clips, and drawn views of renditions.

Files are memory-mapped: a batch reads what it needs, and the page cache of the system does the rest. Missing or
unsuitable files are rejected, with an error that names them, before the first step.
"""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_batch.config.recipe import draw_cells
from kvq_batch.domain.errors import FatalError, SpecError, shorten_list
from kvq_batch.media.resize import patch_offsets
from kvq_batch.training.samples import Sample, Views, seed_of

_MAX_RECTANGLES = 3


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """A `ClipSource` over whole clips.

    `views[i]` names the files of sample i, uint8 RGB [T, H, W, 3] of one shape: the first is the fixed view, training
    draws from all of them. `cells[i]` names a file with float32 [slots, rows, columns], labels of the cells in the
    scale of the labels, NaN where there is none; None where a sample has no such file.
    """

    samples: Sequence[Sample]
    views: Sequence[tuple[Path, ...]]
    cells: Sequence[Path | None] | None = None

    def check(self, clip_shape: tuple[int, ...], maps_shape: tuple[int, ...]) -> None:
        """Check that every file exists and has its shape.

        Raises:
            SpecError: files that are missing or of another shape, the first few by name.
        """
        expected = [(path, "uint8", clip_shape) for paths in self.views for path in paths]
        expected += [(path, "float32", maps_shape) for path in self.cells or () if path is not None]
        invalid = [f"{path} ({fault})" for path, kind, shape in expected if (fault := _find_fault(path, kind, shape))]
        _raise_on(invalid)

    def read(self, indices: Sequence[int], draw: int | None) -> Views:
        """Return views of the samples at `indices`; see `ClipSource`."""
        clips = np.stack([load_array(self._view(index, draw)) for index in indices])
        labels = np.array([self.samples[index].label for index in indices], np.float64)
        return Views(clips, labels, self._cells(indices))

    def _view(self, index: int, draw: int | None) -> Path:
        paths = self.views[index]
        if draw is None:
            return paths[0]
        # Renditions of the same frames get the same view. The word "place" is part of the seed.
        return paths[seed_of(draw, "place", self.samples[index].frames_id or index) % len(paths)]

    def _cells(self, indices: Sequence[int]) -> NDArray[np.float32] | None:
        paths = [self.cells[index] for index in indices] if self.cells is not None else []
        found = {i: load_array(path) for i, path in enumerate(paths) if path is not None}
        if not found:
            return None
        shape = next(iter(found.values())).shape
        return np.stack([found[i] if i in found else np.full(shape, np.nan, np.float32) for i in range(len(paths))])


@dataclass(frozen=True, slots=True)
class CroppedFiles:
    """A `ClipSource` over clips that are larger than the input.

    `views[i]` names files of sample i, uint8 RGB [T, H, W, 3] of any size of at least `size` (height, width). The fixed
    view is the centre of the first file. A drawn view is a random area of a random file, mirrored half of the time if
    `flip` is set; renditions of the same frames are cut alike.
    """

    samples: Sequence[Sample]
    views: Sequence[tuple[Path, ...]]
    num_frames: int
    size: tuple[int, int]
    flip: bool = True

    def check(self) -> None:
        """Check that every file exists and is large enough.

        Raises:
            SpecError: files that are missing or too small, the first few by name.
        """
        invalid = []
        for sample, paths in zip(self.samples, self.views, strict=True):
            faults = {_find_clip_fault(path, self.num_frames, self.size) for path in paths} - {""}
            invalid += [f"{sample.sample_id} ({fault})" for fault in sorted(faults)]
        _raise_on(invalid)

    def read(self, indices: Sequence[int], draw: int | None) -> Views:
        """Return views of the samples at `indices`; see `ClipSource`."""
        labels = np.array([self.samples[index].label for index in indices], np.float64)
        return Views(np.stack([self._view(index, draw) for index in indices]), labels)

    def _view(self, index: int, draw: int | None) -> NDArray[np.uint8]:
        paths = self.views[index]
        rng = None if draw is None else view_generator(draw, "crop", self.samples[index].frames_id or f"alone:{index}")
        clip_THWC = load_array(paths[0] if rng is None else paths[rng.integers(len(paths))])
        room = [extent - wanted for extent, wanted in zip(clip_THWC.shape[1:3], self.size, strict=True)]
        top, left = (extra // 2 if rng is None else int(rng.integers(extra + 1)) for extra in room)
        clip_THWC = clip_THWC[:, top : top + self.size[0], left : left + self.size[1]]
        if rng is not None and self.flip and rng.random() < 0.5:
            clip_THWC = clip_THWC[:, :, ::-1]
        return np.ascontiguousarray(clip_THWC, np.uint8)


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """How views are cut out of files.

    `input_size` (height, width) and `grid` (rows, columns of the maps) are the network's. With `is_cut` a view is
    spliced from one patch per cell of the grid; otherwise files have the size of the input, and views are whole
    frames. `slot_frames` is the number of frames of a time slot. Cell labels have `num_slots` slots, and
    `frame_slots[i]` is the slot that frame i of a file belongs to.

    `mix` is the share of drawn views that are mixed. `flip` mirrors half of the views horizontally and half
    vertically, and transposes half of those that are square. `contrast` is the largest factor by which differences of
    pixels grow or shrink, so that the amount of detail says less about the scene; if it is above 1, colours are
    shifted too.
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
    """A `ClipSource` over renditions at their own size.

    `frames[i]` names uint8 RGB [T, H, W, 3], `cells[i]` float32 [slots, rows, columns], labels of the cells of the
    whole frame. A drawn view is one time slot of a clip. Its patches are cut at random positions (FAST-VQA, ECCV 2022,
    section 3.1), it is mirrored and its contrast changed at random. At random, rectangles of it show another rendition
    of the same frames, and each cell keeps the label of the rendition that it shows: this teaches a texture map to
    find regions. The label of a drawn view is the mean of its cells.
    """

    samples: Sequence[Sample]
    frames: Sequence[Path]
    cells: Sequence[Path]
    layout: ViewLayout

    def check(self) -> None:
        """Check that every file exists with a shape that views can be cut from.

        Raises:
            SpecError: files that are missing, too small, or not of the size of their group, the first few by name.
        """
        sizes: dict[str, tuple[int, ...]] = {}
        invalid = []
        for index, (path, cells) in enumerate(zip(self.frames, self.cells, strict=True)):
            fault = self._find_fault(path, cells, sizes, self.frames_id(index))
            if fault:
                invalid.append(f"{path} ({fault})")
        _raise_on(invalid)

    def read(self, indices: Sequence[int], draw: int | None) -> Views:
        """Return views of the samples at `indices`; see `ClipSource`.

        The fixed view holds all frames of the file, with patches from the middle of each cell, as for scoring.
        """
        if draw is None:
            clips = np.stack([self._fixed_view(index) for index in indices])
            return Views(clips, np.array([self.samples[index].label for index in indices], np.float64))
        drawn = [self._draw_view(index, draw) for index in indices]
        clips, cells = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        return Views(clips, cells.mean((1, 2, 3), dtype=np.float64), cells)

    @cached_property
    def _renditions(self) -> dict[str, list[int]]:
        """The indices of the renditions of the same frames, by frames id."""
        groups: dict[str, list[int]] = {}
        for index in range(len(self.samples)):
            groups.setdefault(self.frames_id(index), []).append(index)
        return groups

    def frames_id(self, index: int) -> str:
        """Return the frames id of a sample; a sample without one is a group of its own."""
        sample = self.samples[index]
        # This text is part of the seed of the view.
        return sample.frames_id or f"alone:{sample.sample_id}"

    def draw_rendition(self, index: int, rng: np.random.Generator) -> int:
        """Draw a rendition of the same frames; it may be the same one."""
        renditions = self._renditions[self.frames_id(index)]
        return renditions[rng.integers(len(renditions))]

    def placed_view(self, index: int, placement: int) -> NDArray[np.uint8]:
        """Return all frames with patches from the middle of each cell for placement 0, else at random positions.

        Renditions of the same frames have the same positions.
        """
        if placement == 0:
            return self._fixed_view(index)
        return self._placed(index, view_generator(placement, "place", self.frames_id(index)))

    def _fixed_view(self, index: int) -> NDArray[np.uint8]:
        return self._placed(index, None)

    def _placed(self, index: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
        frames = load_array(self.frames[index])
        rows, columns = self._patch_indices(frames.shape, rng)
        return np.asarray(frames[:, rows[:, None], columns[None, :]], np.uint8)

    def _draw_view(self, index: int, draw: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return a view [slot_frames, height, width, 3] and its cells [1, rows, columns].

        Position, mirroring and contrast are drawn per frames id, so that all renditions of the same frames are seen
        alike. The mixture is drawn per sample.
        """
        layout = self.layout
        rng, mix_rng = view_generator(draw, "frames", self.frames_id(index)), view_generator(draw, "mix", index)
        frames = load_array(self.frames[index])
        first = rng.integers(len(layout.frame_slots) // layout.slot_frames) * layout.slot_frames
        slot = slice(first, first + layout.slot_frames)
        rows, columns = self._patch_indices(frames.shape, rng)
        clip_THWC = np.array(frames[slot][:, rows[:, None], columns[None, :]], np.uint8)
        cells = self.cells_of(index, slot)
        if mix_rng.random() < layout.mix:
            other = self.draw_rendition(index, mix_rng)
            is_inside = draw_rectangles(layout.grid, mix_rng)
            pixels = is_inside.repeat(layout.input_size[0] // layout.grid[0], 0)
            pixels = pixels.repeat(layout.input_size[1] // layout.grid[1], 1)
            others = load_array(self.frames[other])[slot][:, rows[:, None], columns[None, :]]
            clip_THWC[:, pixels] = others[:, pixels]
            cells = np.where(is_inside, self.cells_of(other, slot), cells)
        if layout.flip:
            clip_THWC, cells = _flip(clip_THWC, cells, rng)
        if layout.contrast > 1:
            gain, shift = layout.contrast ** rng.uniform(-1, 1), rng.uniform(-0.1, 0.1, 3)
            clip_THWC = _change_contrast(clip_THWC, gain, shift.astype(np.float32))
        return np.ascontiguousarray(clip_THWC), np.ascontiguousarray(cells)

    def _patch_indices(
        self, shape: tuple[int, ...], rng: np.random.Generator | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows and columns of the frame that a view takes."""
        layout = self.layout
        grid = layout.grid if layout.is_cut else (1, 1)
        rows, columns = (
            patch_offsets(extent, size, count, rng)
            for extent, size, count in zip(shape[1:3], layout.input_size, grid, strict=True)
        )
        return rows, columns

    def cells_of(self, index: int, slot: slice) -> NDArray[np.float32]:
        """Return the labels of the grid's cells in a slot, float32 [1, rows, columns]: those at the cells' centres."""
        labels = load_array(self.cells[index])
        rows, columns = (
            (2 * np.arange(count) + 1) * extent // (2 * count)
            for count, extent in zip(self.layout.grid, labels.shape[1:], strict=True)
        )
        of_frames = labels[list(self.layout.frame_slots[slot])]
        found: NDArray[np.float32] = of_frames.mean(0, dtype=np.float32, keepdims=True)
        return found[:, rows[:, None], columns[None, :]]

    def _find_fault(self, path: Path, cells: Path, sizes: dict[str, tuple[int, ...]], frames_id: str) -> str:
        missing = [str(file) for file in (path, cells) if not file.is_file()]
        if missing:
            return f"no such file: {', '.join(missing)}"
        try:
            frames, labels = (np.load(file, mmap_mode="r", allow_pickle=False) for file in (path, cells))
        except (OSError, ValueError, EOFError) as error:
            return str(error)
        layout = self.layout
        height, width = layout.input_size
        if frames.dtype != "uint8" or frames.ndim != 4 or len(frames) != len(layout.frame_slots):
            return f"{frames.dtype} {list(frames.shape)}, expected uint8 with {len(layout.frame_slots)} frames"
        is_exact = frames.shape[1:3] == (height, width)
        if not is_exact and (not layout.is_cut or frames.shape[1] < height or frames.shape[2] < width):
            return f"{frames.shape[2]}x{frames.shape[1]} pixels, the network needs {width}x{height}"
        if labels.dtype != "float32" or labels.ndim != 3 or len(labels) != layout.num_slots:
            return f"cell labels {labels.dtype} {list(labels.shape)}, expected float32 with {layout.num_slots} slots"
        if sizes.setdefault(frames_id, frames.shape) != frames.shape:
            return f"{list(frames.shape)}, another rendition of the same frames is {list(sizes[frames_id])}"
        return ""


def draw_rectangles(grid: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw up to three rectangles of cells; return which cells they cover, bool [rows, columns]."""
    is_inside = np.zeros(grid, bool)
    for _ in range(rng.integers(1, _MAX_RECTANGLES + 1)):
        where = draw_cells(grid, rng)
        is_inside[where.top : where.top + where.rows, where.left : where.left + where.columns] = True
    return is_inside


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file as a whole, so that a crash leaves none or a complete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two videos of equal bytes and name may be written at the same time.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    with partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    partial.replace(path)


def load_array(path: Path) -> NDArray[Any]:
    """Return the memory-mapped array of a file.

    Raises:
        FatalError: the file was removed or damaged after it was checked.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FatalError(f"{path} can no longer be read ({error}). Restore it and resume the training.") from error
    return array


def _find_clip_fault(path: Path, num_frames: int, size: tuple[int, int]) -> str:
    """Return why a file is not uint8 RGB of this number of frames and at least this size, "" if it is."""
    if not path.is_file():
        return f"{path}: no such file"
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return f"{path}: {error}"
    is_clip = found.dtype == np.uint8 and found.ndim == 4 and (found.shape[0], found.shape[3]) == (num_frames, 3)
    if not is_clip or found.shape[1] < size[0] or found.shape[2] < size[1]:
        return (
            f"{found.dtype} {list(found.shape)}, the network needs {num_frames} frames of at least {size[1]}x{size[0]}"
        )
    return ""


def _find_fault(path: Path, kind: str, shape: tuple[int, ...]) -> str:
    if not path.is_file():
        return "no such file"
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return str(error)
    if found.dtype != kind or found.shape != shape:
        return f"{found.dtype} {list(found.shape)}, the network needs {kind} {list(shape)}"
    return ""


def _raise_on(invalid: Sequence[str]) -> None:
    if invalid:
        raise SpecError(
            f"Frames or cell labels that cannot be trained on: {shorten_list(invalid, 3)}. Restore them or remove "
            "their videos from the list."
        )


def view_generator(draw: int, purpose: str, of: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_of(draw, purpose, of)))


def _flip(
    clip_THWC: NDArray[np.uint8], cells: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mirror clip and cells at random, horizontally and vertically, and transpose square ones at random."""
    is_mirrored, is_upside_down, is_transposed = rng.random(3) < 0.5
    if is_mirrored:
        clip_THWC, cells = clip_THWC[:, :, ::-1], cells[..., ::-1]
    if is_upside_down:
        clip_THWC, cells = clip_THWC[:, ::-1], cells[:, ::-1]
    is_square = clip_THWC.shape[1] == clip_THWC.shape[2] and cells.shape[1] == cells.shape[2]
    if is_transposed and is_square:
        clip_THWC, cells = clip_THWC.swapaxes(1, 2), cells.swapaxes(1, 2)
    return clip_THWC, cells


def _change_contrast(clip_THWC: NDArray[np.uint8], gain: float, shift: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Multiply the distance of a clip from its mean by `gain`; move each colour by its `shift` of the whole range."""
    mean = clip_THWC.mean(dtype=np.float32)
    moved = (clip_THWC - mean) * np.float32(gain) + (mean + np.float32(255 * shift + 0.5))
    changed: NDArray[np.uint8] = np.clip(moved, 0, 255).astype(np.uint8)
    return changed
