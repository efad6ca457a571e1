"""Labelled clips whose frames stand in `.npy` files, one for each view of a clip: what real videos become once.

Files are mapped, so that a batch reads what it needs and the system's cache does the rest. Who decodes videos into such
files is no matter here; a file that is missing is refused by name before the first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import FatalError, SpecError, shorten_list
from kvq_batch.training.samples import Sample, Views, seed_of


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """A `ClipSource` over files.

    `views[i]` names the files of sample i, uint8 RGB [T, H, W, 3] of one shape: the first is the fixed view, all are
    drawn from in training. `cells[i]` names a file with float32 [slots, rows, columns], labels of the cells in the
    labels' scale, NaN where there is none; None where a sample has no such file.
    """

    samples: Sequence[Sample]
    views: Sequence[tuple[Path, ...]]
    cells: Sequence[Path | None] | None = None

    def check(self, clip_shape: tuple[int, ...], maps_shape: tuple[int, ...]) -> None:
        """Returns if every file is there with its shape.

        Raises:
            SpecError: files that are missing or of another shape, the first few by name.
        """
        wanted = [(path, "uint8", clip_shape) for paths in self.views for path in paths]
        wanted += [(path, "float32", maps_shape) for path in self.cells or () if path is not None]
        wrong = [f"{path} ({reason})" for path, kind, shape in wanted if (reason := _why_not(path, kind, shape))]
        if wrong:
            raise SpecError(f"frames or cell labels that cannot be trained on: {shorten_list(wrong, 3)}")

    def read(self, places: Sequence[int], draw: int | None) -> Views:
        clips = np.stack([loaded(self._view(place, draw)) for place in places])
        labels = np.array([self.samples[place].label for place in places], np.float64)
        return Views(clips, labels, self._cells(places))

    def _view(self, place: int, draw: int | None) -> Path:
        paths = self.views[place]
        if draw is None:
            return paths[0]
        return paths[seed_of(draw, "place", self.samples[place].frames_id or place) % len(paths)]

    def _cells(self, places: Sequence[int]) -> NDArray[np.float32] | None:
        paths = [self.cells[place] for place in places] if self.cells is not None else []
        found = {i: loaded(path) for i, path in enumerate(paths) if path is not None}
        if not found:
            return None
        shape = next(iter(found.values())).shape
        return np.stack([found[i] if i in found else np.full(shape, np.nan, np.float32) for i in range(len(paths))])


def loaded(path: Path) -> NDArray[Any]:
    """The array of a file, mapped. Raises: FatalError where it is gone since it was checked."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FatalError(f"{path} can no longer be read ({error}); restore it and resume the training") from error
    return array


def _why_not(path: Path, kind: str, shape: tuple[int, ...]) -> str:
    if not path.is_file():
        return "no such file"
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return str(error)
    if found.dtype != kind or found.shape != shape:
        return f"{found.dtype} {list(found.shape)}, the network needs {kind} {list(shape)}"
    return ""
