"""A forward pass of KVQ on a GPU: few kernels, and the host never waits for the device.

Counted on the device "meta", which takes the path of a GPU and raises where a value is read.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from benchmarks.operator_counts import OperatorCounts
from kvq_batch.models.kvq.config import LITE, PUBLISHED, KvqConfig
from kvq_batch.models.kvq.network import KvqNetwork, build_network
from kvq_batch.models.kvq.pixels import normalise
from tests.support.kvq_cases import SMALL, as_torch, noise_clips, random_tensors

META = torch.device("meta")


def meta_network(config: KvqConfig, dtype: torch.dtype) -> KvqNetwork:
    with META:
        tensors = dict(KvqNetwork(config).state_dict())
    return build_network(config, tensors, dtype, is_frozen=True)


@pytest.fixture(
    scope="module",
    params=[(PUBLISHED, 1, 560), (PUBLISHED, 8, 830), (LITE, 8, 1080)],
    ids=["published", "published-batch", "lite"],
)
def counted(request: pytest.FixtureRequest) -> tuple[OperatorCounts, int]:
    """The operators of the second pass over a batch of clips in fp16, and the most kernels that it may need.

    Before layouts, biases and weights were kept, a clip took 2548 kernels with the published sizes, and the host waited
    80 times.
    """
    config, num_clips, most = request.param
    network = meta_network(config, torch.float16)
    clips = torch.empty(num_clips, config.num_frames, *config.input_size, 3, dtype=torch.uint8, device=META)
    with torch.inference_mode():
        network(normalise(clips))
        with OperatorCounts() as counts:
            network(normalise(clips))
    return counts, most


def test_kernels_are_bounded(counted: tuple[OperatorCounts, int]) -> None:
    counts, most = counted
    assert counts.kernels.total() <= most, counts.kernels.most_common()


def test_host_never_waits(counted: tuple[OperatorCounts, int]) -> None:
    counts, _ = counted
    assert not counts.host_syncs
    assert not counts.uploads


def test_weights_are_cast_once(counted: tuple[OperatorCounts, int]) -> None:
    # What is cast are activations: the normalised tokens of each layer, and what leaves the half precision.
    counts, _ = counted
    assert counts.kernels["aten::embedding"] <= 8
    assert counts.kernels["aten::to"] <= 80, counts.kernels.most_common()


def test_host_syncs_are_noticed() -> None:
    x = torch.arange(4)
    with OperatorCounts() as counts:
        assert x[2].item() == 2
        x[x > 1]
        torch.unique(x)
    assert counts.host_syncs.total() >= 3
    with pytest.raises(NotImplementedError), OperatorCounts():
        torch.empty(4, device=META).nonzero()


def test_attention_backends_are_tried_in_order_on_a_gpu_only() -> None:
    network = meta_network(SMALL, torch.float16)
    seen: list[list[SDPBackend]] = []
    network.vqa_head.register_forward_hook(lambda *_: seen.append(_cur_sdpa_kernel_backends(with_priority=True)))
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with torch.inference_mode():
        network(torch.empty(1, 3, 8, 96, 96, device=META))
        on_cpu = build_network(SMALL, as_torch(random_tensors(SMALL)))
        on_cpu.vqa_head.register_forward_hook(lambda *_: seen.append(_cur_sdpa_kernel_backends(with_priority=True)))
        on_cpu(noise_clips(1, 8, 96, 96))
    first = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    assert seen[0][:4] == first
    assert seen[1] == _cur_sdpa_kernel_backends(with_priority=True) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_network_has_the_same_maps(dtype: torch.dtype) -> None:
    tensors = as_torch(random_tensors(SMALL))
    clips = noise_clips(1, 8, 96, 96)
    with torch.inference_mode():
        expected = build_network(SMALL, tensors, dtype)(clips)
        network = build_network(SMALL, tensors, dtype, is_frozen=True)
        for _ in range(2):
            found = network(clips)
            assert torch.equal(found.texture, expected.texture)
            assert torch.equal(found.saliency, expected.saliency)
            assert torch.equal(found.levels, expected.levels)


def test_batch_of_a_gpu_equals_single_clips() -> None:
    # `_run` is what a GPU runs for a whole batch.
    network = build_network(SMALL, as_torch(random_tensors(SMALL)), is_frozen=True)
    clips = noise_clips(3, 8, 40, 56)
    with torch.inference_mode():
        together, alone = network._run(clips), network(clips)
    assert (together.texture - alone.texture).abs().max() < 1e-5
    assert (together.levels - alone.levels).abs().max() < 1e-4
