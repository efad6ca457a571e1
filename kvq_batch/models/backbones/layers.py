"""Layers that several backbones share: batch normalisation with fixed statistics."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenNorm(nn.Module):
    """Batch normalisation of scoring: it applies stored statistics to [B, C, ...] and never updates them.

    Its parameters and statistics have the names of `nn.BatchNorm2d`, without the counter `num_batches_tracked`.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.register_buffer("running_mean", torch.empty(width))
        self.register_buffer("running_var", torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
