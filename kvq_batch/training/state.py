"""A training on disk: all that is needed to go on at a step as if nothing had happened, in one safetensors file.

Tensors, and a JSON text in the header beside them; no pickle. A file is complete or not there: it is written under
another name, forced to the disk, and renamed. What batches, views and dropout draw follows from the step's number, so
that no state of a random generator is kept. A file that does not fit is refused, never taken for a fresh start.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvq_batch.domain.errors import FatalError, SpecError

_KEY = "kvq_batch.training"
_LAYOUT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """What makes two trainings one: digests of the settings, of the samples, and of the weights at step 0."""

    settings: str
    data: str
    start: str


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """`step` steps are done. `best_agreement` (SRCC + PLCC) was found on the validation set at `best_step`.

    `num_since_best` counts validations since then; `is_finished` says that no step is to follow.
    """

    step: int = 0
    best_agreement: float | None = None
    best_step: int | None = None
    num_since_best: int = 0
    is_finished: bool = False


def write_state(path: Path, tensors: Mapping[str, Tensor], progress: Progress, identity: Identity) -> None:
    """Puts the state at `path`, in place of the one that was there.

    Raises:
        FatalError: the folder cannot be written.
    """
    fields = {"layout": _LAYOUT, "progress": dataclasses.asdict(progress), "identity": dataclasses.asdict(identity)}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda file: save_file(stored, file, metadata={_KEY: json.dumps(fields)}))


def read_state(path: Path, identity: Identity) -> tuple[dict[str, Tensor], Progress]:
    """The tensors and the place that `write_state` put there.

    Raises:
        SpecError: no such file, a damaged one, or that of another training.
    """
    tensors, found, progress = _read(path, True)
    names = {"settings": "the settings", "data": "the labels", "start": "the weights at the start"}
    other = [words for name, words in names.items() if getattr(found, name) != getattr(identity, name)]
    if other:
        raise SpecError(
            f"{path}: this training began with other values of {' and '.join(other)}; give the job its values again, "
            "or train in another folder"
        )
    return tensors, progress


def read_progress(path: Path) -> Progress:
    """How far the training of a state is, whatever training that is.

    Raises:
        SpecError: no such file, or a damaged one.
    """
    return _read(path, False)[2]


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], Identity, Progress]:
    if not path.exists():
        raise SpecError(f"{path}: there is no training to resume; start it without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY, "")
            names = list(file.keys()) if with_tensors else []
            tensors = {name: file.get_tensor(name) for name in names}
        fields = json.loads(text)
        if fields["layout"] != _LAYOUT:
            raise SpecError(f"{path}: its layout is {fields['layout']}, this version reads {_LAYOUT}")
        return tensors, Identity(**fields["identity"]), Progress(**fields["progress"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise SpecError(f"{path}: no readable state of a training ({error}); train anew in another folder") from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """What `write` makes stands at `path`, whole, or `path` is as it was.

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
        raise FatalError(f"{path} cannot be written ({error}); make room and resume the training") from error


def to_device(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies on a device."""
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
