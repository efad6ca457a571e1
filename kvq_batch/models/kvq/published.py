"""Readers of the authors' files: the published checkpoint, and the Kinetics-400 backbone that training starts from.

The files are pickles. `torch.load` reads them with `weights_only=True`, which builds tensors and the numpy scalars of
the published `validation_results` only, and runs no code.
"""

import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import CheckpointError
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.kvq.checkpoint import Checkpoint, check_tensors, digest
from kvq_batch.models.kvq.config import INDEX_SUFFIX, PUBLISHED, KvqConfig, tensor_shapes

# Counters that the thop profiler leaves in a model that is saved after profiling.
_PROFILER_SUFFIXES = (".total_ops", ".total_params")
_PROFILER_KEYS = ("total_ops", "total_params")
# What rebuilds a pickled numpy scalar, under the names that numpy 1 and numpy 2 write.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_SCALAR_GLOBALS: list[Any] = [
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
    np.dtypes.Int32DType,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
# What a damaged file makes torch's unpickler raise; it has no error of its own.
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError,
    AssertionError, ArithmeticError, struct.error,
)  # fmt: skip


def load_published(path: Path, config: KvqConfig = PUBLISHED, name: str = "kvq") -> Checkpoint:
    """Read a checkpoint in the published format (KVQ_SPEC section 4): "state_dict", with or without "module." prefixes.

    Counters of the profiler and index buffers are ignored; all other tensors must be exactly those of the network.

    Raises:
        CheckpointError: a file that cannot be read, or tensors of another network.
    """
    source = str(path)
    state = {key.removeprefix("module."): value for key, value in _state_dict(path).items()}
    kept = {key: value for key, value in state.items() if not _is_derived(key)}
    tensors = check_tensors({key: _array(key, value, source) for key, value in kept.items()}, config, source)
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
        CheckpointError: a file that cannot be read, lacks a tensor of the backbone, or has one of another shape.
    """
    source = str(path)
    wanted = {key: shape for key, shape in tensor_shapes(config).items() if key.startswith("fragments_backbone.")}
    state = {key.removeprefix("module."): value for key, value in _state_dict(path).items()}
    tensors: dict[str, NDArray[np.float32]] = {}
    for key, shape in wanted.items():
        origin = "backbone." + key.removeprefix("fragments_backbone.").replace(".attn.cross_windowattn.", ".attn.")
        if origin not in state:
            raise CheckpointError(f"{source}: {origin} is missing. Use a Video-Swin backbone of these sizes.")
        value = _array(origin, state[origin], source)
        if value.shape != shape:
            raise CheckpointError(
                f"{source}: {origin} has shape {value.shape}, expected {shape}. Use a Video-Swin backbone of these "
                "sizes."
            )
        tensors[key] = np.array(value, dtype=np.float32)
    return tensors


def _state_dict(path: Path) -> dict[str, Any]:
    """The "state_dict" level of a pickled checkpoint, read without running anything that is in it."""
    try:
        # Opened here: given a path, torch goes by its suffix and may read another format.
        with path.open("rb") as file, torch.serialization.safe_globals(_SCALAR_GLOBALS), warnings.catch_warnings():
            # Old files make torch warn about its own storage classes, which says nothing to our reader.
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it is damaged, or a pickle that builds more than tensors and could run code "
            f"({_first_line(error)}); get the weights from their source, or convert them to safetensors there"
        ) from error
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path}: no readable checkpoint ({type(error).__name__}: {_first_line(error)}); it is truncated or no "
            "checkpoint, fetch it again"
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path}: no 'state_dict' of named tensors at its top level; it is another file")
    return state


def _is_derived(key: str) -> bool:
    return key.endswith((*_PROFILER_SUFFIXES, INDEX_SUFFIX)) or key in _PROFILER_KEYS


def _array(key: str, value: object, source: str) -> NDArray[Any]:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        raise CheckpointError(f"{source}: {key} is a {type(value).__name__}, not a dense tensor")
    array: NDArray[Any] = (value.float() if value.is_floating_point() else value).numpy()
    return array


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
