"""Seeded random weights, for the demo, the tests and a first run of the pipeline.

Values are the raw bits of a counter-based generator, keyed by seed and tensor name, so they are bit-identical on every
machine and with every version of numpy. They are scaled so that maps vary between cells, as those of a trained network
do. For training, start from `training.initialisation` instead.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.checkpoints.tensors import Shape
from kvq_batch.models.kvq.checkpoint import Checkpoint, digest
from kvq_batch.models.kvq.config import KvqConfig, tensor_shapes

UNTRAINED = "untrained"
"""The value of `weights` that selects random weights, and their model version."""

# Standard deviations. Larger ones concentrate a slot's saliency in one cell; smaller ones make all cells alike.
_GAINS = {"vqa_head.fc_hid": 2.0, "vqa_head.fc_last": 2.0, "weight_head.fc_hid": 2.0, "weight_conv": 0.05}


def untrained_checkpoint(name: str, config: KvqConfig, seed: int = 0) -> Checkpoint:
    """Return seeded random weights, with a card that says so."""
    tensors = untrained_tensors(config, seed)
    card = ModelCard(
        name=name,
        version=UNTRAINED,
        digest=digest(tensors, config),
        origin="untrained",
        summary=f"UNTRAINED: random weights of seed {seed}; its scores and maps do NOT measure quality",
        licence="Apache-2.0",
    )
    return Checkpoint(card, config, tensors)


def untrained_tensors(config: KvqConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return every tensor of a network, float32; they depend on the sizes and the seed only."""
    return {name: _tensor(name, shape, seed) for name, shape in tensor_shapes(config).items()}


def _tensor(name: str, shape: Shape, seed: int) -> NDArray[np.float32]:
    path, leaf = name.rsplit(".", 1)
    layer = path.rsplit(".", 1)[-1]
    if layer.startswith("norm") or leaf == "bias":
        return np.full(shape, float(layer.startswith("norm") and leaf == "weight"), np.float32)
    noise = _uniform(f"{seed}:{name}", shape)
    if leaf == "relative_position_bias_table":
        return (0.5 * noise).astype(np.float32)
    return (_GAINS.get(path, 1.0) * math.sqrt(3 / math.prod(shape[1:])) * noise).astype(np.float32)


def _uniform(key: str, shape: Shape) -> NDArray[np.float64]:
    """Return uniform numbers in [-1, 1) of 32 bits, from a raw stream: numpy does not guarantee its distributions."""
    state = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
    bits = state.random_raw(math.prod(shape)) >> np.uint64(32)
    return (bits.astype(np.float64) * 2.0**-31 - 1.0).reshape(shape)
