"""Clip source over measured clips: what a KVQ network of statistics computes of pixels, computed once and stored.

A training on pixels spends most of its time on measurements that never change. Here they are made of a few placements
of the patches of each rendition, the first in the middle of each cell, and stored as float16. A file is named by the
frames that it is made of and by the weights that measured them, so other trainings reuse it.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import fingerprint
from kvq_batch.models.host_threads import run_tasks
from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.models.kvq.network import KvqNetwork, build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.training.frame_files import RenditionFiles, draw_rectangles, load_array, view_generator, write_array
from kvq_batch.training.samples import Sample, Views

ALGORITHM = 1
"""Increment when the measurements change for the same weights."""

_FROZEN = (".convolutions.", ".scaling.")


@dataclass(frozen=True)
class MeasuredFiles:
    """A `ClipSource` over measured clips.

    `measured[i]` names float16 [slots, rows, columns, S] for each placement of sample i, and `pixels` the clip source
    that they were made of. A drawn view is one slot of one placement, with rectangles of another rendition and mirrored
    at random, as `RenditionFiles` draws them; it is not transposed, because measurements have directions.
    """

    pixels: RenditionFiles
    measured: Sequence[tuple[Path, ...]]

    @property
    def samples(self) -> Sequence[Sample]:
        return self.pixels.samples

    def read(self, indices: Sequence[int], draw: int | None) -> Views:
        """Return views of the samples at `indices`; see `ClipSource`. The fixed view has all slots."""
        if draw is None:
            clips = np.stack([load_array(self.measured[index][0]) for index in indices])
            return Views(clips, np.array([self.samples[index].label for index in indices], np.float64))
        drawn = [self._draw_view(index, draw) for index in indices]
        clips, cells = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        return Views(clips, cells.mean((1, 2, 3), dtype=np.float64), cells)

    def _draw_view(self, index: int, draw: int) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """Return a view [1, rows, columns, S] and its cells [1, rows, columns]."""
        pixels, layout = self.pixels, self.pixels.layout
        rng, mix_rng = view_generator(draw, "frames", pixels.frames_id(index)), view_generator(draw, "mix", index)
        placement = int(rng.integers(len(self.measured[index])))
        measured = load_array(self.measured[index][placement])
        slot = int(rng.integers(len(measured)))
        frames = slice(slot * layout.slot_frames, (slot + 1) * layout.slot_frames)
        view, cells = np.array(measured[slot][None]), pixels.cells_of(index, frames)
        if mix_rng.random() < layout.mix:
            other = pixels.draw_rendition(index, mix_rng)
            is_inside = draw_rectangles(layout.grid, mix_rng)
            tokens = is_inside
            for axis in (0, 1):
                tokens = tokens.repeat(view.shape[axis + 1] // layout.grid[axis], axis)
            view[0, tokens] = load_array(self.measured[other][placement])[slot][tokens]
            cells = np.where(is_inside, pixels.cells_of(other, frames), cells)
        for axis, is_mirrored in zip((1, 2), rng.random(2) < 0.5, strict=True):
            if layout.flip and is_mirrored:
                view, cells = np.flip(view, axis), np.flip(cells, axis)
        return np.ascontiguousarray(view), np.ascontiguousarray(cells)


def measure_files(
    pixels: RenditionFiles,
    config: KvqConfig,
    tensors: Mapping[str, Tensor],
    folder: Path,
    num_placements: int,
    progress: Callable[[str, int, int], None],
) -> MeasuredFiles:
    """Measure the clips whose files do not exist yet, and return all as a clip source.

    Training samples have `num_placements` placements of patches, validation samples the first.

    `tensors` are those of the network; only the frozen ones matter.

    Raises:
        SpecError: the folder cannot be written.
    """
    network = build_network(config, tensors)
    name = _digest(config, tensors)
    measured = []
    for index, frames in enumerate(pixels.frames):
        count = 1 if pixels.samples[index].split == "validation" else num_placements
        measured.append(tuple(folder / name[:16] / f"{frames.stem}{f'-{k}' if k else ''}.npy" for k in range(count)))
    missing = [
        (path, index, placement)
        for index, paths in enumerate(measured)
        for placement, path in enumerate(paths)
        if not path.exists()
    ]

    def measure(path: Path, index: int, placement: int) -> None:
        found = _measure(network, pixels.placed_view(index, placement)[None])
        try:
            write_array(path, found)
        except OSError as error:
            raise SpecError(
                f"{folder} cannot be written ({error}). Free some space, or set another folder in data.frames."
            ) from error

    def tasks() -> Iterator[Callable[[], None]]:
        for number, (path, index, placement) in enumerate(missing):
            progress("measuring", number, len(missing))
            yield functools.partial(measure, path, index, placement)

    # Many small operations per clip: clips side by side use the cores, the threads of one operation do not.
    run_tasks(tasks(), len(missing))
    return MeasuredFiles(pixels, measured)


def _measure(network: KvqNetwork, clips: NDArray[np.uint8]) -> NDArray[np.float16]:
    with torch.inference_mode():
        found: NDArray[np.float16] = network.measure(normalise(torch.from_numpy(clips)))[0].half().numpy()
    return found


def _digest(config: KvqConfig, tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of all that the measurements depend on besides the frames."""
    hasher = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        if any(part in key for part in _FROZEN):
            hasher.update(key.encode())
            hasher.update(tensor.numpy().tobytes())
    sizes = {key: getattr(config, key) for key in ("patch", "input_size", "fragments", "num_bands", "convolutions")}
    return fingerprint({"weights": hasher.hexdigest(), "algorithm": ALGORITHM, **sizes})
