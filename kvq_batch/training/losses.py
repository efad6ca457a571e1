"""The training loss: its terms, the cubes of the lpc term, and the loss of one batch (KVQ_SPEC section 5).

Three terms are KVQ's (`plcc`, `rank`, `lpc`), three are ours (`score`, `cells`, `pairs`). `plcc` and `rank` are
functions of a whole batch, so they must see every prediction of it, wherever it was computed. They leave the offset
and the scale of predictions free (`rank` only the offset); `score_error` and `cell_error` do not: they make the
network predict in units of the labels. Both count the mean error of a batch at a twentieth: the mean quality of a few
clips is chance, and at full weight it pushes all predictions up and down together.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvq_batch.domain.errors import SpecError
from kvq_batch.models.kvq.config import Grid, KvqConfig
from kvq_batch.models.kvq.network import KvqNetwork
from kvq_batch.training.process_group import ProcessGroup
from kvq_batch.training.settings import LossWeights

_EPS = 1e-8
_MIN_STD = 1e-3
"""Smallest standard deviation that values are divided by; predictions and labels have a range of about 1.

Without it, the gradient of equal or nearly equal values grows without bound, as 1 / standard deviation.
"""
_MEAN_ERROR_WEIGHT = 0.05
"""Weight of the mean error of all predictions of a batch."""


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """One process's share of a batch: normalised clips [n, 3, T, H, W], labels float64 [n], cells or None.

    Measured clips are [n, slots, rows, columns, S] (`KvqNetwork.measure`).
    The clips of a coarse-to-fine network are [n, T, 3, H, W]. `levels` int64 [n] numbers the level of each rendition
    of a ladder, or is None. Labels and cells are mapped to 0..1 of their scale; `cells` is float32
    [n, slots, rows, columns], NaN where a cell has no label. Every process has the same number of clips. Every
    `renditions` clips in a row are renditions of the same frames. `is_relative` bool [n] marks labels that compare
    with the renditions of their set only; None if there are none.
    """

    clips: Tensor
    labels: Tensor
    cells: Tensor | None
    renditions: int = 1
    levels: Tensor | None = None
    is_relative: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss of a batch.

    `total` is this process's share, to be differentiated; `terms` are those of the whole batch, without gradient.
    """

    total: Tensor
    terms: dict[str, float]
    predictions: Tensor


def compute_losses(
    network: KvqNetwork,
    batch: TensorBatch,
    weights: LossWeights,
    cube: Grid,
    group: ProcessGroup,
    is_measured: bool = False,
) -> Losses:
    """Return the loss of a batch; `terms` holds each term with a weight, and "loss", their weighted sum.

    Each process of a group computes its own clips; the terms that compare clips see the predictions of all of them.
    The gradients of `total`, summed over processes, equal the gradient that a single process would compute.
    """
    maps = network.maps_of_measured(batch.clips) if is_measured else network(batch.clips)
    scores, offsets = maps.scores(), torch.zeros_like(batch.labels)
    if batch.is_relative is not None:
        offsets = torch.where(batch.is_relative, set_offsets(scores.detach(), batch.labels, batch.renditions), offsets)
    predictions, labels = group.gather(scores), group.gather(batch.labels + offsets)
    # `whole`: terms of the whole batch, equal on every process. `shares`: this process's share of a sum over processes.
    whole: dict[str, Tensor] = {}
    shares: dict[str, Tensor] = {}
    if weights.plcc:
        whole["plcc"] = plcc_loss(predictions, labels)
    if weights.rank:
        whole["rank"] = rank_loss(predictions, labels)
    if weights.score:
        whole["score"] = score_error(predictions, labels)
    if weights.pairs:
        sets = (-1, batch.renditions)
        whole["pairs"] = pair_error(predictions.view(sets), labels.view(sets))
    if weights.cells:
        cells = torch.full_like(maps.texture, torch.nan)
        if batch.cells is not None:
            cells = batch.cells + offsets.float()[:, None, None, None]
        whole["cells"] = cell_error(group.gather(maps.texture), group.gather(cells))
    if weights.lpc:
        features, _ = network.fragments_backbone(cut_cubes(batch.clips, network.config, cube))
        of_cubes = texture_of_cubes(network.vqa_head(features), maps.texture)
        shares["lpc"] = lpc_losses(maps.texture, of_cubes).sum() / len(predictions)
    total = torch.stack([getattr(weights, name) * term.double() for name, term in (whole | shares).items()]).sum()
    values = {name: term.detach().double().reshape(1) for name, term in (whole | shares).items()}
    if shares:
        group.all_reduce_sum([values[name] for name in shares])
    terms = {name: float(value) for name, value in values.items()}
    terms["loss"] = sum(getattr(weights, name) * value for name, value in terms.items())
    return Losses(total, terms, predictions.detach())


