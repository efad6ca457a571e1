"""Readers of the authors' files: the published checkpoint, and the Kinetics-400 backbone that training starts from.

Entries other than the "state_dict" are ignored, for example the metrics in "validation_results".
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import CheckpointError
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.kvq.checkpoint import Checkpoint, check_tensor, check_tensors, digest
from kvq_batch.models.kvq.config import INDEX_SUFFIX, PUBLISHED, KvqConfig, tensor_shapes
from kvq_batch.models.kvq.torch_file import NumpyValue, read_torch_file

# Counters that the thop profiler leaves in a model that is saved after profiling.
_PROFILER_SUFFIXES = (".total_ops", ".total_params")
_PROFILER_KEYS = ("total_ops", "total_params")
_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


def load_published(path: Path, config: KvqConfig = PUBLISHED, name: str = "kvq") -> Checkpoint:
    """Read a checkpoint in the published format (KVQ_SPEC section 4): "state_dict", with or without "module." prefixes.

    Counters of the profiler and index buffers are ignored; all other tensors must be exactly those of the network.

    Raises:
        CheckpointError: a file that cannot be read, or tensors of another network.
    """
    source = str(path)
    arrays = {key: _array(key, value, source) for key, value in _state_dict(path).items() if not _is_derived(key)}
    tensors = check_tensors(arrays, config, source)
    card = ModelCard(
        name=name,
        version="published",
        digest=digest(tensors, config),
        origin="trained",
        summary="KVQ as its authors published it (CVPR 2025, arXiv 2503.10259)",
        training_data="LSVQ",
        licence="none given by its authors",
    )
    return Checkpoint(card, config, tensors)


def load_kinetics(path: Path, config: KvqConfig = PUBLISHED) -> dict[str, NDArray[np.float32]]:
    """Read the backbone of a KVQ network from a Video-Swin file trained on Kinetics-400 (KVQ_SPEC section 4.1).

    `backbone.X` becomes `fragments_backbone.X`, and cross-window attention starts as a copy of the attention inside
    windows. The result has every tensor of the backbone, and none of the heads.

    Raises:
        CheckpointError: a file that cannot be read, or a tensor of the backbone that is missing or invalid.
    """
    source = str(path)
    wanted = {key: shape for key, shape in tensor_shapes(config).items() if key.startswith("fragments_backbone.")}
    state = _state_dict(path)
    tensors: dict[str, NDArray[np.float32]] = {}
    for key, shape in wanted.items():
        origin = "backbone." + key.removeprefix("fragments_backbone.").replace(".attn.cross_windowattn.", ".attn.")
        if origin not in state:
            raise CheckpointError(f"{source}: {origin} is missing. Use a Video-Swin backbone of these sizes.")
        # Copied, because cross-window attention gets the same array.
        tensors[key] = check_tensor(origin, _array(origin, state[origin], source), shape, source).copy()
    return tensors


def _state_dict(path: Path) -> dict[str, Any]:
    """Return the "state_dict" of a file, by names without "module."."""
    content = read_torch_file(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(
            f"{path}: there is no 'state_dict' of named tensors at the top level. Use a file in the published format."
        )
    named = {key.removeprefix("module."): value for key, value in state.items()}
    if len(named) < len(state):
        twice = next(key for key in state if f"module.{key}" in state)
        raise CheckpointError(f"{path}: there are two tensors {twice}, with and without 'module.'. Remove one of them.")
    return named


def _is_derived(key: str) -> bool:
    return key.endswith((*_PROFILER_SUFFIXES, INDEX_SUFFIX)) or key in _PROFILER_KEYS


def _array(key: str, value: object, source: str) -> NDArray[Any]:
    """Return a tensor or parameter as an array; types that numpy does not have (bfloat16) become float32."""
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
