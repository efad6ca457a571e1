"""The processes that train together, each on its share of every batch; usually there is one.

Losses over a batch see all predictions, and gradients are summed, so several processes compute what one would. The
launcher of the processes (Ray Train, torchrun) sets up `torch.distributed`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessGroup(Protocol):
    """This process, `rank`, of `size` processes. Every method must be called by all of them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, values: Tensor) -> Tensor:
        """Return the values [n, ...] of all processes by rank, [size * n, ...]; gradients flow to the own values."""
        ...

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place."""
        ...

    def is_any(self, flag: bool) -> bool:
        """Return whether the flag of any process is true."""
        ...

    def barrier(self) -> None:
        """Wait until every process has called this."""
        ...


class SingleProcess:
    """A group of one process."""

    rank = 0
    size = 1

    def gather(self, values: Tensor) -> Tensor:
        return values

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Do nothing: the sum over one process."""

    def is_any(self, flag: bool) -> bool:
        return flag

    def barrier(self) -> None:
        """Do nothing."""


class TorchProcessGroup:
    """The default group of `torch.distributed`, which must be set up."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def size(self) -> int:
        return dist.get_world_size()

    def gather(self, values: Tensor) -> Tensor:
        by_rank = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(by_rank, values.detach().contiguous())
        by_rank[self.rank] = values
        return torch.cat(by_rank)

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        # One message for all tensors: hundreds of small messages cost more than the copy.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def is_any(self, flag: bool) -> bool:
        value = torch.tensor([float(flag)], device=self._device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def barrier(self) -> None:
        self.is_any(False)
