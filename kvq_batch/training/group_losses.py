"""Losses over groups of renditions, coarse to fine (SWINV2_SPEC section 4, after arXiv 2401.08522).

A group is one level of a bitrate ladder, across all references. The coarse loss pulls the features of a group together
and pushes groups apart. The fine loss orders the scores inside a group. One sentence of the paper says the opposite of
the coarse loss; the rest of its text, and the kind of loss that it cites, say what is here.

Axes: n videos of a batch, D width of a feature, K groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.5
MARGIN = 0.05
SMALLEST_GAP = 0.01
GROUP_WEIGHT, RANK_WEIGHT = 0.1, 1.0


def group_contrast(features: Tensor, groups: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the contrast of the mean features of half groups (section 4.1).

    It is 0 if fewer than two groups have two members.
    `features` is [n, D], `groups` int64 [n]. The first ceil(m / 2) of the m members of a group, in the order of the
    batch, are one half: a batch is ordered so that halves are of different references.
    """
    halves = []
    for group in torch.unique(groups).tolist():
        members = features[groups == group]
        if len(members) > 1:
            first = (len(members) + 1) // 2
            halves.append(torch.stack([members[:first].mean(0), members[first:].mean(0)]))
    if len(halves) < 2:
        return features.sum() * 0
    # [K, 2, D] -> similarities of half i of group k and half j of group l, [2, K, 2, K].
    unit = F.normalize(torch.stack(halves), dim=-1).transpose(0, 1)
    logits = torch.einsum("akd,bld->akbl", unit, unit) / temperature
    count = len(halves)
    is_own = torch.eye(count, dtype=torch.bool, device=features.device)
    losses = []
    for half in (0, 1):
        positive = logits[half, :, 1 - half].diagonal()
        others = torch.cat([logits[half, :, side].masked_fill(is_own, -torch.inf) for side in (0, 1)], dim=-1)
        losses.append(torch.logsumexp(torch.cat([positive[:, None], others], dim=-1), dim=-1) - positive)
    return torch.cat(losses).mean()


def sample_contrast(features: Tensor, groups: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return the contrast of single features [n, D] (section 4.1b): the mean over samples that share a group.

    It equals `group_contrast` if every group has two members; 0 if no group has two.
    """
    unit = F.normalize(features, dim=-1)
    is_self = torch.eye(len(features), dtype=torch.bool, device=features.device)
    logits = (unit @ unit.transpose(0, 1) / temperature).masked_fill(is_self, -torch.inf)
    is_positive = (groups[:, None] == groups[None, :]) & ~is_self
    count = is_positive.sum(-1)
    if not count.any():
        return features.sum() * 0
    log_share = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    total = torch.where(is_positive, log_share, torch.zeros_like(log_share)).sum(-1)
    return -(total / count.clamp_min(1))[count > 0].mean()


def rank_in_groups(
    scores: Tensor, labels: Tensor, groups: Tensor, margin: float | None = MARGIN, gap: float = SMALLEST_GAP
) -> Tensor:
    """Return how far scores [n] are from the order of labels [n] inside each group (section 4.2); 0 without a pair.

    It is the mean of max(0, m - (q_i - q_j)) over pairs of one group with y_i - y_j > `gap`. `margin` None takes the
    difference of the labels as m.
    """
    difference = labels[:, None] - labels[None, :]
    is_pair = (groups[:, None] == groups[None, :]) & (difference > gap)
    if not is_pair.any():
        return scores.sum() * 0
    wanted = difference if margin is None else torch.full_like(difference, margin)
    return torch.relu(wanted - (scores[:, None] - scores[None, :]))[is_pair].mean()


def coarse_to_fine_loss(features: Tensor, scores: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Return mean |q - y| + 0.1 coarse + 1.0 fine; labels and scores have the scale 0..1 (section 4.4)."""
    quality = (scores - labels).abs().mean()
    contrast = group_contrast(features, groups)
    return quality + GROUP_WEIGHT * contrast + RANK_WEIGHT * rank_in_groups(scores, labels, groups)
