"""Checkpoint files of KVQ: safetensors with a card, and the digest that identifies weights.

The digest covers what the network computes with, not the bytes of a file, so a published `.pth` and the safetensors
converted from it are one model. Calibrations are not part of it, because they do not change a raw score.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kvq_batch.domain.errors import CheckpointError, SpecError, shorten_list
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.kvq.config import KvqConfig, Shape, tensor_shapes

Tensors = Mapping[str, NDArray[np.float32]]

METADATA_KEY = "kvq_batch.card"
"""Key of the card in the header of a safetensors file."""
_LAYOUT = 1
_CHECKSUM = "card_sha256"
_TEXT_FIELDS = ("name", "version", "origin", "summary", "training_data", "licence")
# A safetensors file starts with the length of its header in 8 bytes, and the header is a JSON object.
_SAFETENSORS_MARK = b"{"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Checked weights: the card, the sizes, and float32 tensors by their published names."""

    card: ModelCard
    config: KvqConfig
    tensors: Tensors


def digest(tensors: Tensors, config: KvqConfig) -> str:
    """Return the sha256 hex over the sizes and, sorted by name, each tensor's name, shape and little-endian float32."""
    hasher = hashlib.sha256(json.dumps(config.as_json(), sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        hasher.update(f"\n{name} {'x'.join(map(str, tensor.shape))}\n".encode())
        hasher.update(tensor.data)
    return hasher.hexdigest()


def save(path: Path, checkpoint: Checkpoint) -> ModelCard:
    """Write a safetensors file with its card; return the card as written, with the digest of the tensors.

    Raises:
        CheckpointError: tensors that do not fit the sizes.
    """
    tensors = check_tensors(checkpoint.tensors, checkpoint.config, str(path))
    card = dataclasses.replace(checkpoint.card, digest=digest(tensors, checkpoint.config))
    save_file(tensors, path, metadata={METADATA_KEY: card_json(card, checkpoint.config)})
    return card


def load(path: Path) -> Checkpoint:
    """Read a file that `save` wrote, and compare the digest of its tensors with its card.

    Raises:
        CheckpointError: a file that is missing, truncated, damaged or not a checkpoint of this package.
    """
    source = str(path)
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise CheckpointError(
                    f"{source}: this safetensors file has no model card. Use a file that `kvq-batch train` wrote, or a "
                    "published .pth."
                )
            card, config = parse_card(text, source)
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, TypeError) as error:
        # TypeError: a dtype that numpy does not have, such as bfloat16.
        raise CheckpointError(
            f"{source}: the safetensors file cannot be read ({error}). Download or write it again."
        ) from error
    tensors = check_tensors(stored, config, source)
    found = digest(tensors, config)
    if found != card.digest:
        raise CheckpointError(
            f"{source}: the file was changed after it was written: the digest of its tensors is {found[:12]}, its card "
            f"has {card.digest[:12]}. Download or write it again."
        )
    return Checkpoint(card, config, tensors)


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts like safetensors.

    Raises:
        CheckpointError: a file that is missing, unreadable, empty, or a git-lfs pointer.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({error}). Check the path.") from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty. Download the weights again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: the file is a git-lfs pointer, not the weights. Run `git lfs pull`.")
    return head[8:9] == _SAFETENSORS_MARK


def check_tensors(
    found: Mapping[str, NDArray[np.generic]], config: KvqConfig, source: str
) -> dict[str, NDArray[np.float32]]:
    """Return the tensors as float32, in file order, if they are exactly those of a network of these sizes.

    Raises:
        CheckpointError: a missing or unexpected tensor, another shape, or values that are not finite numbers.
    """
    shapes = tensor_shapes(config)
    if missing := [name for name in shapes if name not in found]:
        raise CheckpointError(f"{source}: {_list_tensors(missing)} missing. Use weights of this network.")
    if unexpected := sorted(set(found) - set(shapes)):
        raise CheckpointError(f"{source}: {_list_tensors(unexpected)} not expected. Use weights of this network.")
    return {name: check_tensor(name, found[name], shape, source) for name, shape in shapes.items()}


