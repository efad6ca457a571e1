"""Inputs that several tests of KVQ share: golden weights and clips, and a small network."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.models.kvq.config import PUBLISHED, KvqConfig, tensor_shapes
from kvq_batch.models.kvq.network import KvqNetwork, build_network
from kvq_batch.models.kvq.untrained import untrained_tensors
from tests.goldens import golden_recipe

GOLDENS = Path(__file__).parents[1] / "goldens"

# Shifted windows, fusion with several windows to choose from, and a width that no other axis has, at toy cost.
SMALL = KvqConfig(
    embed_dim=12,
    depths=(2, 3),
    num_heads=(2, 3),
    top_k=(3, 2),
    window=(2, 3, 4),
    head_hidden=8,
    num_frames=8,
    input_size=(96, 96),
)


def golden_tensors() -> dict[str, NDArray[np.float32]]:
    """The published sizes filled by the golden recipe."""
    return {name: golden_recipe.weight(name, shape) for name, shape in tensor_shapes(PUBLISHED).items()}


@cache
def golden_network() -> KvqNetwork:
    return build_network(PUBLISHED, as_torch(golden_tensors()))


def random_tensors(config: KvqConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Untrained tensors whose norms and biases are random too, so that no term of a formula is 0 or 1."""
    generator = np.random.default_rng(seed)
    tensors = untrained_tensors(config, seed)
    return {
        name: tensor + generator.normal(0, 0.2, tensor.shape).astype(np.float32) * (tensor.ndim == 1)
        for name, tensor in tensors.items()
    }


def as_torch(tensors: dict[str, NDArray[np.float32]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.from_numpy(tensor).to(dtype) for name, tensor in tensors.items()}


def noise_clips(count: int, num_frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Normalised random clips, float32 [count, 3, T, H, W]."""
    return torch.randn(count, 3, num_frames, height, width, generator=torch.Generator().manual_seed(seed))
