"""The card of a KVQ checkpoint: identity over tensors and sizes, and the JSON that travels inside our files.

The identity is computed from what the network will compute with, never from a file's bytes, so that a published
`.pth` and the safetensors made of it are one model. Calibrations are not part of it: they change no raw score. This
module deliberately reads no file and needs no torch.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import CheckpointError, SpecError
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.kvq.config import KvqConfig

Tensors = Mapping[str, NDArray[np.float32]]

# The key of the card in a safetensors header, and the version of its layout.
METADATA_KEY = "kvq_batch.card"
_LAYOUT = 1
_TEXTS = ("name", "version", "origin", "summary", "training_data", "licence")


def digest(tensors: Tensors, config: KvqConfig) -> str:
    """sha256 hex over the sizes and, by name in order, every tensor's name, shape and little-endian float32 bytes."""
    hasher = hashlib.sha256(json.dumps(config.as_json(), sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        hasher.update(f"\n{name} {'x'.join(map(str, tensor.shape))}\n".encode())
        hasher.update(tensor.data)
    return hasher.hexdigest()


def card_json(card: ModelCard, config: KvqConfig) -> str:
    """The card and the sizes as one JSON text, for a file's metadata."""
    fields: dict[str, Any] = {key: getattr(card, key) for key in _TEXTS}
    fields |= {"layout": _LAYOUT, "sha256": card.digest, "config": config.as_json()}
    fields["calibrations"] = {name: list(parameters) for name, parameters in card.calibrations.items()}
    return json.dumps(fields, sort_keys=True)


def parse_card(text: str, source: str) -> tuple[ModelCard, KvqConfig]:
    """The card and sizes that `card_json` wrote; `source` names the file in errors.

    Raises:
        CheckpointError: text that is not such a card, naming the key at fault.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{source}: its card is no JSON ({error}); write the file again") from error
    if not isinstance(fields, dict) or fields.get("layout") != _LAYOUT:
        raise CheckpointError(f"{source}: its card has no layout {_LAYOUT}; was it written by a newer version?")
    for key in (*_TEXTS, "sha256"):
        if not isinstance(fields.get(key), str):
            raise CheckpointError(f"{source}: its card lacks the text {key!r}; write the file again with this package")
    if fields["origin"] not in ("trained", "untrained"):
        raise CheckpointError(f"{source}: its card says origin = {fields['origin']!r}; expected trained or untrained")
    if not isinstance(fields.get("config"), dict):
        raise CheckpointError(f"{source}: its card lacks 'config', the sizes of the network")
    try:
        config = KvqConfig.from_json(fields["config"])
        card = ModelCard(
            **{key: fields[key] for key in _TEXTS},
            digest=fields["sha256"],
            calibrations=_calibrations(fields.get("calibrations", {}), source),
        )
    except CheckpointError:
        raise
    except SpecError as error:
        raise CheckpointError(f"{source}: its card makes no model: {error}") from error
    return card, config


def _calibrations(entries: object, source: str) -> dict[str, tuple[float, float, float, float]]:
    """Name -> (b1, b2, b3, b4) of the logistic that `ModelCard` documents."""
    if not isinstance(entries, dict):
        raise CheckpointError(f"{source}: 'calibrations' of its card must map names to four numbers")
    calibrations = {}
    for name, numbers in entries.items():
        usable = isinstance(numbers, list) and len(numbers) == 4 and all(type(n) in (int, float) for n in numbers)
        if not usable or not all(map(math.isfinite, numbers)) or numbers[3] == 0:
            raise CheckpointError(f"{source}: calibration {name!r} needs four numbers, the last not 0: {numbers!r}")
        b1, b2, b3, b4 = map(float, numbers)
        calibrations[str(name)] = (b1, b2, b3, b4)
    return calibrations
