"""The KVQ network equals the golden maps and a plain implementation, alone and in batches."""

import csv
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.kvq_plain import plain_forward
from kvq_batch.domain.errors import SpecError
from kvq_batch.models.kvq.attention import saliencies, saliency
from kvq_batch.models.kvq.blocks import WindowRouter
from kvq_batch.models.kvq.config import PUBLISHED, TINY, KvqConfig, index_shapes, tensor_shapes
from kvq_batch.models.kvq.network import KvqMaps, KvqNetwork, build_network
from tests.goldens import golden_recipe
from tests.support.kvq_cases import (
    GOLDENS,
    SMALL,
    as_torch,
    golden_network,
    golden_tensors,
    noise_clips,
    random_tensors,
)
from tests.support.numerics import assert_close_to_scale

# About ten times the spread between float32 and float64 of the reference (KVQ_SPEC section 4.2).
TOLERANCES = {"score": 1e-4, "texture": 2e-4, "saliency": 3e-3, "maps8": 2e-3, "logits": 2e-4}


@torch.inference_mode()
def run(network: KvqNetwork, clips: Tensor) -> KvqMaps:
    maps = network(clips)
    assert isinstance(maps, KvqMaps)
    return maps


@pytest.mark.parametrize(
    "case",
    [
        "cube",
        "pad64",
        "mid224",
        pytest.param("img448", marks=pytest.mark.slow),
        pytest.param("full448", marks=pytest.mark.slow),
    ],
)
def test_maps_equal_the_golden_maps(case: str) -> None:
    golden = np.load(GOLDENS / "golden.npz")
    clip = golden_recipe.case_input(case)
    sums = [clip.astype(np.float64).sum(), np.abs(clip.astype(np.float64)).sum()]
    assert np.allclose(sums, golden[f"{case}.input_sum"]), "the recipe's input differs on this machine"
    network = golden_network()
    decisions: list[Tensor] = []

    def watch(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        decisions.append(output[0].sort(dim=-1).values)

    hooks = [m.register_forward_hook(watch) for m in network.modules() if isinstance(m, WindowRouter)]
    try:
        maps = run(network, torch.from_numpy(clip))
    finally:
        for hook in hooks:
            hook.remove()
    found = {
        "score": maps.scores(),
        "texture": maps.texture,
        "saliency": maps.saliency,
        "maps8": maps.levels,
        "logits": maps.logits,
    }
    for name, tolerance in TOLERANCES.items():
        expected = golden[f"{case}.{name}"]
        assert np.abs(found[name].double().numpy().reshape(expected.shape) - expected).max() <= tolerance, name
    blocks = [f"s3b{number}" for number in range(6)] + ["s4b0", "s4b1"]
    # Clips of a batch run one after the other, so each router is called once per clip.
    for index, block in enumerate(blocks):
        assert np.array_equal(torch.cat(decisions[index :: len(blocks)]).numpy(), golden[f"{case}.topk_{block}"]), block


def test_tensor_names_and_shapes_are_published() -> None:
    with (GOLDENS / "state_dict_keys.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    published = {row["key"]: tuple(map(int, row["shape"].split("x"))) for row in rows}
    ours = tensor_shapes(PUBLISHED) | index_shapes(PUBLISHED)
    assert len(published) == 225
    assert ours == published
    # Learnable tensors are also in the published order.
    assert list(tensor_shapes(PUBLISHED)) == [row["key"] for row in rows if row["kind"] == "param"]
    modules = {name: tuple(p.shape) for name, p in golden_network().state_dict().items()}
    assert modules == tensor_shapes(PUBLISHED)


def test_recipe_makes_the_golden_weights() -> None:
    golden = np.load(GOLDENS / "golden.npz")
    tensors = golden_tensors()
    for name, total in zip(golden["weights.names"], golden["weights.sum"], strict=True):
        assert abs(tensors[str(name)].astype(np.float64).sum() - total) < 1e-9, name


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (SMALL, (8, 48, 48)),
        (SMALL, (5, 40, 56)),
        (SMALL, (1, 8, 8)),
        (SMALL, (3, 30, 62)),
        (TINY, (4, 64, 96)),
        (KvqConfig(embed_dim=32, depths=(1, 1, 2, 2), num_heads=(1, 2, 4, 8)), (18, 96, 64)),
    ],
)
def test_maps_equal_the_plain_network(config: KvqConfig, shape: tuple[int, int, int]) -> None:
    tensors = random_tensors(config)
    clips = noise_clips(2, *shape)
    found = run(build_network(config, as_torch(tensors)), clips)
    expected = plain_forward(as_torch(tensors, torch.float64), config, clips.double())
    assert found.texture.shape == (2, *config.maps_shape(*shape))
    scale = expected["texture"].abs().max()
    assert (found.texture - expected["texture"]).abs().max() < 2e-5 * scale
    assert (found.levels - expected["levels"]).abs().max() < 2e-4 * expected["levels"].abs().max()
    assert (found.saliency - expected["saliency"]).abs().max() < 2e-4 * expected["saliency"].abs().max()
    assert (found.scores() - expected["score"]).abs().max() < 2e-5 * scale


