"""UVQ, MDTVSFA and BVQA-2022 networks equal the golden values of their specification."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from kvq_batch.models.checkpoints.networks import build_network, network_shapes
from kvq_batch.models.mdtvsfa.config import MixedHeadConfig
from kvq_batch.models.mdtvsfa.network import MixedHead
from kvq_batch.models.uvq.compression import Compression10
from kvq_batch.models.uvq.network import (
    Aggregation10,
    Aggregation15,
    Content10,
    Content15,
    Distortion10,
    Distortion15,
    joined,
    patches_of,
)
from tests.goldens.swin import peers_recipe
from tests.support.numerics import assert_close_to_scale

# Float32 through 50 layers of random weights, as a share of the root mean square: at most 3e-5 was measured.
LAYERS_RELATIVE = 2e-4


@cache
def golden() -> dict[str, NDArray[np.float64]]:
    with np.load(peers_recipe.FOLDER / "golden.npz") as file:
        return dict(file)


def build(factory: Callable[[], nn.Module], variant: str) -> nn.Module:
    # Two matrices of the published compression network are never used.
    tensors = {k: v for k, v in peers_recipe.weights(variant).items() if not k.startswith("nonlinear")}
    return build_network(factory, tensors)


@torch.inference_mode()
def run(network: nn.Module, *arguments: Any) -> Any:
    return network(*arguments)


def pictures(*cases: tuple[int, int, int]) -> torch.Tensor:
    return torch.from_numpy(peers_recipe.in_range([peers_recipe.picture(*case) for case in cases]))


def assert_equals_golden(found: torch.Tensor, name: str) -> None:
    values = found.double().numpy()
    assert values.shape == tuple(golden()[f"{name}.shape"])
    scale = float(golden()[f"{name}.rms"])
    assert_close_to_scale(peers_recipe.probe(values), golden()[f"{name}.probe"], LAYERS_RELATIVE, scale, name)
    assert np.sqrt((values**2).mean()) == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize(
    ("factory", "variant"),
    [
        (Content15, "uvq15_content"),
        (Distortion15, "uvq15_distortion"),
        (Aggregation15, "uvq15_aggregation"),
        (Content10, "uvq10_content"),
        (Distortion10, "uvq10_distortion"),
        (Compression10, "uvq10_compression"),
        (Aggregation10, "uvq10_aggregation_3"),
    ],
)
def test_names_and_shapes_are_those_of_the_published_files(factory: Callable[[], nn.Module], variant: str) -> None:
    published = {k: s for k, s in peers_recipe.layout(variant).items() if s and not k.startswith("nonlinear")}
    assert dict(network_shapes(factory)) == published


def test_uvq_15_equals_the_golden_features() -> None:
    content = run(build(Content15, "uvq15_content"), pictures((51, 270, 480)))
    assert_equals_golden(content, "uvq15.content")
    distortion = run(build(Distortion15, "uvq15_distortion"), pictures((53, 360, 640)))
    assert_equals_golden(distortion, "uvq15.distortion")


@pytest.mark.slow
def test_uvq_15_joins_the_patches_of_a_frame() -> None:
    frame = pictures((54, 1080, 1920))[0]
    patches = run(build(Distortion15, "uvq15_distortion"), patches_of(frame, (3, 3), (360, 640)))
    assert_equals_golden(joined(patches, (3, 3)), "uvq15.distortion1080")


def test_patches_are_joined_in_the_order_they_were_cut() -> None:
    frame = torch.arange(6.0 * 8).reshape(1, 6, 8)
    patches = patches_of(frame, (3, 2), (2, 4)).movedim(1, -1)
    assert torch.equal(joined(patches, (3, 2))[0, :, :, 0], frame[0])


def test_uvq_15_aggregation_equals_the_golden_scores() -> None:
    features = [torch.from_numpy(peers_recipe.uvq_features(kind, 3)) for kind in ("content15", "distortion15")]
    found = run(build(Aggregation15, "uvq15_aggregation"), *features)
    assert_close_to_scale(found, golden()["uvq15.aggregation"])


def test_uvq_10_equals_the_golden_features() -> None:
    features, labels = run(build(Content10, "uvq10_content"), pictures((55, 496, 496)))
    assert_equals_golden(features, "uvq10.content")
    assert_equals_golden(labels, "uvq10.content_label")
    features, labels = run(build(Distortion10, "uvq10_distortion"), pictures((56, 360, 640)))
    assert_equals_golden(features, "uvq10.distortion")
    assert_close_to_scale(labels[0], golden()["uvq10.distortion_label"], LAYERS_RELATIVE, 1.0)
    clip = pictures(*((57 + frame, 180, 320) for frame in range(5))).movedim(0, 1)[None]
    features, labels = run(build(Compression10, "uvq10_compression"), clip)
    assert_equals_golden(features, "uvq10.compression")
    assert_close_to_scale(labels, golden()["uvq10.compression_label"], LAYERS_RELATIVE, 1.0)


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_uvq_10_aggregation_equals_the_golden_scores(num_parts: int) -> None:
    names = (["content"], ["content", "distortion"], ["compression", "content", "distortion"])[num_parts - 1]
    features = [torch.from_numpy(peers_recipe.uvq_features(name, 4)) for name in names]
    found = run(build(lambda: Aggregation10(num_parts), f"uvq10_aggregation_{num_parts}"), features)
    assert_close_to_scale(found[None], golden()["uvq10.aggregation." + "_".join(names)])


@pytest.mark.parametrize(
    ("variant", "data_sets", "num_features"),
    [("mdtvsfa", "KCLN", 4096), ("bvqa2022_kcln", "KCLN", 4608), ("bvqa2022_c", "C", 4608)],
)
def test_heads_of_mixed_data_sets_equal_the_golden_scores(variant: str, data_sets: str, num_features: int) -> None:
    config = MixedHeadConfig(num_features=num_features, data_sets=tuple(data_sets))
    tensors = peers_recipe.weights(variant)
    assert {name: tensor.shape for name, tensor in tensors.items()} == network_shapes(lambda: MixedHead(config))
    network = build_network(lambda: MixedHead(config), tensors).double()
    for num_frames in (1, 12, 40):
        features = torch.from_numpy(peers_recipe.frame_features(num_frames, num_features)).double()
        found = run(network, features)
        numbers = [found.relative, found.mapped, *(found.aligned[name] for name in data_sets)]
        expected = golden()[f"{variant}.seeded.T{num_frames}"]
        assert numbers == pytest.approx(list(expected), rel=1e-12)
