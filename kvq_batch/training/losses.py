"""The terms of KVQ's training loss (KVQ_SPEC section 5), and three of ours, as plain functions of tensors.

`plcc` and `rank` are functions of a whole batch, so they must see every prediction of it, wherever each was computed.
They leave offset and scale of predictions free (`rank` the offset alone); `score_error` and `cell_error` do not: with
them the network speaks in units of the labels. What a whole batch is off by in common counts a twentieth in both: what
a few clips are worth on the whole is chance, and at full weight it pushes all predictions up and down together.
No weight of a term and no network stands here.
"""

import torch
from torch import Tensor

_EPSILON = 1e-8
_COMMON = 0.05
"""The weight of what all predictions of a batch are off by."""


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
    """Mean absolute error of predictions [n] about their mean error, and 0.05 of that; in units of the labels."""
    return _about_their_mean(predictions - labels)


def cell_error(texture: Tensor, cells: Tensor) -> Tensor:
    """`score_error` of labelled cells; both [n, slots, rows, columns], NaN in `cells` where there is no label.

    0 where no cell of the batch has one.
    """
    labelled = ~torch.isnan(cells)
    if not labelled.any():
        return texture.sum() * 0
    return _about_their_mean(texture[labelled] - cells[labelled])


def pair_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute error of differences between versions of the same frames; both [sets, versions].

    What all versions of a scene are off by is not in it: it teaches the order within a source and nothing else.
    """
    found, wanted = (values[:, :, None] - values[:, None] for values in (predictions, labels))
    count = predictions.shape[1]
    # Of a version with itself the difference is 0, and does not count.
    return (found - wanted).abs().sum() / (len(predictions) * count * (count - 1))


def _about_their_mean(errors: Tensor) -> Tensor:
    # Gradients flow through the mean: as a constant it would leave a pull of sign(errors) in common, with no end.
    common = errors.mean()
    return (errors - common).abs().mean() + _COMMON * common.abs()


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.std(correction=0) + _EPSILON)


def _unit_maps(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + _EPSILON)