def test_score_does_not_depend_on_the_batch() -> None:
    network = build_network(TINY, as_torch(random_tensors(TINY)))
    clips = noise_clips(3, 16, 224, 224)
    together = run(network, clips)
    reversed_order = run(network, clips.flip(0))
    for index in range(3):
        alone = run(network, clips[index : index + 1])
        scale = float((alone.saliency * alone.texture).abs().mean())
        for other, i in ((together, index), (reversed_order, 2 - index)):
            assert_close_to_scale(other.texture[i], alone.texture[0])
            assert_close_to_scale(other.saliency[i], alone.saliency[0])
            assert_close_to_scale(other.scores()[i], alone.scores()[0], scale=scale)


def test_saliency_has_mean_one_and_weights_the_texture() -> None:
    maps = run(build_network(SMALL, as_torch(random_tensors(SMALL))), noise_clips(2, 8, 96, 96))
    assert_close_to_scale(maps.saliency.mean((2, 3)), torch.ones(2, 4))
    weighted = (maps.saliency * maps.texture).double()
    assert_close_to_scale(maps.scores(), weighted.mean((1, 2, 3)), scale=float(weighted.abs().mean()))
    assert torch.isfinite(maps.texture).all()


@pytest.mark.parametrize("length", [1, 7, 500, 5000])
def test_saliency_in_blocks_is_exact(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    query, key = torch.randn(2, length, 24, generator=generator)
    expected = torch.softmax(query.double() @ key.double().T * 0.4, dim=-1).sum(0)
    found = saliency(query, key, 0.4)
    assert (found - expected).abs().max() < 1e-4 * expected.max()
    assert abs(found.mean().item() - 1) < 1e-5


def test_logits_of_saliency_in_fp16_are_float32() -> None:
    # Logits of several hundred: in fp16 they are 1/4 to 1/2 apart.
    generator = torch.Generator().manual_seed(0)
    query, key = (4 * torch.randn(2, 300, 24, generator=generator)).half()
    expected = torch.softmax(query.double() @ key.double().T, dim=-1).sum(0)
    batch = saliencies(query.expand(2, -1, -1), key.expand(2, -1, -1), 1.0)
    for found in (saliency(query, key, 1.0), batch[0], batch[1]):
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 1e-4 * expected.max()


def test_saliency_never_allocates_its_matrix() -> None:
    # Measured in a separate process. The matrix would take 629 MB.
    code = (
        "import resource, torch; from kvq_batch.models.kvq.attention import saliency;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "q, k = torch.randn(2, 12544, 8); saliency(q[:900], k[:900], 1.0); before = peak();"
        "saliency(q, k, 1.0); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 150 * 1024


@pytest.mark.parametrize("size", [(0, 96, 96), (8, 100, 128), (8, 128, 68)])
def test_invalid_frame_size_is_rejected(size: tuple[int, int, int]) -> None:
    network = build_network(SMALL, as_torch(random_tensors(SMALL)))
    with pytest.raises(SpecError, match=f"{size[1]}x{size[2]}"):
        network(torch.zeros(1, 3, *size))


def test_all_tensors_but_two_biases_have_gradients() -> None:
    tensors = {name: t.requires_grad_() for name, t in as_torch(random_tensors(SMALL)).items()}
    network = build_network(SMALL, tensors)
    maps = network(noise_clips(1, 8, 48, 48))
    (maps.texture * maps.saliency).mean().backward()
    # A bias before the softmax over cells does not change it.
    idle = {name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9}
    assert idle <= {"weight_conv.bias", "weight_head.fc_last.bias"}


def test_bf16_is_close_to_fp32() -> None:
    tensors = as_torch(random_tensors(TINY))
    clips = noise_clips(1, 16, 224, 224)
    exact = run(build_network(TINY, tensors), clips)
    rough = run(build_network(TINY, tensors, torch.bfloat16), clips)
    spread = exact.texture.std()
    assert rough.texture.dtype == torch.float32
    assert (rough.texture - exact.texture).abs().mean() < 0.1 * spread
    assert abs(rough.scores() - exact.scores()).max() < 0.1 * spread
