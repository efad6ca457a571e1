"""Tensors of a checkpoint: the check of names, shapes and values, and the digest that identifies them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import CheckpointError, shorten_list

Shape = tuple[int, ...]
Tensors = Mapping[str, NDArray[np.float32]]

# A safetensors file starts with the length of its header in 8 bytes, and the header is a JSON object.
_SAFETENSORS_MARK = b"{"


def digest(tensors: Tensors, header: str) -> str:
    """Return the sha256 hex over a text and, sorted by name, each tensor's name, shape and little-endian float32."""
    hasher = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        hasher.update(f"\n{name} {'x'.join(map(str, tensor.shape))}\n".encode())
        hasher.update(tensor.data)
    return hasher.hexdigest()


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts like safetensors.

    Raises:
        CheckpointError: a file that is missing, unreadable, empty, or a git-lfs pointer.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({error}). Check the path.") from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty. Download the weights again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: the file is a git-lfs pointer, not the weights. Run `git lfs pull`.")
    return head[8:9] == _SAFETENSORS_MARK


def check_tensors(
    found: Mapping[str, NDArray[np.generic]], shapes: Mapping[str, Shape], source: str
) -> dict[str, NDArray[np.float32]]:
    """Return the tensors as float32, in the order of `shapes`, if they have exactly these names and shapes.

    Raises:
        CheckpointError: a missing or unexpected tensor, another shape, or values that are not finite numbers.
    """
    if missing := [name for name in shapes if name not in found]:
        raise CheckpointError(f"{source}: {_list_tensors(missing)} missing. Use weights of this network.")
    if unexpected := sorted(set(found) - set(shapes)):
        raise CheckpointError(f"{source}: {_list_tensors(unexpected)} not expected. Use weights of this network.")
    return {name: check_tensor(name, found[name], shape, source) for name, shape in shapes.items()}


def check_tensor(name: str, tensor: NDArray[np.generic], shape: Shape, source: str) -> NDArray[np.float32]:
    """Return a tensor as float32.

    Raises:
        CheckpointError: another shape, or values that are not finite floating-point numbers.
    """
    if tensor.shape != shape:
        raise CheckpointError(
            f"{source}: {name} has shape {tensor.shape}, expected {shape}. Use weights of this network."
        )
    if not np.issubdtype(tensor.dtype, np.floating):
        raise CheckpointError(f"{source}: {name} has type {tensor.dtype}, expected floating-point numbers.")
    values = np.ascontiguousarray(tensor, dtype=np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{source}: {name} contains NaN or infinity, because its training diverged. Use other weights."
        )
    return values


def _list_tensors(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)} ({shorten_list(names, 3)})"
