"""Weights that a training starts from: drawn anew, or taken from a file that a user has.

Each tensor is drawn from its own name, so that a tensor more or less changes no other. The random weights of
`models.kvq.untrained` are for demonstrations and deliberately no start.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kvq_batch.models.kvq.checkpoint import checked_tensors, is_safetensors, load
from kvq_batch.models.kvq.config import KvqConfig, Shape, tensor_shapes
from kvq_batch.models.kvq.published import load_kinetics, load_published
from kvq_batch.training.samples import seed_of
from kvq_batch.training.settings import Initialisation

_SWIN_STD = 0.02
_TABLE = "relative_position_bias_table"
# A network that starts far from its labels first grows constants in every block, and what lies in them hides what
# differs: with 1, 0 and 1 here features ended with a mean of 0.90 and a deviation of 0.06 over all views. It keeps
# them apart for longer; held-out sources were ordered no better by it alone (docs/model.md).
_TEXTURE_OUT = "vqa_head.fc_last"
_TEXTURE_SCALE, _TEXTURE_START = 0.1, 0.5
_BRANCH_SCALE = 0.3


def initial_tensors(config: KvqConfig, scheme: Initialisation, seed: int) -> dict[str, Tensor]:
    """Every tensor of a network, float32.

    "published" (KVQ_SPEC section 4.1): linear layers and bias tables of standard deviation 0.02, convolutions as torch
    draws them. "fan-in": every matrix of standard deviation 1 / sqrt(fan_in), as small members learn better from, less
    where a residual branch ends; the texture starts about the middle of the scale. Either way norms start as identity,
    `weight_conv` as 0, and other biases of linear layers too.
    """
    shapes = tensor_shapes(config)
    return {name: _drawn(name, shapes, scheme, seed) for name in shapes}


def started_from(tensors: Mapping[str, Tensor], config: KvqConfig, checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a whole checkpoint (ours, or the published one), in place of those that were drawn.

    Raises:
        CheckpointError: no such file, or weights of another network.
    """
    if is_safetensors(checkpoint):
        found = checked_tensors(load(checkpoint).tensors, config, str(checkpoint))
    else:
        found = dict(load_published(checkpoint, config).tensors)
    return {name: torch.tensor(found[name]) for name in tensors}


def started_from_kinetics(tensors: Mapping[str, Tensor], config: KvqConfig, backbone: Path) -> dict[str, Tensor]:
    """`tensors` with the backbone of a Video-Swin file trained on Kinetics-400 (KVQ_SPEC section 4.1).

    Raises:
        CheckpointError: no such file, or a backbone of other sizes.
    """
    return dict(tensors) | {name: torch.tensor(value) for name, value in load_kinetics(backbone, config).items()}


def _drawn(name: str, shapes: Mapping[str, Shape], scheme: Initialisation, seed: int) -> Tensor:
    path, leaf = name.rsplit(".", 1)
    layer = path.rsplit(".", 1)[-1]
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    tensor = torch.zeros(shapes[name])
    is_convolution = layer in ("fc_hid", "fc_last") or ".patch_embed." in path
    if layer.startswith("norm"):
        return tensor.fill_(float(leaf == "weight"))
    if layer == "weight_conv":
        return tensor
    if leaf == _TABLE:
        return nn.init.trunc_normal_(tensor, std=_SWIN_STD, generator=generator)
    # Of the layer's matrix, for its bias too.
    fan_in = math.prod(shapes[f"{path}.weight"][1:])
    if is_convolution and scheme == "published":
        return tensor.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    if leaf == "bias":
        return tensor.fill_(_TEXTURE_START if path == _TEXTURE_OUT and scheme == "fan-in" else 0.0)
    if scheme == "published":
        return nn.init.trunc_normal_(tensor, std=_SWIN_STD, generator=generator)
    std = fan_in**-0.5
    if path == _TEXTURE_OUT:
        std *= _TEXTURE_SCALE
    elif ".blocks." in path and layer in ("proj", "fc2"):
        std *= _BRANCH_SCALE
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)
