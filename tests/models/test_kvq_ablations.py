"""Ablations of KVQ: each is a configuration with its own tensors, maps, frames and model id."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import NATIVE_SIDE
from kvq_batch.models.kvq.config import PUBLISHED, TINY, KvqConfig, tensor_shapes
from kvq_batch.models.kvq.family import frame_request
from kvq_batch.models.kvq.network import KvqMaps, build_network
from kvq_batch.models.kvq.untrained import untrained_checkpoint
from kvq_batch.training.initialisation import trainable_network
from tests.support.kvq_cases import as_torch

SMALL = dataclasses.replace(
    TINY, embed_dim=8, num_heads=(1, 2, 4), top_k=(0, 2, 2), window=(2, 2, 2), num_frames=8, input_size=(64, 64)
)
ABLATIONS: dict[str, dict[str, Any]] = {
    "fwa": {},
    "iwa": {"top_k": (0, 0, 0)},
    "cwa": {"intra": 0},
    "last saliency": {"saliency": 1},
    "no saliency": {"saliency": 0},
    "top 1": {"top_k": (0, 1, 1)},
    "centre": {"crop": 1},
    "random": {"crop": 2},
    "fragments": {"fragments": (2, 2)},
    "half size": {"input_size": (32, 32)},
}


def config_of(name: str) -> KvqConfig:
    return dataclasses.replace(SMALL, **ABLATIONS[name])


def maps_of(name: str) -> KvqMaps:
    config = config_of(name)
    checkpoint = untrained_checkpoint("x", config)
    clips = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 8, *config.input_size)).astype(np.float32))
    with torch.inference_mode():
        found: KvqMaps = build_network(config, as_torch(dict(checkpoint.tensors)))(clips)
    return found


@pytest.mark.parametrize("name", ABLATIONS)
def test_maps_have_their_shape(name: str) -> None:
    config, maps = config_of(name), maps_of(name)
    assert maps.texture.shape == maps.saliency.shape == (1, *config.maps_shape(8, *config.input_size))
    assert maps.levels.shape[1] == config.num_maps or name == "no saliency"
    assert torch.isfinite(maps.scores()).all()
    assert maps.saliency.mean() == pytest.approx(1, abs=1e-5)


def test_every_ablation_is_another_model() -> None:
    ids = {untrained_checkpoint("kvq", config_of(name)).card.model_id for name in ABLATIONS}
    assert len(ids) == len(ABLATIONS)
    for name in ABLATIONS:
        assert KvqConfig.from_json(config_of(name).as_json()) == config_of(name)


def test_defaults_leave_the_published_model_as_it_was() -> None:
    assert not {"crop", "intra", "saliency"} & set(PUBLISHED.as_json())
    assert len(tensor_shapes(PUBLISHED)) == 213


def test_number_of_saliency_maps() -> None:
    assert [config_of(name).num_maps for name in ("fwa", "last saliency", "no saliency", "iwa")] == [3, 2, 0, 0]
    assert tensor_shapes(config_of("last saliency"))["weight_conv.weight"] == (1, 2, 1, 1, 1)
    assert not [key for key in tensor_shapes(config_of("no saliency")) if key.startswith("weight")]
    assert not [key for key in tensor_shapes(config_of("iwa")) if "cross" in key or key.startswith("weight_conv")]


def test_score_without_saliency_is_the_mean_texture() -> None:
    maps = maps_of("no saliency")
    assert torch.allclose(maps.saliency, torch.ones_like(maps.saliency))
    assert float(maps.scores()) == pytest.approx(float(maps.texture.double().mean()), abs=1e-6)


def test_block_without_intra_attention_adds_the_other_only() -> None:
    config = config_of("cwa")
    tensors = as_torch(dict(untrained_checkpoint("x", config).tensors))
    prefix = "fragments_backbone.layers.1.blocks.0."
    assert f"{prefix}attn.qkv.weight" not in tensors
    assert f"{prefix}attn.cross_windowattn.qkv.weight" in tensors
    assert "fragments_backbone.layers.0.blocks.0.attn.qkv.weight" in tensors
    # With a projection of 0 across windows and an MLP of 0, a block returns its input.
    for key in tensors:
        if key.startswith(prefix) and ("cross_windowattn.proj" in key or "mlp.fc2" in key):
            tensors[key] = torch.zeros_like(tensors[key])
    network = build_network(config, tensors)
    seen: dict[str, torch.Tensor] = {}
    block = network.fragments_backbone.layers[1].get_submodule("blocks.0")
    block.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output[0]))
    with torch.inference_mode():
        network(torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert torch.allclose(seen["x"], seen["y"], atol=1e-6)


@pytest.mark.parametrize("name", ["cwa", "iwa", "no saliency", "last saliency"])
def test_ablation_is_trainable(name: str) -> None:
    config = config_of(name)
    network = trainable_network(config, as_torch(dict(untrained_checkpoint("x", config).tensors)), 0.1)
    network(torch.randn(2, 3, 8, 64, 64)).scores().sum().backward()
    unreached = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    # The offset of a softmax has gradient 0, but is reached.
    assert not unreached


def test_frames_of_each_input() -> None:
    assert frame_request(config_of("fwa")).short_side is None
    for name in ("centre", "random"):
        assert frame_request(config_of(name)).short_side == NATIVE_SIDE
    assert frame_request(config_of("fragments")).fragments == (2, 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"intra": 0, "top_k": (0, 0, 0)}, "needs attention across windows"),
        ({"crop": 1, "fragments": (2, 2)}, "exclude each other"),
        ({"saliency": 3}, "expected 0 or 1 or 2"),
        ({"top_k": (0, 0, -1)}, "nowhere below 0"),
    ],
)
def test_contradictions_are_rejected(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(SMALL, **sizes)
