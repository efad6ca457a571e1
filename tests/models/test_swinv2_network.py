"""SwinV2 and the coarse-to-fine network equal their goldens, which torchvision's blocks computed."""

import dataclasses

import numpy as np
import pytest
import torch

from kvq_batch.domain.errors import SpecError
from kvq_batch.models.swinv2_ctf.config import CtfConfig, SwinV2Config
from kvq_batch.models.swinv2_ctf.network import CtfNetwork
from kvq_batch.models.swinv2_ctf.swinv2 import SwinV2, log_coordinates, pair_index
from tests.goldens.swin import swinv2_recipe
from tests.support.published_networks import with_weights

GOLDEN = np.load(swinv2_recipe.FOLDER / "golden.npz")
TINY = SwinV2Config(16, (2, 2, 2, 2), (1, 2, 4, 8), 4)
TINY_CTF = CtfConfig(TINY, dim=32, grid=2, head_hidden=8)
# The goldens are of float64, stored as float32: float64 differs from them by at most 6e-6. Cosines are multiplied by up
# to 100, so float32 differs by up to 7e-4 in one stage of these weights, and by 2e-4 in a logit.
TOLERANCES = {torch.float32: 2e-3, torch.float64: 1e-5}


def test_position_tables_are_golden() -> None:
    for window in (4, 8):
        coordinates = log_coordinates(window).numpy()
        assert np.abs(coordinates - GOLDEN[f"v2.coords_w{window}"]).max() <= 1e-6
    assert np.array_equal(pair_index(4).numpy(), GOLDEN["v2.index_w4"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["v2_128", "v2_64", "v2_odd", "v2_32", pytest.param("v2_t", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_stages_and_logits_are_golden(case: str, dtype: torch.dtype) -> None:
    variant = swinv2_recipe.V2_CASES[case][0]
    config, classes = (SwinV2Config(), 1000) if case == "v2_t" else (TINY, 10)
    network = with_weights(lambda: SwinV2(config, classes), swinv2_recipe.weights(variant), dtype)
    pictures = torch.from_numpy(swinv2_recipe.v2_input(case)).to(dtype)
    x = network.embed(pictures)
    stages = [x]
    for stage in range(4):
        stages.append(network.run_stage(stage, x))
        if stage < 3:
            x = network.features[2 * stage + 2](stages[-1])
    stages.append(network.stages(pictures)[-1])
    for number, found in enumerate(stages):
        values = found.double().numpy()
        assert values.shape == tuple(GOLDEN[f"{case}.stage_shape"][number])
        difference = np.abs(swinv2_recipe.probe(values) - GOLDEN[f"{case}.stage_probe"][number]).max()
        assert difference <= TOLERANCES[dtype], (number, difference)
        assert abs(np.sqrt((values**2).mean()) - GOLDEN[f"{case}.stage_rms"][number]) <= TOLERANCES[dtype]
    logits = network(pictures)[:, :32].double().numpy()
    assert np.abs(logits - GOLDEN[f"{case}.logits"]).max() <= TOLERANCES[dtype]
    feature = stages[-1].mean((1, 2)).double().numpy()
    assert np.abs(feature - GOLDEN[f"{case}.feature"]).max() <= TOLERANCES[dtype]


@pytest.mark.parametrize("case", swinv2_recipe.CTF_CASES)
@torch.inference_mode()
def test_features_and_scores_are_golden(case: str) -> None:
    network = with_weights(lambda: CtfNetwork(TINY_CTF), swinv2_recipe.weights("ctf_tiny_test"))
    found = network(torch.from_numpy(swinv2_recipe.ctf_input(case)))
    assert np.abs(found.frames.numpy() - GOLDEN[f"{case}.frame"]).max() <= 2e-4
    assert np.abs(found.features.numpy() - GOLDEN[f"{case}.feature"]).max() <= 2e-4
    assert np.abs(found.scores.numpy() - GOLDEN[f"{case}.score"]).max() <= 1e-4


def test_gradients_are_golden() -> None:
    network = with_weights(lambda: CtfNetwork(TINY_CTF), swinv2_recipe.weights("ctf_tiny_test"))
    found = network(torch.from_numpy(swinv2_recipe.ctf_input("ctf_5")))
    (found.scores - torch.tensor([0.8, 0.3])).abs().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    for name, norm in zip(GOLDEN["ctf_5.grad_names"].tolist(), GOLDEN["ctf_5.grad_norm"].tolist(), strict=True):
        gradient = gradients[name]
        assert gradient is not None
        assert abs(float(gradient.norm()) - norm) <= 1e-2 * (norm + 1e-4), name


@pytest.mark.parametrize("variant", ["ctf_full", "ctf_tiny_test"])
def test_tensor_names_and_shapes_are_specified(variant: str) -> None:
    with torch.device("meta"):
        network = CtfNetwork(CtfConfig() if variant == "ctf_full" else TINY_CTF)
    expected = {key: shape for key, shape, kind in swinv2_recipe.layout(variant) if kind == "param"}
    assert {name: tuple(p.shape) for name, p in network.named_parameters()} == expected


def test_too_many_frames_are_rejected() -> None:
    network = with_weights(lambda: CtfNetwork(TINY_CTF), swinv2_recipe.weights("ctf_tiny_test"))
    with pytest.raises(SpecError, match="at most 32"):
        network(torch.zeros(1, 33, 3, 32, 32))


def test_bands_are_planes_of_the_input() -> None:
    with torch.device("meta"):
        plain, banded = (SwinV2(dataclasses.replace(TINY, num_bands=count)) for count in (0, 2))
    shapes = [dict(network.named_parameters())["features.0.0.weight"].shape for network in (plain, banded)]
    assert shapes == [(16, 3, 4, 4), (16, 7, 4, 4)]
    torch.manual_seed(0)
    network = SwinV2(dataclasses.replace(TINY, num_bands=1)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pictures = torch.randn(2, 3, 32, 32)
    conv, norm = (network.features[0].get_submodule(name) for name in ("0", "2"))
    luma = torch.tensordot(torch.tensor([0.299 * 58.395, 0.587 * 57.12, 0.114 * 57.375]), pictures, dims=([0], [1]))
    offset = 0.299 * 123.675 + 0.587 * 116.28 + 0.114 * 103.53
    taps = torch.exp(-(torch.arange(-3.0, 4) ** 2) / (2 * 0.8**2))
    kernel = (taps / taps.sum())[:, None] * (taps / taps.sum())[None]
    padded = torch.nn.functional.pad(luma[:, None] + offset, (3, 3, 3, 3), mode="replicate")
    detail = (luma[:, None] + offset) - torch.nn.functional.conv2d(padded, kernel[None, None])
    signed, size = detail.sign() * torch.log1p(detail.abs()), torch.log(detail.abs() + 0.5)
    expected = norm(conv(torch.cat([pictures, signed, size], 1)).permute(0, 2, 3, 1))
    with torch.inference_mode():
        assert torch.allclose(network.embed(pictures), expected, atol=1e-4)
