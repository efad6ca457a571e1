"""Weights that other authors publish and this package does not include: which files a model needs, and loading them.

A model declares its files. A job names the folder that holds them, or the file itself if there is one. Each file is
read with the checks of `state_dict`, and its tensors must be exactly those of the network. torch is imported when a
file is read, so that a model without weights is rejected at once.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from kvq_batch.domain.errors import CheckpointError, SpecError
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.checkpoints.tensors import Shape, Tensors, check_tensors, digest

# Counters of training, and buffers that the network computes.
_DERIVED = (".num_batches_tracked", ".relative_position_index")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file that a model needs.

    `part` is the key of its tensors. `names` are the names under which its authors publish it, glob patterns; a file of
    one of these names, also with the suffix .safetensors, is found in a folder. `kind` and `origin` say what it is and
    where it is published, `licence` under what terms. `shapes` returns the tensors of the network by name. `sha256`
    holds the beginnings of the checksums of the published files, as far as they are known. `containers` are the keys
    under which the file may hold its state dict, "" for a file that is one. `prefix` is removed from the names, and
    names without it are ignored; `unused` are prefixes of tensors that the network does not compute with.
    """

    part: str
    names: tuple[str, ...]
    kind: str
    origin: str
    licence: str
    shapes: Callable[[], Mapping[str, Shape]]
    sha256: tuple[str, ...] = ()
    containers: tuple[str, ...] = ("", "state_dict")
    prefix: str = ""
    unused: tuple[str, ...] = ()

    def find(self, folder: Path) -> Path | None:
        """Return the file in a folder.

        Raises:
            SpecError: several files that could be it.
        """
        patterns = [*self.names, *(f"{Path(name).stem}.safetensors" for name in self.names)]
        found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
        if len(found) > 1:
            listed = ", ".join(path.name for path in found)
            raise SpecError(f"{folder}: {len(found)} files could be the {self.kind}: {listed}. Keep one of them.")
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class LoadedFiles:
    """Checked tensors of all files of a model, by part; and the files that differ from the published ones or cannot be
    compared with them, because their checksum is not known."""

    tensors: Mapping[str, Tensors]
    unverified: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        """Number of weights of all parts."""
        return sum(array.size for tensors in self.tensors.values() for array in tensors.values())

    def card(self, name: str, summary: str, training_data: str, licence: str, config: Mapping[str, Any]) -> ModelCard:
        """Return the card of a model with these weights. Its version is "published" only if all checksums match."""
        header = json.dumps([name, config], sort_keys=True, default=list)
        parts = [f"{part} {digest(tensors, '')}" for part, tensors in sorted(self.tensors.items())]
        note = f"; not compared with the published file: {', '.join(self.unverified)}" if self.unverified else ""
        return ModelCard(
            name=name,
            version="unverified" if self.unverified else "published",
            digest=hashlib.sha256("\n".join([header, *parts]).encode()).hexdigest(),
            origin="trained",
            summary=summary + note,
            training_data=training_data,
            licence=licence,
        )


def load_published_files(model: str, weights: str | None, files: Sequence[PublishedFile]) -> LoadedFiles:
    """Return the checked tensors of all files of a model; `weights` is a folder, or the file itself if it is one.

    Raises:
        SpecError: weights are not named, or a file is missing; the message says where each is published.
        CheckpointError: a file that cannot be read, or tensors of another network.
    """
    paths = find_published_files(model, weights, files)
    unverified = []
    tensors = {}
    for file in files:
        path = paths[file.part]
        tensors[file.part] = _load(path, file)
        if not file.sha256 or not _sha256(path).startswith(file.sha256):
            unverified.append(path.name)
    return LoadedFiles(tensors, tuple(unverified))


def find_published_files(model: str, weights: str | None, files: Sequence[PublishedFile]) -> dict[str, Path]:
    """Return the path of each file of a model by part, without reading it.

    Raises:
        SpecError: weights are not named, or a file is missing; the message says where each is published.
    """
    if weights is None or weights == "untrained":
        raise SpecError(_request(model, files, "" if weights is None else "untrained weights measure nothing"))
    path = Path(weights)
    if path.is_dir():
        found = {file.part: file.find(path) for file in files}
        missing = [file for file in files if found[file.part] is None]
        if missing:
            raise SpecError(_request(model, missing, f"{path} lacks {'it' if len(missing) == 1 else 'them'}"))
        return {part: place for part, place in found.items() if place is not None}
    if len(files) > 1 and path.exists():
        raise SpecError(_request(model, files, f"{path} is a file, expected the folder that holds them"))
    return {file.part: path for file in files}


def _request(model: str, files: Sequence[PublishedFile], reason: str) -> str:
    """Return the sentence that names the files, their format, origin and licence, and the option to set."""
    listed = " and ".join(
        _sentence(tuple(alike)) for _, alike in groupby(files, lambda f: (f.kind, f.origin, f.licence))
    )
    what, them = ("PATH", "it") if len(files) == 1 else ("FOLDER", "them in one folder")
    because = f" ({reason})" if reason else ""
    return (
        f"Model {model!r} needs {listed}, which this package does not include{because}: download {them} and set "
        f'--weights {what}, or weights = "{what}" in the job file.'
    )


def _sentence(files: Sequence[PublishedFile]) -> str:
    """Return the names of files of one kind, with their format, origin and licence."""
    names = ", ".join(" or ".join(file.names) for file in files)
    return f"{names} ({files[0].kind}, saved by torch.save, from {files[0].origin}, {files[0].licence})"


def _load(path: Path, file: PublishedFile) -> Tensors:
    from kvq_batch.models.checkpoints.state_dict import read_arrays

    try:
        arrays = read_arrays(path, file.containers)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Expected {_sentence((file,))}.") from error
    kept = {
        name.removeprefix(file.prefix): array
        for name, array in arrays.items()
        if name.startswith(file.prefix) and not name.endswith(_DERIVED)
    }
    kept = {name: array for name, array in kept.items() if not name.startswith(file.unused or "\0")}
    return check_tensors(kept, file.shapes(), str(path))


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as data:
        while chunk := data.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
