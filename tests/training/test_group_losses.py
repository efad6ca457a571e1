"""The losses over groups of renditions equal their goldens, with gradients, and have the stated properties."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kvq_batch.training.group_losses import coarse_to_fine_loss, group_contrast, rank_in_groups, sample_contrast
from tests.goldens.swin import swinv2_recipe

GOLDEN = np.load(swinv2_recipe.FOLDER / "golden.npz")
CASES = list(swinv2_recipe.LOSS_CASES)


def tensors(case: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features, scores, labels, groups = map(torch.from_numpy, swinv2_recipe.loss_input(case))
    return features.requires_grad_(True), scores.requires_grad_(True), labels, groups


def number(value: Tensor) -> float:
    return float(value.detach())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "loss"), [("halves", group_contrast), ("samples", sample_contrast)])
def test_contrast_is_golden(case: str, name: str, loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    features, _, _, groups = tensors(case)
    assert number(loss(features, groups, 0.1)) == pytest.approx(float(GOLDEN[f"loss.{case}.gc_{name}.0.1"]), abs=1e-12)
    value = loss(features, groups, 0.5)
    assert number(value) == pytest.approx(float(GOLDEN[f"loss.{case}.gc_{name}.0.5"]), abs=1e-12)
    value.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert np.abs(features.grad.numpy() - GOLDEN[f"loss.{case}.gc_{name}.grad"]).max() <= 1e-9


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("margin", "gap"), [(0.05, 0.0), (0.05, 0.01), (None, 0.0)])
def test_rank_in_groups_is_golden(case: str, margin: float | None, gap: float) -> None:
    _, scores, labels, groups = tensors(case)
    value = rank_in_groups(scores, labels, groups, margin, gap)
    name = f"loss.{case}.rank.{'gap' if margin is None else margin}.{gap}"
    assert number(value) == pytest.approx(float(GOLDEN[name]), abs=1e-12)
    value.backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert np.abs(scores.grad.numpy() - GOLDEN[f"{name}.grad"]).max() <= 1e-9


@pytest.mark.parametrize("case", CASES)
def test_total_is_golden(case: str) -> None:
    assert number(coarse_to_fine_loss(*tensors(case))) == pytest.approx(float(GOLDEN[f"loss.{case}.total"]), abs=1e-12)


def test_contrast_of_opposite_and_equal_groups() -> None:
    groups = torch.tensor([0, 0, 1, 1])
    opposite = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert number(group_contrast(opposite, groups)) == pytest.approx(math.log(1 + 2 * math.exp(-4)))
    equal = torch.ones(8, 3, dtype=torch.float64)
    four = torch.arange(4).repeat(2)
    assert number(group_contrast(equal, four)) == pytest.approx(math.log(7))


def test_contrast_falls_when_a_group_moves_together() -> None:
    features, _, _, groups = tensors("balanced")
    before = number(group_contrast(features, groups))
    moved = features.detach().clone()
    moved[groups == 1] = moved[groups == 1].mean(0)
    assert number(group_contrast(moved, groups)) < before


def test_losses_without_pairs_are_zero() -> None:
    features, scores, labels, _ = tensors("balanced")
    alone = torch.arange(len(labels))
    values = (group_contrast(features, alone), sample_contrast(features, alone), rank_in_groups(scores, labels, alone))
    assert [number(value) for value in values] == [0.0, 0.0, 0.0]
