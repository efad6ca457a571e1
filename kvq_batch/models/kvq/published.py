"""Readers of the authors' files: the published checkpoint, and the Kinetics-400 backbone that training starts from.

Entries other than the "state_dict" are ignored, for example the metrics in "validation_results".
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import CheckpointError
from kvq_batch.domain.scorer import ModelCard
from kvq_batch.models.checkpoints.state_dict import as_array, is_profiler_counter, read_state_dict, without_prefix
from kvq_batch.models.checkpoints.tensors import check_tensor
from kvq_batch.models.kvq.checkpoint import Checkpoint, check_tensors, digest
from kvq_batch.models.kvq.config import INDEX_SUFFIX, PUBLISHED, KvqConfig, tensor_shapes


def load_published(path: Path, config: KvqConfig = PUBLISHED, name: str = "kvq") -> Checkpoint:
    """Read a checkpoint in the published format (KVQ_SPEC section 4): "state_dict", with or without "module." prefixes.

    Counters of the profiler and index buffers are ignored; all other tensors must be exactly those of the network.

    Raises:
        CheckpointError: a file that cannot be read, or tensors of another network.
    """
    source = str(path)
    arrays = {key: as_array(key, value, source) for key, value in _state_dict(path).items() if not _is_derived(key)}
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
        tensors[key] = check_tensor(origin, as_array(origin, state[origin], source), shape, source).copy()
    return tensors


def _state_dict(path: Path) -> dict[str, Any]:
    """Return the "state_dict" of a file, by names without "module."."""
    return without_prefix(read_state_dict(path, ("state_dict",)), path)


def _is_derived(key: str) -> bool:
    return key.endswith(INDEX_SUFFIX) or is_profiler_counter(key)
