"""Files of SwinV2 trained on ImageNet, of torchvision, microsoft or timm, under torchvision's names (SWINV2_SPEC 2.6).

Such a file can start the training of the network. Alone it is not a quality model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvq_batch.domain.errors import CheckpointError
from kvq_batch.models.checkpoints.state_dict import read_arrays
from kvq_batch.models.checkpoints.tensors import Tensors, check_tensors
from kvq_batch.models.swinv2_ctf.config import SwinV2Config
from kvq_batch.models.swinv2_ctf.swinv2 import SwinV2

_DERIVED = ("relative_coords_table", "relative_position_index", "attn_mask")


def load_imagenet(path: Path, config: SwinV2Config) -> Tensors:
    """Return the tensors of `SwinV2` without its classifier.

    Raises:
        CheckpointError: a file that cannot be read, of another window, or with other tensors than this network's.
    """
    found = read_arrays(path, ("model", "state_dict", ""))
    check_window(found, config.window, str(path))
    named = torchvision_names(found, config.num_stages)
    with torch.device("meta"):
        network = SwinV2(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    return check_tensors(named, shapes, str(path))


def torchvision_names(arrays: Mapping[str, NDArray[Any]], num_stages: int) -> dict[str, NDArray[Any]]:
    """Return the tensors of a network under torchvision's names, without classifier and tables that are computed.

    Microsoft's and timm's files store the biases of queries and values; that of the keys is 0. They name a merging
    after the stage before it (microsoft) or after it (timm).
    """
    kept = {key: a for key, a in arrays.items() if not key.endswith(_DERIVED) and not key.startswith("head.")}
    if "patch_embed.proj.weight" not in kept:
        return kept
    is_timm = not any(key.startswith("layers.0.downsample.") for key in kept) and num_stages > 1
    named = {}
    for key, array in kept.items():
        if key.endswith("attn.v_bias"):
            continue
        if key.endswith("attn.q_bias"):
            value = kept.get(key.replace("q_bias", "v_bias"))
            if value is not None:
                bias = np.concatenate([array, np.zeros_like(array), value])
                named[_torchvision_name(key.replace("q_bias", "qkv.bias"), is_timm)] = bias
            continue
        named[_torchvision_name(key, is_timm)] = array
    return named


def check_window(arrays: Mapping[str, NDArray[Any]], window: int, source: str) -> None:
    """Check the window by the tables of a file, if it has them: no learnable tensor depends on it.

    Raises:
        CheckpointError: another window.
    """
    for key, array in arrays.items():
        if key.endswith("relative_coords_table") and array.ndim == 4 and array.shape[1] != 2 * window - 1:
            raise CheckpointError(
                f"{source}: its window has {(array.shape[1] + 1) // 2} tokens a side, expected {window}. Use a file of "
                "this window."
            )


def _torchvision_name(key: str, is_timm: bool) -> str:
    parts = key.split(".")
    if parts[0] == "patch_embed":
        return f"features.0.{0 if parts[1] == 'proj' else 2}.{parts[2]}"
    if parts[0] != "layers":
        return key
    stage = int(parts[1])
    if parts[2] == "downsample":
        return ".".join([f"features.{2 * (stage - is_timm) + 2}", *parts[3:]])
    name = ".".join([f"features.{2 * stage + 1}", *parts[3:]])
    return name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
