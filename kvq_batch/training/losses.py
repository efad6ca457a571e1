"""The terms of KVQ's training loss (KVQ_SPEC section 5), and two of ours, as plain functions of tensors.

`plcc` and `rank` are functions of a whole batch, so they must see every prediction of it, wherever each was computed.
They leave offset and scale of predictions free (`rank` the offset alone); `score_error` and `cell_error` do not: with
them the network speaks in units of the labels. No weight of a term and no network stands here.
"""

import torch
from torch import Tensor

_EPSILON = 1e-8


def plcc_loss(predictions: Tensor, labels: Tensor) -> Tensor:
    """How far predictions [n] are from a line through labels [n], both standardised: 0 at correlation 1, 0.5 at -1.

    ((mean (z - t)^2) / 4 + (mean (rho z - t)^2) / 4) / 2 with rho = mean z t, through which gradients flow.
    """
    found, wanted = _standardised(predictions), _standardised(labels)
    correlation = (found * wanted).mean()
    error = (found - wanted).square().mean() / 4
    return (error + (correlation * found - wanted).square().mean() / 4) / 2


def rank_loss(predictions: Tensor, labels: Tensor) -> Tensor:
    """How far pairs of predictions [n] stand in the wrong order of labels [n], n >= 2.

    sum M / (n (n - 1)) / (1 + max M) with M_ab = relu((p_a - p_b) sign(y_b - y_a)); the maximum has a gradient too.
    """
    count = len(predictions)
    difference = predictions[:, None] - predictions[None, :]
    wrong = torch.relu(difference * torch.sign(labels[None, :] - labels[:, None]))
    return wrong.sum() / (count * (count - 1)) / (1 + wrong.max())


def lpc_losses(texture: Tensor, of_cubes: Tensor) -> Tensor:
    """1 - Pearson correlation of each clip's texture with that of its cubes seen alone, both [n, ...]: [n].

    Local perception consistency; the published term is the mean over a batch. Standard deviations are unbiased and
    what is compared is their cosine, so that the 1e-8 beside them counts as published.
    """
    return 1 - torch.nn.functional.cosine_similarity(_unit_maps(texture), _unit_maps(of_cubes), dim=1)


def score_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute error of predictions [n] in units of the labels."""
    return (predictions - labels).abs().mean()


def cell_errors(texture: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of absolute errors over labelled cells, and how many there are; both [n, slots, rows, columns].

    A cell without a label is NaN in `cells`. The mean is left to the caller, who knows the cells of the whole batch.
    """
    labelled = ~torch.isnan(cells)
    # The texture itself where there is no label: even times 0, a NaN would reach the gradient.
    wanted = torch.where(labelled, cells, texture.detach())
    return (texture - wanted).abs().sum(), labelled.sum()


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.std(correction=0) + _EPSILON)


def _unit_maps(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + _EPSILON)