def plcc_loss(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return the distance of predictions [n] from a line through labels [n]: 0 at correlation 1, 0.5 at -1.

    With z and t the standardised predictions and labels: ((mean (z - t)^2) / 4 + (mean (rho z - t)^2) / 4) / 2 with
    rho = mean z t, through which gradients flow.
    """
    found, expected = _standardise(predictions), _standardise(labels)
    correlation = (found * expected).mean()
    error = (found - expected).square().mean() / 4
    return (error + (correlation * found - expected).square().mean() / 4) / 2


def rank_loss(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return how far predictions [n] are from the order of labels [n], n >= 2.

    sum M / (n (n - 1)) / (1 + max M) with M_ab = relu((p_a - p_b) sign(y_b - y_a)); the maximum has a gradient too.
    """
    count = len(predictions)
    difference = predictions[:, None] - predictions[None, :]
    excess = torch.relu(difference * torch.sign(labels[None, :] - labels[:, None]))
    return excess.sum() / (count * (count - 1)) / (1 + excess.max())


def lpc_losses(texture: Tensor, of_cubes: Tensor) -> Tensor:
    """Return 1 - the Pearson correlation of each clip's texture with the texture of its cubes, both [n, ...]: [n].

    Local perception consistency; the published term is the mean over a batch. Standard deviations are unbiased and the
    maps are compared by their cosine, so that the 1e-8 added to a deviation counts as published.
    """
    found, expected = _unit_maps(texture), _unit_maps(of_cubes)
    # The norm is sqrt(n - 1), and less for maps that are nearly constant: those are not scaled up again.
    smallest_norm = math.sqrt(found.shape[1]) / 2
    return 1 - torch.nn.functional.cosine_similarity(found, expected, dim=1, eps=smallest_norm)


def score_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return the mean absolute error of predictions [n] about their mean error, plus 0.05 of the mean error."""
    return _error_about_mean(predictions - labels)


def cell_error(texture: Tensor, cells: Tensor) -> Tensor:
    """Return `score_error` of labelled cells; both [n, slots, rows, columns], NaN in `cells` where there is no label.

    0 if no cell of the batch has a label.
    """
    is_labelled = ~torch.isnan(cells)
    if not is_labelled.any():
        return texture.sum() * 0
    return _error_about_mean(texture[is_labelled] - cells[is_labelled])


def pair_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return the mean absolute error of differences between renditions of the same frames; both [sets, renditions].

    An error that all renditions of a scene share cancels: this term teaches only the order within a scene.
    """
    found, expected = (values[:, :, None] - values[:, None] for values in (predictions, labels))
    count = predictions.shape[1]
    # The difference of a rendition to itself is 0 and is not counted.
    return (found - expected).abs().sum() / (len(predictions) * count * (count - 1))


def set_offsets(predictions: Tensor, labels: Tensor, renditions: int) -> Tensor:
    """Return what to add to labels [n] so that the mean label of each set of renditions is its mean prediction, [n].

    Labels that are relative to a reference of unknown quality then teach the order of its renditions and their
    distances, and leave the level of the set as it is.
    """
    errors = (predictions - labels).view(-1, renditions)
    return errors.mean(1, keepdim=True).expand_as(errors).reshape(-1)


def check_cube(config: KvqConfig, cube: Grid) -> None:
    """Check that cubes of this size (frames, rows, columns) fit the cells of the configuration's clips.

    Raises:
        SpecError: a cube larger than its cell, or of a size that the network cannot run on.
    """
    _cell_size((config.num_frames, *config.input_size), config, cube)
    config.maps_shape(*cube)


def cut_cubes(clips_BCTHW: Tensor, config: KvqConfig, cube: Grid) -> Tensor:
    """Cut normalised clips [B, 3, T, H, W] into one cube per cell of the texture map.

    Returns [B * slots * rows * columns, 3, *cube], ordered by clip, slot, row, column. In the authors' code a cube is
    its cell, [2, 32, 32] at the published sizes. In the paper it is [2, 28, 28]; then the cube is the middle of its
    cell, which keeps cubes and cells one to one. That position is our choice: the paper names none.

    Raises:
        SpecError: clips that do not divide into cells, or a cube larger than a cell.
    """
    size = (clips_BCTHW.shape[2], clips_BCTHW.shape[3], clips_BCTHW.shape[4])
    slots, rows, columns = config.maps_shape(*size)
    cell = _cell_size(size, config, cube)
    margin = [(outer - inner) // 2 for outer, inner in zip(cell, cube, strict=True)]
    cells = clips_BCTHW.view(len(clips_BCTHW), 3, slots, cell[0], rows, cell[1], columns, cell[2])
    cubes = cells.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, 3, *cell)
    t, y, x = (slice(start, start + extent) for start, extent in zip(margin, cube, strict=True))
    return cubes[:, :, t, y, x]


def texture_of_cubes(texture: Tensor, like: Tensor) -> Tensor:
    """Return textures of cubes [B * cells, 1, 1, 1], in the order of `cut_cubes`, as maps of the shape of `like`."""
    return texture.reshape(like.shape)


def _cell_size(size: Grid, config: KvqConfig, cube: Grid) -> Grid:
    grid = config.maps_shape(*size)
    cell = tuple(extent // cells for extent, cells in zip(size, grid, strict=True))
    if any(extent % cells for extent, cells in zip(size, grid, strict=True)):
        raise SpecError(
            f"Clips of {size} (frames, rows, columns) do not divide into {grid} equal cells, which the lpc loss needs. "
            "Change the input size, or set loss.lpc = 0."
        )
    if any(inner > outer or inner < 1 for inner, outer in zip(cube, cell, strict=True)):
        raise SpecError(
            f"An lpc cube of {cube} does not fit a cell of {cell} (frames, rows, columns). Set a smaller loss.cube."
        )
    return cell[0], cell[1], cell[2]


def _error_about_mean(errors: Tensor) -> Tensor:
    # Gradients flow through the mean: if it were a constant, the gradient would keep a common component of
    # sign(errors) that never vanishes.
    mean = errors.mean()
    return (errors - mean).abs().mean() + _MEAN_ERROR_WEIGHT * mean.abs()


def _standardise(values: Tensor) -> Tensor:
    return (values - values.mean()) / (values.std(correction=0).clamp_min(_MIN_STD) + _EPS)


def _unit_maps(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True).clamp_min(_MIN_STD) + _EPS)
