"""The networks of DOVER equal the golden maps of the official code, and its fused scores."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kvq_batch.models.dover.config import DOVER, DOVER_MOBILE, ConvNextConfig, DoverConfig, fuse
from kvq_batch.models.dover.convnext import ConvNext
from kvq_batch.models.dover.network import DoverNetwork
from kvq_batch.models.kvq.network import Head
from tests.goldens.fastvqa import golden_recipe
from tests.support.published_networks import GOLDEN, assert_golden, record, with_weights


class AestheticBranch(nn.Module):
    """The aesthetic branch alone, as the goldens have it."""

    def __init__(self, config: ConvNextConfig, hidden: int) -> None:
        super().__init__()
        self.aesthetic_backbone = ConvNext(config)
        self.aesthetic_head = Head(config.dims[-1], hidden)

    def forward(self, clips: Tensor) -> Tensor:
        quality: Tensor = self.aesthetic_head(self.aesthetic_backbone(clips))
        return quality


@pytest.mark.parametrize(
    "case",
    [
        "conv1",
        "conv2",
        pytest.param("conv1_full", marks=pytest.mark.slow),
        pytest.param("conv2_full", marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_aesthetic_maps_and_stages_are_golden(case: str) -> None:
    variant, version, dims, depths, hidden, *_ = golden_recipe.CONV_CASES[case]
    weights = {
        name.replace("vqa_head.", "aesthetic_head."): value
        for name, value in golden_recipe.weights(variant).items()
        if ".head." not in name
    }
    network = with_weights(lambda: AestheticBranch(ConvNextConfig(version, dims, depths), hidden), weights)
    stages = record(list(network.aesthetic_backbone.stages), network.aesthetic_head)
    quality = network(torch.from_numpy(golden_recipe.conv_input(case)))
    assert len(stages) == 5
    assert_golden(f"conv.{case}", quality, stages)


@pytest.mark.parametrize(("config", "variant"), [(DOVER, "dover"), (DOVER_MOBILE, "dover_mobile")])
def test_tensor_names_and_shapes_are_published(config: DoverConfig, variant: str) -> None:
    with torch.device("meta"):
        network = DoverNetwork(config)
    rows = golden_recipe.layout("state_dict_keys.tsv", variant)
    published = {key: shape for key, shape, kind in rows if kind == "param" and "_backbone.head." not in key}
    assert {name: tuple(p.shape) for name, p in network.named_parameters()} == published


def test_fused_scores_are_golden() -> None:
    golden = np.load(GOLDEN)
    for (aesthetic, technical), expected in zip(golden["dover.pairs"], golden["dover.fused"], strict=True):
        of_technical, of_aesthetic, overall = fuse(float(technical), float(aesthetic))
        assert np.abs(np.array([of_aesthetic, of_technical, overall]) - expected).max() <= 1e-12
