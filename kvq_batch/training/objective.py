"""The loss of one batch: the network on its clips and cubes, the terms, and their sum (KVQ_SPEC section 5).

Each process of a group computes its own clips; the terms that compare clips see the predictions of all of them. The
sum over processes of what is returned for the gradient has the gradient that one process would have found. No
parameter is changed here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvq_batch.models.kvq.config import Grid
from kvq_batch.models.kvq.network import KvqNetwork
from kvq_batch.training.cubes import cut_cubes, texture_of_cubes
from kvq_batch.training.losses import cell_error, lpc_losses, pair_error, plcc_loss, rank_loss, score_error
from kvq_batch.training.process_group import ProcessGroup
from kvq_batch.training.settings import LossWeights


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """One process's share of a batch: normalised clips [n, 3, T, H, W], labels float64 [n], cells or None.

    Labels and cells are mapped to 0..1 of their scale; `cells` is float32 [n, slots, rows, columns], NaN where a cell
    has no label. Every process has as many clips as the others. Every `versions` clips in a row are of the same frames.
    """

    clips: Tensor
    labels: Tensor
    cells: Tensor | None
    versions: int = 1


@dataclass(frozen=True, slots=True)
class Losses:
    """`total` is this process's part, to be differentiated; `terms` are those of the whole batch, without gradient."""

    total: Tensor
    terms: dict[str, float]
    predictions: Tensor


def compute_losses(
    network: KvqNetwork, batch: TensorBatch, weights: LossWeights, cube: Grid, group: ProcessGroup
) -> Losses:
    """The loss of a batch under `weights`; `terms` holds each term that counts, and "loss", their weighted sum."""
    maps = network(batch.clips)
    predictions, labels = group.gather(maps.scores()), group.gather(batch.labels)
    # Of the whole batch, the same on every process; and this process's part of a sum over processes.
    whole: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    if weights.plcc:
        whole["plcc"] = plcc_loss(predictions, labels)
    if weights.rank:
        whole["rank"] = rank_loss(predictions, labels)
    if weights.score:
        whole["score"] = score_error(predictions, labels)
    if weights.pairs:
        sets = (-1, batch.versions)
        whole["pairs"] = pair_error(predictions.view(sets), labels.view(sets))
    if weights.cells:
        cells = torch.full_like(maps.texture, torch.nan) if batch.cells is None else batch.cells
        whole["cells"] = cell_error(group.gather(maps.texture), group.gather(cells))
    if weights.lpc:
        features, _ = network.fragments_backbone(cut_cubes(batch.clips, network.config, cube))
        of_cubes = texture_of_cubes(network.vqa_head(features), maps.texture)
        parts["lpc"] = lpc_losses(maps.texture, of_cubes).sum() / len(predictions)
    total = torch.stack([getattr(weights, name) * term.double() for name, term in (whole | parts).items()]).sum()
    told = {name: term.detach().double().reshape(1) for name, term in (whole | parts).items()}
    if parts:
        group.all_reduce_sum([told[name] for name in parts])
    terms = {name: float(value) for name, value in told.items()}
    terms["loss"] = sum(getattr(weights, name) * value for name, value in terms.items())
    return Losses(total, terms, predictions.detach())
