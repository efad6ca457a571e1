"""One training step: losses and gradients equal golden values, updates equal their formulas."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kvq_batch.domain.errors import FatalError
from kvq_batch.models.kvq import attention
from kvq_batch.models.kvq.config import PUBLISHED, tensor_shapes
from kvq_batch.models.kvq.network import KvqNetwork, build_network
from kvq_batch.training.architectures import KvqArchitecture
from kvq_batch.training.initialisation import initial_tensors, tensors_from_kinetics, trainable_network
from kvq_batch.training.losses import TensorBatch, compute_losses, set_offsets
from kvq_batch.training.optimisation import Optimisation, lr_factor
from kvq_batch.training.process_group import SingleProcess
from kvq_batch.training.settings import LossWeights, Optimiser
from tests.goldens import golden_recipe
from tests.support.kvq_cases import GOLDENS, SMALL, as_torch, golden_tensors, noise_clips, random_tensors
from tests.support.numerics import FLOAT32_RELATIVE, GRADIENT_RELATIVE, assert_close_to_scale, assert_gradients_close

RULE = KvqArchitecture(SMALL).update_rule


def trainable(tensors: dict[str, Tensor], dropout: float = 0.0, recompute: bool = False) -> KvqNetwork:
    config = PUBLISHED if len(tensors) == 213 else SMALL
    return trainable_network(config, tensors, dropout, recompute=recompute)


@pytest.mark.slow
def test_losses_and_gradients_equal_golden_values() -> None:
    golden = np.load(GOLDENS / "golden_train.npz")
    network = trainable(as_torch(golden_tensors()))
    clips = np.stack([golden_recipe.normalise(golden_recipe.video(seed, 32, 64, 64)) for seed in (61, 62, 63)])
    batch = TensorBatch(torch.from_numpy(clips), torch.tensor([35, 71.5, 52.25]).double(), None)
    found = compute_losses(network, batch, LossWeights(), (2, 32, 32), SingleProcess())
    assert np.abs(found.predictions.numpy() - golden["step.pred"][:, 0]).max() < 1e-4
    losses = [found.terms[name] for name in ("plcc", "rank", "lpc", "loss")]
    assert np.abs(np.array(losses) - golden["step.losses"]).max() < 1e-5
    found.total.backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    largest = golden["step.grad_norm"].max()
    for name, norm, total in zip(
        golden["step.param_names"], golden["step.grad_norm"], golden["step.grad_sum"], strict=True
    ):
        gradient = gradients[str(name)]
        assert gradient is not None, name
        assert abs(gradient.double().norm().item() - norm) < 1e-3 * norm + 1e-6 * largest, name
        assert abs(gradient.double().sum().item() - total) < 1e-3 * norm * math.sqrt(gradient.numel()) + 1e-6, name
    for key in golden.files:
        if key.startswith("step.grad."):
            gradient = gradients[key.removeprefix("step.grad.")]
            assert gradient is not None
            difference = np.abs(gradient.double().numpy() - golden[key])
            assert difference.max() < 1e-3 * np.abs(golden[key]).max() + 1e-6, key


def small_batch(cells: bool = False) -> TensorBatch:
    labels = torch.tensor([0.1, 0.9, 0.4, 0.6], dtype=torch.float64)
    return TensorBatch(noise_clips(4, 4, 64, 64), labels, torch.rand(4, 2, 8, 8) if cells else None)


def gradients(network: KvqNetwork) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_recompute_keeps_gradients() -> None:
    found = []
    for recompute in (False, True):
        network = trainable(as_torch(random_tensors(SMALL)), dropout=0.5, recompute=recompute)
        torch.manual_seed(3)
        losses = compute_losses(network, small_batch(), LossWeights(lpc=1.0), (2, 8, 8), SingleProcess())
        losses.total.backward()  # type: ignore[no-untyped-call]
        found.append(gradients(network))
    assert_gradients_close(found[1], found[0], FLOAT32_RELATIVE)


def test_unfused_attention_has_equal_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for largest in (attention._CPU_STEP_BYTES, 0):
        monkeypatch.setattr(attention, "_CPU_STEP_BYTES", largest)
        network = trainable(as_torch(random_tensors(SMALL)))
        losses = compute_losses(network, small_batch(), LossWeights(lpc=0), (2, 8, 8), SingleProcess())
        losses.total.backward()  # type: ignore[no-untyped-call]
        found.append(gradients(network))
    assert_gradients_close(found[1], found[0], GRADIENT_RELATIVE)


def test_relative_labels_teach_differences_within_their_set_only() -> None:
    weights = LossWeights(plcc=1, rank=1, lpc=0, score=1, cells=1, pairs=1)
    is_relative = torch.tensor([True, True, False, False])
    found = []
    for shift in (torch.zeros(4), torch.tensor([0.3, 0.3, 0, 0]), torch.tensor([0.3, 0, 0, 0])):
        labels, cells = small_batch().labels + shift, shift[:, None, None, None].expand(4, 2, 8, 8) + 0.5
        moved = dataclasses.replace(small_batch(), labels=labels, cells=cells, renditions=2, is_relative=is_relative)
        network = trainable(as_torch(random_tensors(SMALL)))
        losses = compute_losses(network, moved, weights, (2, 8, 8), SingleProcess())
        losses.total.backward()  # type: ignore[no-untyped-call]
        found.append((losses.terms, gradients(network)))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-6)
    assert_gradients_close(found[1][1], found[0][1], GRADIENT_RELATIVE)
    assert abs(found[2][0]["pairs"] - found[0][0]["pairs"]) > 0.01


def test_offsets_bring_the_mean_label_of_a_set_to_its_mean_prediction() -> None:
    predictions, labels = torch.tensor([0.5, 0.7, 0.1, 0.3]), torch.tensor([0.9, 0.8, 0.4, 0.0])
    assert set_offsets(predictions, labels, 2).tolist() == pytest.approx([-0.25, -0.25, 0.0, 0.0])


def test_training_mode_keeps_maps() -> None:
    network = trainable(as_torch(random_tensors(SMALL)))
    clips = noise_clips(3, 4, 64, 64)
    together = network(clips)
    alone = network.eval()(clips)
    assert_close_to_scale(together.texture, alone.texture)
    assert_close_to_scale(together.saliency, alone.saliency)


def test_dropout_is_off_in_scoring_mode() -> None:
    network = trainable(as_torch(random_tensors(SMALL)), dropout=0.5)
    clips = noise_clips(1, 4, 64, 64)
    with torch.no_grad():
        assert not torch.equal(network(clips).texture, network(clips).texture)
        network.eval()
        assert torch.equal(network(clips).texture, network(clips).texture)


def test_loss_is_the_weighted_sum_of_terms() -> None:
    network = trainable(as_torch(random_tensors(SMALL)))
    weights = LossWeights(plcc=1, rank=0.5, lpc=0.25, score=2, cells=3, pairs=4)
    batch = dataclasses.replace(small_batch(cells=True), renditions=2)
    found = compute_losses(network, batch, weights, (2, 8, 8), SingleProcess())
    names = ("plcc", "rank", "lpc", "score", "cells", "pairs")
    expected = sum(getattr(weights, name) * found.terms[name] for name in names)
    assert min(found.terms[name] for name in names) > 0
    assert found.terms["loss"] == pytest.approx(expected)
    assert found.total.item() == pytest.approx(expected, rel=1e-6)
    assert set(compute_losses(network, small_batch(), LossWeights(lpc=0), (2, 8, 8), SingleProcess()).terms) == {
        "plcc",
        "rank",
        "loss",
    }


def test_learning_rate_follows_published_schedule() -> None:
    found = [lr_factor(step, 10, 100) for step in range(100)]
    assert found[0] == 0
    assert found[5] == 0.5
    assert found[10] == 1
    assert found[60] == pytest.approx(0.5 * (1 + math.cos(math.pi * 50 / 100)))
    assert 0 < found[99] < 0.03
    assert lr_factor(0, 0, 100) == 1


def test_update_is_adamw_with_moving_average() -> None:
    settings = Optimiser(learning_rate=0.01, backbone_factor=0.1, weight_decay=0.05, warmup_steps=2, ema_decay=0.9)
    network = trainable(as_torch(random_tensors(SMALL)))
    optimisation = Optimisation(network, settings, 5, RULE)
    names = ("fragments_backbone.layers.0.blocks.0.norm1.bias", "vqa_head.fc_last.weight", "weight_conv.bias")
    by_name = dict(network.named_parameters())
    generator = np.random.default_rng(0)
    expected = {name: by_name[name].detach().double().numpy().copy() for name in names}
    first, second, average = ({name: value * share for name, value in expected.items()} for share in (0, 0, 1))
    for step in range(5):
        for name in names[:2]:
            gradient = generator.normal(size=expected[name].shape)
            by_name[name].grad = torch.tensor(gradient, dtype=torch.float32)
            rate = 0.01 * (0.1 if "backbone" in name else 1) * lr_factor(step, 2, 5)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            expected[name] = expected[name] * (1 - rate * 0.05)
            corrected = np.sqrt(second[name] / (1 - 0.999 ** (step + 1))) + 1e-8
            expected[name] -= rate * first[name] / (1 - 0.9 ** (step + 1)) / corrected
        expected[names[2]] = expected[names[2]] * (1 - 0.01 * lr_factor(step, 2, 5) * 0.05)
        optimisation.update(step, SingleProcess())
        for name in names:
            average[name] = 0.9 * average[name] + 0.1 * expected[name]
    for name in names:
        assert_close_to_scale(by_name[name], expected[name], name=name)
        assert_close_to_scale(optimisation.ema_params[name], average[name], name=name)


def test_clipped_gradient_keeps_its_direction() -> None:
    norms = []
    for clip_norm in (None, 0.5):
        network = trainable(as_torch(random_tensors(SMALL)))
        optimisation = Optimisation(network, Optimiser(clip_norm=clip_norm), 5, RULE)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        norms.append(optimisation.update(0, SingleProcess()))
        moments = [value for name, value in optimisation.tensors().items() if name.startswith("exp_avg/")]
        clipped = torch.cat([value.flatten() for value in moments]).norm().item() / 0.1
        assert clipped == pytest.approx(clip_norm or norms[0], rel=1e-4)
    assert norms[0] == norms[1], "the reported norm is that of the unclipped gradient"


def test_nan_gradient_ends_the_training() -> None:
    network = trainable(as_torch(random_tensors(SMALL)))
    before = network.vqa_head.fc_last.weight.detach().clone()
    optimisation = Optimisation(network, Optimiser(), 5, RULE)
    network.vqa_head.fc_last.weight.grad = torch.full_like(before, math.nan)
    with pytest.raises(FatalError, match="Step 3: the norm of the gradient is nan"):
        optimisation.update(3, SingleProcess())
    assert torch.equal(network.vqa_head.fc_last.weight, before)


def test_initial_weights_follow_their_scheme() -> None:
    published = initial_tensors(PUBLISHED, "published", seed=1)
    assert {name: tuple(tensor.shape) for name, tensor in published.items()} == tensor_shapes(PUBLISHED)
    block = "fragments_backbone.layers.2.blocks.0"
    assert published[f"{block}.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert not published[f"{block}.mlp.fc1.bias"].any()
    assert (published[f"{block}.norm1.weight"] == 1).all()
    assert not published["weight_conv.weight"].any()
    assert published["vqa_head.fc_hid.weight"].abs().max().item() == pytest.approx(768**-0.5, rel=0.01)
    assert published["vqa_head.fc_hid.bias"].abs().max().item() <= 768**-0.5
    small = initial_tensors(SMALL, "fan-in", seed=1)
    again = initial_tensors(SMALL, "fan-in", seed=1)
    other = initial_tensors(SMALL, "fan-in", seed=2)
    name = "fragments_backbone.layers.1.blocks.0.mlp.fc1.weight"
    # A normal distribution truncated at two standard deviations has 0.88 of the standard deviation.
    assert small[name].std().item() == pytest.approx(0.88 * 24**-0.5, rel=0.05)
    # Branches start small, and the texture starts near the middle of the scale.
    ends = small[name.replace("fc1", "fc2")]
    assert ends.std().item() == pytest.approx(0.3 * 0.88 * ends.shape[1] ** -0.5, rel=0.05)
    maps = build_network(SMALL, small)(torch.randn(2, 3, SMALL.num_frames, *SMALL.input_size))
    assert (maps.texture - 0.5).abs().max() < 0.5
    assert torch.equal(small[name], again[name])
    assert not torch.equal(small[name], other[name])


def test_initial_weights_cover_stem_and_bands() -> None:
    config = dataclasses.replace(SMALL, num_bands=2, stem_width=6)
    for scheme in ("published", "fan-in"):
        drawn = initial_tensors(config, scheme, seed=1)
        assert {name: tuple(tensor.shape) for name, tensor in drawn.items()} == tensor_shapes(config)
        weight = drawn["fragments_backbone.patch_embed.conv1.weight"]
        assert 0.3 * 63**-0.5 < weight.std() < 63**-0.5


def test_kinetics_start_fills_the_backbone_only(tmp_path: Path) -> None:
    tensors = as_torch(random_tensors(SMALL))
    root = "fragments_backbone."
    state = {f"backbone.{n.removeprefix(root)}": t for n, t in tensors.items() if root in n and "cross" not in n}
    torch.save({"state_dict": state}, tmp_path / "swin.pth")
    drawn = initial_tensors(SMALL, "published", seed=0)
    started = tensors_from_kinetics(drawn, SMALL, tmp_path / "swin.pth")
    block = f"{root}layers.1.blocks.2.attn"
    assert torch.equal(started[f"{block}.qkv.weight"], tensors[f"{block}.qkv.weight"])
    assert torch.equal(started[f"{block}.cross_windowattn.qkv.weight"], tensors[f"{block}.qkv.weight"])
    assert torch.equal(started["vqa_head.fc_hid.weight"], drawn["vqa_head.fc_hid.weight"])
