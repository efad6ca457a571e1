"""The processes that train together, each on its share of every batch; alone is the usual case.

Losses over a batch see all predictions, gradients are summed, so that many processes do what one would. Whoever starts
the processes (Ray Train, torchrun) sets up `torch.distributed`; this module only talks through it.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessGroup(Protocol):
    """`rank` of `size` processes; every call is made by all of them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, values: Tensor) -> Tensor:
        """The values [n, ...] of all processes in order of rank, [size * n, ...]; gradients flow to one's own."""
        ...

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over all processes, in place."""
        ...

    def is_any(self, claim: bool) -> bool:
        """Whether any process claims so."""
        ...

    def barrier(self) -> None:
        """Returns when every process is here."""
        ...


class SingleProcess:
    """One process."""

    rank = 0
    size = 1

    def gather(self, values: Tensor) -> Tensor:
        return values

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Its own sum."""

    def is_any(self, claim: bool) -> bool:
        return claim

    def barrier(self) -> None:
        """Nobody else comes."""


class TorchProcessGroup:
    """The processes of `torch.distributed`'s default group, which must be set up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def size(self) -> int:
        return dist.get_world_size()

    def gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.detach().contiguous())
        parts[self.rank] = values
        return torch.cat(parts)

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        # One message for all: hundreds of small ones cost more than the copy.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def is_any(self, claim: bool) -> bool:
        flag = torch.tensor([float(claim)], device=self._device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def barrier(self) -> None:
        self.is_any(False)
