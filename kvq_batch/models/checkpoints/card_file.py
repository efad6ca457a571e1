"""Files of weights of this package: safetensors with a model card, and the digest that identifies weights.

The digest covers what the network computes with, not the bytes of a file, so a published `.pth` and the safetensors
converted from it are one model. Calibrations are not part of it, because they do not change a raw score.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kvq_batch.domain.errors import CheckpointError, SpecError
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.checkpoints.tensors import Shape, Tensors, check_tensors, digest

METADATA_KEY = "kvq_batch.card"
"""Key of the card in the header of a safetensors file."""
KVQ = "kvq"
"""The network of files whose card names none."""
_LAYOUT = 1
_CHECKSUM = "card_sha256"
_TEXT_FIELDS = ("name", "version", "origin", "summary", "training_data", "licence")


class Sizes(Protocol):
    """The sizes of a network."""

    def as_json(self) -> dict[str, Any]: ...


SizesT = TypeVar("SizesT", bound=Sizes)


# No slots: Python 3.11 cannot call an alias such as SizedCheckpoint[KvqConfig] of a frozen class with slots.
@dataclass(frozen=True)
class SizedCheckpoint(Generic[SizesT]):
    """Checked weights: the card, the sizes, and float32 tensors by their published names."""

    card: ModelCard
    config: SizesT
    tensors: Tensors


@dataclass(frozen=True, slots=True)
class CardFormat(Generic[SizesT]):
    """The files of one kind of network.

    `network` is its name in the card. `sizes` reads what `Sizes.as_json` wrote and raises a SpecError, `shapes` returns
    the shape of every tensor by name, in file order.
    """

    network: str
    sizes: Callable[[dict[str, Any]], SizesT]
    shapes: Callable[[SizesT], Mapping[str, Shape]]

    def digest(self, tensors: Tensors, config: SizesT) -> str:
        """Return the sha256 hex over the sizes and each tensor's name, shape and little-endian float32, by name."""
        return digest(tensors, json.dumps(config.as_json(), sort_keys=True, separators=(",", ":")))

    def save(self, path: Path, checkpoint: SizedCheckpoint[SizesT]) -> ModelCard:
        """Write a safetensors file with its card; return the card as written, with the digest of the tensors.

        Raises:
            CheckpointError: tensors that do not fit the sizes.
        """
        tensors = self.check_tensors(checkpoint.tensors, checkpoint.config, str(path))
        card = dataclasses.replace(checkpoint.card, digest=self.digest(tensors, checkpoint.config))
        save_file(tensors, path, metadata={METADATA_KEY: self.card_json(card, checkpoint.config)})
        return card

    def load(self, path: Path) -> SizedCheckpoint[SizesT]:
        """Read a file that `save` wrote, and compare the digest of its tensors with its card.

        Raises:
            CheckpointError: a file that is missing, truncated, damaged or not a checkpoint of this network.
        """
        source = str(path)
        try:
            with safe_open(path, framework="numpy") as file:
                text = (file.metadata() or {}).get(METADATA_KEY)
                if text is None:
                    raise CheckpointError(
                        f"{source}: this safetensors file has no model card. Use a file that `kvq-batch train` wrote, "
                        "or a published .pth."
                    )
                card, config = self.parse_card(text, source)
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, TypeError) as error:
            # TypeError: a dtype that numpy does not have, such as bfloat16.
            raise CheckpointError(
                f"{source}: the safetensors file cannot be read ({error}). Download or write it again."
            ) from error
        tensors = self.check_tensors(stored, config, source)
        found = self.digest(tensors, config)
        if found != card.digest:
            raise CheckpointError(
                f"{source}: the file was changed after it was written: the digest of its tensors is {found[:12]}, its "
                f"card has {card.digest[:12]}. Download or write it again."
            )
        return SizedCheckpoint(card, config, tensors)

    def check_tensors(
        self, found: Mapping[str, NDArray[np.generic]], config: SizesT, source: str
    ) -> dict[str, NDArray[np.float32]]:
        """Return the tensors as float32, in file order, if they are exactly those of a network of these sizes.

        Raises:
            CheckpointError: a missing or unexpected tensor, another shape, or values that are not finite numbers.
        """
        return check_tensors(found, self.shapes(config), source)

    def card_json(self, card: ModelCard, config: SizesT) -> str:
        """Return the card and the sizes as the JSON text that is stored in a file."""
        fields: dict[str, Any] = {key: getattr(card, key) for key in _TEXT_FIELDS}
        fields |= {"layout": _LAYOUT, "sha256": card.digest, "config": config.as_json()}
        fields["calibrations"] = {name: list(parameters) for name, parameters in card.calibrations.items()}
        if card.spread[0]:
            fields["spread"] = [list(values) for values in card.spread]
        if self.network != KVQ:
            fields["network"] = self.network
        return json.dumps(fields | {_CHECKSUM: _checksum(fields)}, sort_keys=True)

    def parse_card(self, text: str, source: str) -> tuple[ModelCard, SizesT]:
        """Return the card and the sizes that `card_json` wrote; `source` names the file in errors.

        Raises:
            CheckpointError: a text that is not such a card, naming the key, or the card of another network.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{source}: the model card is not JSON ({error}). Write the file again.") from error
        if not isinstance(fields, dict) or fields.get("layout") != _LAYOUT:
            raise CheckpointError(
                f"{source}: the model card does not have layout {_LAYOUT}. Update kvq-batch if a later release wrote "
                "it."
            )
        # Cards of earlier releases have no checksum.
        if fields.get(_CHECKSUM, _checksum(fields)) != _checksum(fields):
            raise CheckpointError(
                f"{source}: the model card was changed after it was written. Download or write it again."
            )
        for key in (*_TEXT_FIELDS, "sha256"):
            if not isinstance(fields.get(key), str):
                raise CheckpointError(f"{source}: the model card has no text {key!r}. Write the file again.")
        if fields["origin"] not in ("trained", "untrained"):
            raise CheckpointError(
                f"{source}: the model card has origin {fields['origin']!r}, expected 'trained' or 'untrained'."
            )
        if not isinstance(fields.get("config"), dict):
            raise CheckpointError(f"{source}: the model card has no 'config', the sizes of the network.")
        network = fields.get("network", KVQ)
        if network != self.network:
            raise CheckpointError(
                f"{source}: these are weights of the network {network!r}, expected {self.network!r}. Use them with a "
                "model of that network."
            )
        try:
            config = self.sizes(fields["config"])
            card = ModelCard(
                **{key: fields[key] for key in _TEXT_FIELDS},
                digest=fields["sha256"],
                calibrations=_parse_calibrations(fields.get("calibrations", {}), source),
                spread=_parse_spread(fields.get("spread", [[], []]), source),
            )
        except CheckpointError:
            raise
        except SpecError as error:
            raise CheckpointError(f"{source}: the model card is not valid: {error}") from error
        return card, config


def _checksum(fields: Mapping[str, Any]) -> str:
    """Return the sha256 hex of a card without its checksum: the digest of the weights does not cover the card."""
    others = {key: value for key, value in fields.items() if key != _CHECKSUM}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


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


def _parse_spread(entry: object, source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the scores and deviations that `ModelCard` documents."""
    lists = entry if isinstance(entry, list) and len(entry) == 2 and all(isinstance(v, list) for v in entry) else None
    numbers = [number for values in lists or () for number in values]
    is_valid = lists is not None and len(lists[0]) == len(lists[1])
    if lists is None or not is_valid or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise CheckpointError(f"{source}: 'spread' of the model card is {entry!r}, expected two lists of equal length.")
    scores, deviations = (tuple(map(float, values)) for values in lists)
    if list(scores) != sorted(scores) or any(value < 0 for value in deviations):
        raise CheckpointError(
            f"{source}: 'spread' of the model card is {entry!r}, expected ascending scores and deviations "
            "of at least 0."
        )
    return scores, deviations
