"""Networks with golden weights under published names, and comparison of their stages with the goldens."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kvq_batch.domain.frames import Sampler, Sampling
from kvq_batch.models.fastvqa.config import SwinConfig
from tests.goldens.fastvqa import golden_recipe

GOLDEN = Path(golden_recipe.__file__).with_name("golden.npz")

Network = TypeVar("Network", bound=nn.Module)

# Ten to twenty times the spread between float32 and float64 of the official code (FASTVQA_SPEC section 9).
TOLERANCES = {"map": 2e-4, "score": 5e-5, "probe": 1e-4, "rms": 1e-4}

TINY = SwinConfig(16, (2, 2, 2, 2), (2, 4, 8, 16), head_hidden=16)


def tiny_config(weights: str, scales_window: bool) -> SwinConfig:
    """Return the sizes of a reduced network of the goldens: "tiny" or "tiny_m"."""
    is_m = weights == "tiny_m"
    return SwinConfig(
        TINY.embed_dim,
        TINY.depths,
        TINY.num_heads,
        window=(4, 4, 4) if is_m else (8, 7, 7),
        fragment_bias=(False,) * 4 if is_m else (True, True, True, False),
        head_hidden=TINY.head_hidden,
        scales_window=scales_window,
    )


def with_weights(
    build: Callable[[], Network], weights: Mapping[str, NDArray[np.float32]], dtype: torch.dtype = torch.float32
) -> Network:
    """Return a network in scoring mode around these tensors, which must be exactly its own."""
    with torch.device("meta"):
        network = build()
    state = {name: torch.from_numpy(value).to(dtype) for name, value in weights.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def record(modules: Sequence[nn.Module], head: nn.Module) -> list[Tensor]:
    """Return a list that gets the outputs of `modules`, then the input of `head`, when the network runs."""
    found: list[Tensor] = []

    def output(_module: nn.Module, _inputs: Any, value: Tensor) -> None:
        found.append(value)

    def inputs(_module: nn.Module, values: tuple[Tensor, ...]) -> None:
        found.append(values[0])

    for module in modules:
        module.register_forward_hook(output)
    head.register_forward_pre_hook(inputs)
    return found


def assert_golden(case: str, quality: Tensor, stages: Sequence[Tensor] = ()) -> None:
    """Compare maps [B, D, H, W] and stages [B, D, H, W, C] with the goldens of one case."""
    golden = np.load(GOLDEN)
    maps = quality[:, None].double().numpy()
    assert maps.shape == golden[f"{case}.map"].shape
    assert np.abs(maps - golden[f"{case}.map"]).max() <= TOLERANCES["map"]
    assert np.abs(maps.mean((1, 2, 3, 4)) - golden[f"{case}.score"]).max() <= TOLERANCES["score"]
    for number, stage in enumerate(stages):
        values = stage.permute(0, 4, 1, 2, 3).double().numpy()
        assert values.shape == tuple(golden[f"{case}.stage_shape"][number]), number
        probe = golden_recipe.probe(values)
        assert np.abs(probe - golden[f"{case}.stage_probe"][number]).max() <= TOLERANCES["probe"], number
        rms = np.sqrt((values**2).mean())
        assert abs(rms - golden[f"{case}.stage_rms"][number]) <= TOLERANCES["rms"], number


def assert_segments_are_official(sampling: Sampler, sampler: str) -> None:
    """Compare the frames of a sampling with the golden ones of an official sampler, for all lengths.

    The official starts are random; where a segment has no room for an offset, both are equal.
    """
    assert isinstance(sampling, Sampling)
    golden = np.load(GOLDEN)
    per_segment, segments, stride, _ = golden_recipe.FRAGMENT_FRAMES[sampler]
    for length, expected in zip(golden_recipe.LENGTHS, golden[f"time.fragment.{sampler}"], strict=True):
        found = sampling.indices(length).reshape(segments, per_segment)
        official = expected.reshape(segments, per_segment)
        bound = golden_recipe.time_bound(length, per_segment, segments, stride)
        shift = 0 if bound <= 0 else bound // 2 - golden_recipe.time_offsets(sampler, length).reshape(-1, 1)
        assert np.array_equal(found, (official + shift) % length), length
