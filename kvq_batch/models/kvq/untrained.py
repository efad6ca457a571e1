"""Seeded weights for a network that nobody has trained: the demo, the tests, and a first run of the whole pipeline.

Values come from the raw bits of a counter-based generator keyed by seed and tensor name, so that they are the same
to the last bit on every machine and under every version of numpy. They are scaled so that maps vary from cell to
cell, as a trained network's do. They are deliberately no start for training: use `published.load_kinetics`.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from kvq_batch.models.kvq.config import KvqConfig, Shape, tensor_shapes

# Gains over unit variance: loud enough that cells differ, and not so loud that one cell takes a slot's whole saliency.
_GAINS = {"vqa_head.fc_hid": 2.0, "vqa_head.fc_last": 2.0, "weight_head.fc_hid": 2.0, "weight_conv": 0.05}


def untrained_tensors(config: KvqConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a network, float32, a function of the sizes and the seed alone."""
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
    """Uniform in [-1, 1) with 32 bits each; only the raw stream is promised to stay, no distribution of numpy's is."""
    state = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
    bits = state.random_raw(math.prod(shape)) >> np.uint64(32)
    return (bits.astype(np.float64) * 2.0**-31 - 1.0).reshape(shape)
