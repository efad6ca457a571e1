"""Networks around checked tensors: the tensors that a module expects, and a module that shares given ones."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from kvq_batch.models.checkpoints.tensors import Shape, Tensors

Network = TypeVar("Network", bound=nn.Module)


def network_shapes(build: Callable[[], nn.Module]) -> Mapping[str, Shape]:
    """Return the shape of every parameter and statistic of a module by name, without allocating them."""
    with torch.device("meta"):
        network = build()
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def build_network(build: Callable[[], Network], tensors: Tensors, device: torch.device | None = None) -> Network:
    """Return a module in scoring mode around a copy of checked tensors, on a device (the CPU by default).

    The tensors are copied, because arrays may be read-only or views of a file.
    """
    with torch.device("meta"):
        network = build()
    state = {name: torch.tensor(array, device=device or torch.device("cpu")) for name, array in tensors.items()}
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False)
    return network.eval()
