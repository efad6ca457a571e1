"""The networks of FAST-VQA and FasterVQA equal the golden maps of the official code, at every stage."""

import numpy as np
import pytest
import torch

from benchmarks.operator_counts import OperatorCounts
from kvq_batch.domain.errors import SpecError
from kvq_batch.models.fastvqa.backbone import Stage
from kvq_batch.models.fastvqa.config import FAST_VQA, FAST_VQA_M, FastVqaConfig, SwinConfig
from kvq_batch.models.fastvqa.network import FastVqaNetwork
from kvq_batch.models.fastvqa.windows import window_layout
from kvq_batch.training.losses import plcc_loss, rank_loss
from tests.goldens.fastvqa import golden_recipe
from tests.support.published_networks import GOLDEN, TOLERANCES, assert_golden, record, tiny_config, with_weights

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", range(len(golden_recipe.GATE_CASES)))
def test_fragment_distances_and_masks_are_golden(number: int) -> None:
    slots, rows, columns, window, shift = golden_recipe.GATE_CASES[number]
    golden = np.load(GOLDEN)
    layout = window_layout((slots, rows, columns), window, shift, CPU)
    count = layout.indices.shape[1]
    distance = np.full((len(layout.indices), count, count), -1.0)
    is_separated = np.zeros((len(layout.indices), count, count), bool)
    for kind in layout.kinds():
        distance[kind.windows] = kind.distance.numpy()
        if kind.is_separated is not None:
            is_separated[kind.windows] = kind.is_separated.numpy()
    # The golden has one slot of each window.
    assert np.array_equal(distance, np.tile(golden[f"gate.{number}.slice"], (slots // window[0], window[0], window[0])))
    assert np.array_equal(is_separated.sum(-1), golden[f"gate.{number}.mask_rows"])
    weighted = (is_separated * (1 + np.arange(count) % 31)).sum(-1)
    assert np.array_equal(weighted, golden[f"gate.{number}.mask_weighted"])


@torch.inference_mode()
def test_host_never_waits_for_a_gpu() -> None:
    # On "meta" nothing is computed, and reading a value raises.
    with torch.device("meta"):
        network, clips = FastVqaNetwork(FAST_VQA.network).eval(), torch.empty(4, 3, 32, 224, 224)
    network(clips)
    with OperatorCounts() as counts:
        network(clips)
    assert not counts.host_syncs
    assert not counts.uploads


@pytest.mark.parametrize("case", golden_recipe.LAYER_CASES)
@torch.inference_mode()
def test_stage_equals_the_golden_stage(case: str) -> None:
    clips, channels, heads, slots, rows, columns, window, scaled, has_table, is_merged = golden_recipe.LAYER_CASES[case]
    full = (window[0], window[1], window[2])
    depths, num_heads = ((2, 2), (heads, 2 * heads)) if is_merged else ((2,), (heads,))
    config = SwinConfig(
        channels, depths, num_heads, window=full, fragment_bias=(has_table,) * 2, scales_window=scaled is not None
    )
    weights = golden_recipe.weights(f"layer.{case}")
    stage = with_weights(
        lambda: Stage(config, 0), {name.removeprefix("layers.0."): value for name, value in weights.items()}
    )
    x = golden_recipe.uniform(f"x.{case}", (clips, channels, slots, rows, columns)).astype(np.float32)
    size = full if scaled is None else (scaled[0], scaled[1], scaled[2])
    out = stage(torch.from_numpy(x).permute(0, 2, 3, 4, 1), size).permute(0, 4, 1, 2, 3).numpy()
    assert np.abs(out - np.load(GOLDEN)[f"layer.{case}.out"]).max() <= TOLERANCES["probe"]


@pytest.mark.parametrize("case", golden_recipe.MODEL_CASES)
@torch.inference_mode()
def test_maps_and_stages_are_golden(case: str) -> None:
    weights, scales_window, *_ = golden_recipe.MODEL_CASES[case]
    config = tiny_config(weights, scales_window)
    network = with_weights(lambda: FastVqaNetwork(config), golden_recipe.weights(weights))
    backbone = network.fragments_backbone
    stages = record([backbone.patch_embed, *backbone.layers], network.vqa_head)
    quality = network(torch.from_numpy(golden_recipe.model_input(case)))
    assert len(stages) == 6
    assert_golden(case, quality, stages)


@pytest.mark.parametrize(("variant", "name"), [(FAST_VQA, "fast_vqa_b"), (FAST_VQA_M, "fast_vqa_m")])
def test_tensor_names_and_shapes_are_published(variant: FastVqaConfig, name: str) -> None:
    with torch.device("meta"):
        network = FastVqaNetwork(variant.network)
    rows = golden_recipe.layout("state_dict_keys.tsv", name)
    assert {name: tuple(p.shape) for name, p in network.named_parameters()} == {
        key: shape for key, shape, kind in rows if kind == "param"
    }
    assert all(key.endswith(".relative_position_index") for key, _, kind in rows if kind != "param")


def test_sizes_without_a_scaled_window_are_rejected() -> None:
    for size in ((3, 224, 224), (36, 224, 224), (32, 31, 224), (32, 224, 256)):
        with pytest.raises(SpecError, match="cannot run on"):
            SwinConfig().largest_window(size)
    assert SwinConfig().largest_window((16, 160, 255)) == (4, 5, 7)


def test_training_step_has_golden_losses_and_gradients() -> None:
    golden = np.load(GOLDEN)
    network = with_weights(lambda: FastVqaNetwork(tiny_config("tiny", True)), golden_recipe.weights("tiny"))
    clips = np.stack([golden_recipe.normalise(golden_recipe.video(seed, 8, 64, 64)) for seed in (61, 62, 63)])
    predictions = network(torch.from_numpy(clips)).double().flatten(1).mean(1)
    labels = torch.tensor([52.25, 35.0, 71.5], dtype=torch.float64)
    plcc, rank = plcc_loss(predictions, labels), rank_loss(predictions, labels)
    (plcc + 0.3 * rank).backward()  # type: ignore[no-untyped-call]
    assert np.abs(predictions.detach().numpy() - golden["step.pred"]).max() <= TOLERANCES["score"]
    assert abs(plcc.item() - golden["step.plcc"]) <= 1e-4
    assert abs(rank.item() - golden["step.rank"]) <= 1e-4
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert set(gradients) == set(golden["step.names"].tolist())
    for name, norm in zip(golden["step.names"].tolist(), golden["step.grad_norm"].tolist(), strict=True):
        gradient = gradients[name]
        assert gradient is not None
        assert abs(float(gradient.norm()) - norm) <= 1e-2 * (norm + 1e-4), name
