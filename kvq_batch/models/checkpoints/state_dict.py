"""Named tensors of files that other projects wrote: a state dict of `torch.save`, or safetensors without a card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kvq_batch.domain.errors import CheckpointError
from kvq_batch.models.checkpoints.tensors import is_safetensors
from kvq_batch.models.checkpoints.torch_file import NumpyValue, read_torch_file

# Counters that the thop profiler leaves in a model that is saved after profiling.
_PROFILER_SUFFIXES = (".total_ops", ".total_params")
_PROFILER_KEYS = ("total_ops", "total_params")
_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def read_arrays(path: Path, containers: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the named tensors of a file, on the CPU, by names without "module.".

    Args:
        path: a file of `torch.save`, or safetensors.
        containers: keys under which the state dict may be stored; "" accepts a file that is a state dict itself.

    Raises:
        CheckpointError: a file that cannot be read or that has no named tensors, or an entry that is not a tensor.
    """
    if is_safetensors(path):
        return without_prefix(_read_safetensors(path), path)
    state = without_prefix(read_state_dict(path, containers), path)
    return {key: as_array(key, value, str(path)) for key, value in state.items() if not is_profiler_counter(key)}


def read_state_dict(path: Path, containers: Sequence[str]) -> dict[str, Any]:
    """Return the state dict of a file of `torch.save`, with its names as stored.

    Raises:
        CheckpointError: a file that cannot be read, or without a state dict under any key of `containers`.
    """
    content = read_torch_file(path)
    if isinstance(content, dict):
        for key in containers:
            state = content if key == "" else content.get(key)
            if isinstance(state, dict) and all(isinstance(name, str) for name in state):
                return state
    wanted = " or ".join(repr(key) for key in containers if key) or "state dict"
    raise CheckpointError(
        f"{path}: there is no {wanted} of named tensors at the top level. Use a file in the published format."
    )


def without_prefix(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the entries of a state dict by names without "module.", which multi-GPU training adds.

    Raises:
        CheckpointError: a name with and without the prefix.
    """
    named = {key.removeprefix("module."): value for key, value in state.items()}
    if len(named) < len(state):
        twice = next(key for key in state if f"module.{key}" in state)
        raise CheckpointError(f"{path}: there are two tensors {twice}, with and without 'module.'. Remove one of them.")
    return named


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, TypeError) as error:
        # TypeError: a dtype that numpy does not have, such as bfloat16.
        raise CheckpointError(
            f"{path}: the safetensors file cannot be read ({error}). Download or write it again."
        ) from error


def is_profiler_counter(key: str) -> bool:
    """Return whether an entry is a counter of the thop profiler, which no network computes with."""
    return key.endswith(_PROFILER_SUFFIXES) or key in _PROFILER_KEYS


def as_array(key: str, value: object, source: str) -> NDArray[Any]:
    """Return a tensor or parameter as an array; types that numpy does not have (bfloat16) become float32.

    Raises:
        CheckpointError: a value that is not a dense tensor of numbers.
    """
    if isinstance(value, NumpyValue):
        raise CheckpointError(f"{source}: {key} is a numpy value, expected a tensor.")
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        raise CheckpointError(f"{source}: {key} is a {_kind(value)}, expected a dense tensor.")
    try:
        # Parameters require gradients, which numpy arrays do not have.
        tensor = value.detach().resolve_conj().resolve_neg()
        is_known = tensor.dtype in _NUMPY_FLOATS or not tensor.is_floating_point()
        array: NDArray[Any] = (tensor if is_known else tensor.float()).numpy()
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{source}: {key} is a {_kind(value)}, expected a dense tensor of numbers.") from error
    return array


def _kind(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.layout).removeprefix('torch.')} tensor of {str(value.dtype).removeprefix('torch.')}"
