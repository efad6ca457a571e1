"""Files of a training: the resumable state, and learning curves.

The state is one safetensors file: tensors, and JSON in its header; no pickle. A file is complete or absent: it is
written under another name, synced to disk and renamed. Batches, views and dropout derive from the number of the step,
so no state of a random generator is stored. A state that does not match is rejected, never taken for a new start.

Curves are CSV files that grow by one row per step. Their rows are flushed before a state is stored, so no state is
ahead of its curve; a resumed training cuts its curves back to the step of its state.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvq_batch.domain.errors import FatalError, SpecError

_KEY = "kvq_batch.training"
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Digests of the settings, the samples, and the weights at step 0: two trainings are the same if all are equal."""

    settings: str
    data: str
    start: str


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far a training is: `step` steps are done.

    `best_agreement` (SRCC + PLCC) was measured on the validation set at `best_step`. `num_since_best` counts the
    validations since then. No step follows if `is_finished`.
    """

    step: int = 0
    best_agreement: float | None = None
    best_step: int | None = None
    num_since_best: int = 0
    is_finished: bool = False


def write_state(path: Path, tensors: Mapping[str, Tensor], progress: TrainingProgress, identity: Identity) -> None:
    """Write the state to `path`, replacing the previous one.

    Raises:
        FatalError: the folder cannot be written.
    """
    fields = {
        "layout": _FORMAT_VERSION,
        "progress": dataclasses.asdict(progress),
        "identity": dataclasses.asdict(identity),
    }
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda file: save_file(stored, file, metadata={_KEY: json.dumps(fields)}))


def read_state(path: Path, identity: Identity) -> tuple[dict[str, Tensor], TrainingProgress]:
    """Return the tensors and the progress that `write_state` stored.

    Raises:
        SpecError: no such file, a damaged one, or the state of another training.
    """
    tensors, found, progress = _read(path, with_tensors=True)
    names = {"settings": "the settings", "data": "the labels", "start": "the initial weights"}
    changed = [text for name, text in names.items() if getattr(found, name) != getattr(identity, name)]
    if changed:
        raise SpecError(
            f"{path}: this training started with other values of {' and '.join(changed)}. Restore them in the job, or "
            "train in another folder."
        )
    return tensors, progress


def read_progress(path: Path) -> TrainingProgress:
    """Return the progress of any training's state.

    Raises:
        SpecError: no such file, or a damaged one.
    """
    return _read(path, with_tensors=False)[2]


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], Identity, TrainingProgress]:
    if not path.exists():
        raise SpecError(f"{path}: there is no training to resume. Start one without --resume.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY, "")
            names = list(file.keys()) if with_tensors else []
            tensors = {name: file.get_tensor(name) for name in names}
        fields = json.loads(text)
        if fields["layout"] != _FORMAT_VERSION:
            raise SpecError(
                f"{path}: its format version is {fields['layout']}, expected {_FORMAT_VERSION}. Resume it with the "
                "release that wrote it."
            )
        return tensors, Identity(**fields["identity"]), TrainingProgress(**fields["progress"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise SpecError(
            f"{path}: the state of the training cannot be read ({error}). Start a new training in another folder."
        ) from error


class Curve:
    """One CSV file whose first column is `step`. Use it as a context manager.

    Raises:
        FatalError: the file cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str], last_step: int) -> None:
        self._path = path
        self._columns = ["step", *columns]
        rows = [row for row in _read_rows(path) if int(row["step"]) <= last_step] if path.exists() else []
        replace_file(path, lambda file: _write_rows(file, self._columns, rows))

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise FatalError(f"{self._path} cannot be written: {error}") from error
        self._writer = csv.DictWriter(self._file, self._columns, lineterminator="\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def add(self, row: Mapping[str, float]) -> None:
        self._writer.writerow({name: row.get(name, "") for name in self._columns})

    def flush(self) -> None:
        self._file.flush()


def read_curve(path: Path) -> list[dict[str, float]]:
    """Return the rows of a curve, without a last line that a crash cut off."""
    return [{name: float(value) for name, value in row.items() if value} for row in _read_rows(path)]


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` atomically by what `write` makes; on an error, `path` stays as it was.

    Raises:
        FatalError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, SafetensorError) as error:
        raise FatalError(f"{path} cannot be written ({error}). Free some space and resume the training.") from error


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return copies on a device."""
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
