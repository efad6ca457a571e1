"""Weights in and out of files: ours are safetensors with a card, theirs go through `published`.

Everything that can be wrong with a file is found here, before a video is read, and the error names the file, the
tensor and what to do. It deliberately converts nothing silently but the floating type: a tensor too many or too few,
or of another shape, is refused.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kvq_batch.domain.errors import CheckpointError, shorten_list
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.kvq.card import METADATA_KEY, Tensors, card_json, digest, parse_card
from kvq_batch.models.kvq.config import KvqConfig, tensor_shapes

# A safetensors header is a JSON object after its length in 8 bytes.
_SAFETENSORS_MARK = b"{"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Checked weights: the card, the sizes, and float32 tensors under the published names."""

    card: ModelCard
    config: KvqConfig
    tensors: Tensors


def save(path: Path, checkpoint: Checkpoint) -> ModelCard:
    """Writes a safetensors file with its card and returns the card as written, its digest computed from the tensors.

    Raises:
        CheckpointError: tensors that do not make this network.
    """
    tensors = checked_tensors(checkpoint.tensors, checkpoint.config, str(path))
    card = dataclasses.replace(checkpoint.card, digest=digest(tensors, checkpoint.config))
    save_file(tensors, path, metadata={METADATA_KEY: card_json(card, checkpoint.config)})
    return card


def load(path: Path) -> Checkpoint:
    """Our own file, its card's sha256 verified against the tensors.

    Raises:
        CheckpointError: a file that is missing, truncated, damaged or no checkpoint of ours.
    """
    source = str(path)
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise CheckpointError(f"{source}: safetensors without a card; write it with this package's `save`")
            card, config = parse_card(text, source)
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, TypeError) as error:
        # TypeError: a dtype that numpy does not have, such as bfloat16.
        raise CheckpointError(f"{source}: no readable safetensors file ({error}); fetch or write it again") from error
    tensors = checked_tensors(stored, config, source)
    found = digest(tensors, config)
    if found != card.digest:
        raise CheckpointError(
            f"{source}: its tensors hash to {found[:12]}, its card says {card.digest[:12]}; the file was changed after "
            "it was written, fetch or write it again"
        )
    return Checkpoint(card, config, tensors)


def is_safetensors(path: Path) -> bool:
    """Whether a file starts like safetensors.

    Raises:
        CheckpointError: a file that is missing, unreadable, empty, or a pointer that git-lfs left in its place.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({error}); check the path") from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty; fetch the weights again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: the file is a git-lfs pointer instead of the weights; run `git lfs pull`")
    return head[8:9] == _SAFETENSORS_MARK


def checked_tensors(
    found: Mapping[str, NDArray[np.generic]], config: KvqConfig, source: str
) -> dict[str, NDArray[np.float32]]:
    """The tensors of a network, float32 and in file order, if they are exactly those.

    Raises:
        CheckpointError: a missing or unexpected tensor, another shape, or values that are not floating-point numbers.
    """
    shapes = tensor_shapes(config)
    if missing := [name for name in shapes if name not in found]:
        raise CheckpointError(f"{source}: lacks {_names(missing)}; it is not a checkpoint of this network")
    if unexpected := sorted(set(found) - set(shapes)):
        raise CheckpointError(f"{source}: unexpected {_names(unexpected)}; it is a checkpoint of another network")
    tensors = {}
    for name, shape in shapes.items():
        tensor = found[name]
        if tensor.shape != shape:
            raise CheckpointError(f"{source}: {name} has shape {tensor.shape}, this network needs {shape}")
        if not np.issubdtype(tensor.dtype, np.floating):
            raise CheckpointError(f"{source}: {name} holds {tensor.dtype}, not floating numbers")
        tensors[name] = np.ascontiguousarray(tensor, dtype=np.float32)
        if not np.isfinite(tensors[name]).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinity; the training that wrote it had diverged")
    return tensors


def _names(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}: {shorten_list(names, 3)}"