def check_tensor(name: str, tensor: NDArray[np.generic], shape: Shape, source: str) -> NDArray[np.float32]:
    """Return a tensor as float32.

    Raises:
        CheckpointError: another shape, or values that are not finite floating-point numbers.
    """
    if tensor.shape != shape:
        raise CheckpointError(
            f"{source}: {name} has shape {tensor.shape}, expected {shape}. Use weights of this network."
        )
    if not np.issubdtype(tensor.dtype, np.floating):
        raise CheckpointError(f"{source}: {name} has type {tensor.dtype}, expected floating-point numbers.")
    values = np.ascontiguousarray(tensor, dtype=np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{source}: {name} contains NaN or infinity, because its training diverged. Use other weights."
        )
    return values


def card_json(card: ModelCard, config: KvqConfig) -> str:
    """Return the card and the sizes as the JSON text that is stored in a file."""
    fields: dict[str, Any] = {key: getattr(card, key) for key in _TEXT_FIELDS}
    fields |= {"layout": _LAYOUT, "sha256": card.digest, "config": config.as_json()}
    fields["calibrations"] = {name: list(parameters) for name, parameters in card.calibrations.items()}
    return json.dumps(fields | {_CHECKSUM: _checksum(fields)}, sort_keys=True)


def _checksum(fields: Mapping[str, Any]) -> str:
    """Return the sha256 hex of a card without its checksum: the digest of the weights does not cover the card."""
    others = {key: value for key, value in fields.items() if key != _CHECKSUM}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def parse_card(text: str, source: str) -> tuple[ModelCard, KvqConfig]:
    """Return the card and the sizes that `card_json` wrote; `source` names the file in errors.

    Raises:
        CheckpointError: text that is not such a card, naming the key.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{source}: the model card is not JSON ({error}). Write the file again.") from error
    if not isinstance(fields, dict) or fields.get("layout") != _LAYOUT:
        raise CheckpointError(
            f"{source}: the model card does not have layout {_LAYOUT}. Update kvq-batch if a later release wrote it."
        )
    # Cards of earlier releases have no checksum.
    if fields.get(_CHECKSUM, _checksum(fields)) != _checksum(fields):
        raise CheckpointError(f"{source}: the model card was changed after it was written. Download or write it again.")
    for key in (*_TEXT_FIELDS, "sha256"):
        if not isinstance(fields.get(key), str):
            raise CheckpointError(f"{source}: the model card has no text {key!r}. Write the file again.")
    if fields["origin"] not in ("trained", "untrained"):
        raise CheckpointError(
            f"{source}: the model card has origin {fields['origin']!r}, expected 'trained' or 'untrained'."
        )
    if not isinstance(fields.get("config"), dict):
        raise CheckpointError(f"{source}: the model card has no 'config', the sizes of the network.")
    try:
        config = KvqConfig.from_json(fields["config"])
        card = ModelCard(
            **{key: fields[key] for key in _TEXT_FIELDS},
            digest=fields["sha256"],
            calibrations=_parse_calibrations(fields.get("calibrations", {}), source),
        )
    except CheckpointError:
        raise
    except SpecError as error:
        raise CheckpointError(f"{source}: the model card is not valid: {error}") from error
    return card, config


def _parse_calibrations(entries: object, source: str) -> dict[str, tuple[float, float, float, float]]:
    """Return (b1, b2, b3, b4) of the logistic that `ModelCard` documents, by name."""
    if not isinstance(entries, dict):
        raise CheckpointError(f"{source}: 'calibrations' of the model card is not an object of names.")
    calibrations = {}
    for name, numbers in entries.items():
        is_valid = isinstance(numbers, list) and len(numbers) == 4 and all(type(n) in (int, float) for n in numbers)
        if not is_valid or not all(map(math.isfinite, numbers)) or numbers[3] == 0:
            raise CheckpointError(
                f"{source}: calibration {name!r} of the model card is {numbers!r}, expected four numbers, the last of "
                "them not 0."
            )
        b1, b2, b3, b4 = map(float, numbers)
        calibrations[str(name)] = (b1, b2, b3, b4)
    return calibrations


def _list_tensors(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)} ({shorten_list(names, 3)})"
