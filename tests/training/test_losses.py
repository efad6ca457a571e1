"""Terms of the loss equal golden values, and their formulas in numpy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvq_batch.domain.errors import SpecError
from kvq_batch.models.kvq.config import PUBLISHED, TINY, KvqConfig
from kvq_batch.training.losses import (
    cell_error,
    check_cube,
    cut_cubes,
    lpc_losses,
    pair_error,
    plcc_loss,
    rank_loss,
    score_error,
    texture_of_cubes,
)
from tests.support.kvq_cases import GOLDENS


def golden(name: str) -> Tensor:
    return torch.from_numpy(np.load(GOLDENS / "golden_train.npz")[name]).double()


def test_plcc_and_rank_equal_golden_values() -> None:
    predictions, labels = golden("vec.pred")[:, 0], golden("vec.mos")[:, 0]
    assert plcc_loss(predictions, labels).item() == pytest.approx(golden("vec.plcc_loss").item(), abs=1e-14)
    assert rank_loss(predictions, labels).item() == pytest.approx(golden("vec.rank_loss").item(), abs=1e-14)


def test_lpc_equals_golden_value() -> None:
    texture, of_cubes = golden("step.texture")[:, 0], golden("step.texture_cubes")
    assert lpc_losses(texture, of_cubes).mean().item() == pytest.approx(golden("step.losses")[2].item(), abs=1e-7)
    expected = [1 - np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(texture, of_cubes, strict=True)]
    assert np.allclose(lpc_losses(texture, of_cubes).numpy(), expected, atol=1e-7)


def test_plcc_ignores_offset_and_scale() -> None:
    labels = torch.tensor([1.0, 4.0, 2.0, 5.0], dtype=torch.float64)
    assert plcc_loss(3 * labels - 7, labels).item() == pytest.approx(0, abs=1e-14)
    assert plcc_loss(-labels, labels).item() == pytest.approx(0.5, abs=1e-7)
    found = torch.tensor([0.3, 0.1, 2.0, 0.2], dtype=torch.float64)
    assert plcc_loss(10 * found + 3, labels).item() == pytest.approx(plcc_loss(found, labels).item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3])
def test_plcc_gradient_of_equal_values_is_bounded(spread: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, other = torch.randn(2, 8, dtype=torch.float64, generator=generator)
    nearly_equal = (0.4 + spread * noise).to(dtype)
    for predictions, labels in ((nearly_equal, other.to(dtype)), (other.to(dtype), nearly_equal), (nearly_equal,) * 2):
        predictions = predictions.clone().requires_grad_()
        loss = plcc_loss(predictions, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        assert predictions.grad is not None
        assert 0 <= loss.item() <= 0.5
        # 88 for standardised labels, see below.
        assert predictions.grad.norm().item() < 200


def test_plcc_gradient_of_equal_predictions_points_to_labels() -> None:
    labels = np.array([0.1, 0.5, 0.2, 0.9])
    predictions = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    plcc_loss(predictions, torch.from_numpy(labels)).backward()  # type: ignore[no-untyped-call]
    standardised = (labels - labels.mean()) / labels.std()
    # z = 0 and rho = 0: the gradient by z is -t / (4 n), and z = (p - mean p) / 0.001.
    assert predictions.grad is not None
    assert predictions.grad.numpy() == pytest.approx(-standardised / (4 * 4) / 1e-3, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-7, 1e-5, 1e-3])
def test_lpc_gradient_of_constant_maps_is_bounded(spread: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, other = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, generator=generator)
    flat = (0.4 + spread * noise).to(dtype)
    for texture, cubes in ((flat, other.to(dtype)), (other.to(dtype), flat), (flat, flat)):
        maps = [values.clone().requires_grad_() for values in (texture, cubes)]
        losses = lpc_losses(*maps)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(losses).all()
        for values in maps:
            assert values.grad is not None
            assert values.grad.norm().item() < 2000


def test_rank_counts_pairs_in_wrong_order() -> None:
    labels = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert rank_loss(labels * 2 + 1, labels).item() == 0
    # One pair, (1, 2), is wrong by 4; the matrix has it twice.
    assert rank_loss(torch.tensor([0.0, 7.0, 3.0]), labels).item() == pytest.approx(8 / 6 / 5)


def test_terms_are_differentiable_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    found, labels = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    for loss in (plcc_loss, rank_loss, score_error):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, labels), found.requires_grad_())
    maps = torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    cubes = torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lpc_losses, (maps, cubes))


def test_mean_error_has_a_small_weight() -> None:
    labels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert score_error(labels + 0.4, labels).item() == pytest.approx(0.05 * 0.4)
    # Errors of -0.3, 0 and 0.6 have the mean 0.1, and differ from it by 0.4, 0.1 and 0.5.
    predictions = (labels + torch.tensor([-0.3, 0.0, 0.6])).requires_grad_()
    loss = score_error(predictions, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx((0.4 + 0.1 + 0.5) / 3 + 0.05 * 0.1)
    assert predictions.grad is not None
    assert predictions.grad.sum().item() == pytest.approx(0.05)


def test_pair_error_ignores_offsets_of_scenes() -> None:
    labels = torch.tensor([[0.9, 0.5, 0.4], [0.8, 0.2, 0.1]])
    # Offsets of scenes cancel. An error of 0.3 in one rendition of three is part of two of three pairs.
    predictions = labels + torch.tensor([[0.1], [-0.4]])
    assert pair_error(predictions, labels).item() == pytest.approx(0, abs=1e-6)
    predictions[0, 1] += 0.3
    assert pair_error(predictions, labels).item() == pytest.approx(0.3 * 2 / 3 / 2)


def test_unlabelled_cells_have_no_gradient() -> None:
    texture = torch.tensor([[[[0.5, 0.25], [2.0, 1.0]]]], requires_grad=True)
    cells = torch.tensor([[[[1.0, float("nan")], [float("nan"), 0.6]]]])
    loss = cell_error(texture, cells)
    loss.backward()  # type: ignore[no-untyped-call]
    # Errors of -0.5 and 0.4 have the mean -0.05.
    assert loss.item() == pytest.approx(0.45 + 0.05 * 0.05)
    assert texture.grad is not None
    assert texture.grad.flatten().tolist() == pytest.approx([-0.525, 0.0, 0.0, 0.475])


def test_batch_without_labelled_cells_has_zero_error() -> None:
    texture = torch.rand(1, 2, 2, 2, requires_grad=True)
    loss = cell_error(texture, torch.full_like(texture, torch.nan))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert texture.grad is not None
    assert not texture.grad.any()


def numbered_clips() -> tuple[NDArray[np.int64], Tensor]:
    pixels = np.arange(2 * 3 * 4 * 64 * 96).reshape(2, 3, 4, 64, 96)
    return pixels, torch.from_numpy(pixels)


@pytest.mark.parametrize(("cube", "margin"), [((2, 32, 32), 0), ((2, 28, 28), 2)])
def test_cubes_are_cut_from_their_cells(cube: tuple[int, int, int], margin: int) -> None:
    pixels, clips = numbered_clips()
    cubes = cut_cubes(clips, TINY, cube).numpy()
    assert cubes.shape == (2 * 2 * 2 * 3, 3, *cube)
    # Clip 1, slot 1, row 0, column 2 is the fourth from the end.
    y, x = margin, 64 + margin
    assert np.array_equal(cubes[-4], pixels[1, :, 2:4, y : y + cube[1], x : x + cube[2]])
    order = torch.arange(2 * 2 * 2 * 3).view(-1, 1, 1, 1)
    assert texture_of_cubes(order, torch.zeros(2, 2, 2, 3))[1, 1, 0, 2].item() == len(cubes) - 4


def test_cube_larger_than_a_cell_is_rejected() -> None:
    check_cube(PUBLISHED, (2, 32, 32))
    check_cube(PUBLISHED, (2, 28, 28))
    with pytest.raises(SpecError, match="does not fit a cell"):
        check_cube(TINY, (2, 48, 48))
    with pytest.raises(SpecError, match="equal cells"):
        check_cube(KvqConfig(patch=(3, 4, 4)), (2, 32, 32))
