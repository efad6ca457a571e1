"""What a training does differently for each kind of network, behind one interface.

`architecture_of` selects it by the type of the sizes. The trainer itself knows no network.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.checkpoints.tensors import Tensors
from kvq_batch.models.kvq import checkpoint
from kvq_batch.models.kvq.config import KvqConfig, tensor_shapes
from kvq_batch.models.kvq.network import KvqNetwork
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.training.coarse_to_fine import CtfArchitecture
from kvq_batch.training.initialisation import (
    initial_tensors,
    scoring_network,
    tensors_from_checkpoint,
    tensors_from_imagenet,
    tensors_from_kinetics,
    trainable_network,
)
from kvq_batch.training.losses import Losses, TensorBatch, check_cube, compute_losses
from kvq_batch.training.process_group import ProcessGroup
from kvq_batch.training.settings import NetworkConfig, TrainSettings


class Architecture(Protocol):
    """One kind of network, with its weights, its loss and its files. `settings.config` are its sizes."""

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Names of the terms of the loss, the columns of the curve."""

    @property
    def num_parameters(self) -> int:
        """Number of learnable numbers."""

    def check(self, settings: TrainSettings, recompute: bool) -> None:
        """Check the settings that only this network has. Raises: SpecError."""

    def initial_tensors(self, settings: TrainSettings, start: Path | None, backbone: Path | None) -> dict[str, Tensor]:
        """Return every tensor, float32: drawn, of the checkpoint `start`, or with the backbone of another file.

        Raises:
            CheckpointError: a file that is missing, or has other tensors.
        """

    def digest(self, tensors: Mapping[str, Tensor]) -> str:
        """Return the sha256 hex of sizes and weights."""

    def trainable(self, tensors: Mapping[str, Tensor], settings: TrainSettings, recompute: bool) -> nn.Module:
        """Return a network in training mode around `tensors`, which it shares."""

    def scoring(self, tensors: Mapping[str, Tensor], settings: TrainSettings) -> nn.Module:
        """Return a network in scoring mode around `tensors`, which it shares."""

    def prepare(self, clips: Tensor, settings: TrainSettings) -> Tensor:
        """Return the input of the network for uint8 RGB clips [n, T, H, W, 3], or for measured ones."""

    def scores(self, network: nn.Module, inputs: Tensor, settings: TrainSettings) -> Tensor:
        """Return the raw scores, float64 [n], of what `prepare` returned."""

    def losses(self, network: nn.Module, batch: TensorBatch, settings: TrainSettings, group: ProcessGroup) -> Losses:
        """Return the loss of a batch; see `losses.compute_losses`."""

    def update_rule(self, name: str) -> tuple[bool, bool]:
        """See `optimisation.UpdateRule`."""

    def save(self, path: Path, card: ModelCard, tensors: Tensors) -> ModelCard:
        """Write a checkpoint that a scorer loads; return its card."""

    def load_card(self, path: Path) -> tuple[ModelCard, Tensors]:
        """Return what `save` wrote."""


class KvqArchitecture:
    """KVQ networks; see `Architecture`."""

    loss_terms = ("plcc", "rank", "lpc", "score", "cells", "pairs")

    def __init__(self, config: KvqConfig) -> None:
        self.config = config

    @property
    def num_parameters(self) -> int:
        return sum(map(math.prod, tensor_shapes(self.config).values()))

    def check(self, settings: TrainSettings, recompute: bool) -> None:
        if settings.loss.lpc:
            check_cube(self.config, settings.cube)

    def initial_tensors(self, settings: TrainSettings, start: Path | None, backbone: Path | None) -> dict[str, Tensor]:
        drawn = initial_tensors(self.config, settings.initialisation, settings.seed)
        if start is not None:
            return tensors_from_checkpoint(drawn, self.config, start)
        if backbone is None:
            return drawn
        load = tensors_from_imagenet if self.config.convolutions else tensors_from_kinetics
        return load(drawn, self.config, backbone)

    def digest(self, tensors: Mapping[str, Tensor]) -> str:
        return checkpoint.digest({name: tensor.numpy() for name, tensor in tensors.items()}, self.config)

    def trainable(self, tensors: Mapping[str, Tensor], settings: TrainSettings, recompute: bool) -> nn.Module:
        return trainable_network(self.config, tensors, settings.dropout, settings.precision, recompute)

    def scoring(self, tensors: Mapping[str, Tensor], settings: TrainSettings) -> nn.Module:
        return scoring_network(self.config, tensors, settings.precision)

    def prepare(self, clips: Tensor, settings: TrainSettings) -> Tensor:
        return clips.float() if settings.measured else normalise(clips)

    def scores(self, network: nn.Module, inputs: Tensor, settings: TrainSettings) -> Tensor:
        assert isinstance(network, KvqNetwork)
        maps = network.maps_of_measured(inputs) if settings.measured else network(inputs)
        scores: Tensor = maps.scores()
        return scores

    def losses(self, network: nn.Module, batch: TensorBatch, settings: TrainSettings, group: ProcessGroup) -> Losses:
        assert isinstance(network, KvqNetwork)
        return compute_losses(network, batch, settings.loss, settings.cube, group, settings.measured)

    def update_rule(self, name: str) -> tuple[bool, bool]:
        return "backbone" in name, True

    def save(self, path: Path, card: ModelCard, tensors: Tensors) -> ModelCard:
        return checkpoint.save(path, checkpoint.Checkpoint(card, self.config, tensors))

    def load_card(self, path: Path) -> tuple[ModelCard, Tensors]:
        loaded = checkpoint.load(path)
        return loaded.card, loaded.tensors


def architecture_of(config: NetworkConfig) -> Architecture:
    """Return the kind of network that has these sizes."""
    return KvqArchitecture(config) if isinstance(config, KvqConfig) else CtfArchitecture(config)
