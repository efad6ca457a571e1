"""Initial weights of a training, drawn or loaded from a file, and networks built around them.

Each tensor is drawn from its own name, so adding or removing a tensor changes no other one. The random weights of
`models.kvq.untrained` are for demonstrations, not for training.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kvq_batch.models.backbones.efficientnet_lite import load_efficientnet_lite
from kvq_batch.models.checkpoints.tensors import Shape, is_safetensors
from kvq_batch.models.kvq.checkpoint import check_tensors, load
from kvq_batch.models.kvq.config import KvqConfig, tensor_shapes
from kvq_batch.models.kvq.network import KvqNetwork, Stage, build_network
from kvq_batch.models.kvq.published import load_kinetics, load_published
from kvq_batch.training.samples import seed_of
from kvq_batch.training.settings import Initialisation, TrainPrecision

_SWIN_STD = 0.02
_TABLE = "relative_position_bias_table"
# A network that starts far from its labels first grows constants in every block, and they hide the differences between
# views: with 1, 0 and 1 here, features ended with a mean of 0.90 and a standard deviation of 0.06 over all views. These
# values keep features apart for longer; alone, they did not improve the order of held-out scenes
# (research/kvq-lite.md).
_TEXTURE_OUT = "vqa_head.fc_last"
_TEXTURE_SCALE, _TEXTURE_BIAS = 0.1, 0.5
_BRANCH_SCALE = 0.3


def initial_tensors(config: KvqConfig, scheme: Initialisation, seed: int) -> dict[str, Tensor]:
    """Draw every tensor of a network, float32.

    "published" (KVQ_SPEC section 4.1): linear layers and bias tables with standard deviation 0.02, convolutions as
    torch draws them. "fan-in": every matrix with standard deviation 1 / sqrt(fan_in), which small networks learn better
    from, less at the end of a residual branch; the texture starts near the middle of the scale. In both, norms start as
    identity, and `weight_conv` and the other biases of linear layers as 0.
    """
    shapes = tensor_shapes(config)
    return {name: _draw(name, shapes, scheme, seed) for name in shapes}


def tensors_from_checkpoint(tensors: Mapping[str, Tensor], config: KvqConfig, checkpoint: Path) -> dict[str, Tensor]:
    """Return the tensors of a whole checkpoint (ours or the published one), in the order of `tensors`.

    Raises:
        CheckpointError: no such file, or the weights of another network.
    """
    if is_safetensors(checkpoint):
        found = check_tensors(load(checkpoint).tensors, config, str(checkpoint))
    else:
        found = dict(load_published(checkpoint, config).tensors)
    return {name: torch.tensor(found[name]) for name in tensors}


def tensors_from_kinetics(tensors: Mapping[str, Tensor], config: KvqConfig, backbone: Path) -> dict[str, Tensor]:
    """Return `tensors` with the backbone of a Video-Swin file trained on Kinetics-400 (KVQ_SPEC section 4.1).

    Raises:
        CheckpointError: no such file, or a backbone of other sizes.
    """
    return dict(tensors) | {name: torch.tensor(value) for name, value in load_kinetics(backbone, config).items()}


def tensors_from_imagenet(tensors: Mapping[str, Tensor], config: KvqConfig, path: Path) -> dict[str, Tensor]:
    """Return `tensors` with the frozen convolutions of a file of EfficientNet-Lite0, and the scaling of their features.

    Raises:
        CheckpointError: no such file, or another network.
    """
    found = load_efficientnet_lite(path, config.convolutions, config.patch[1])
    root = "fragments_backbone.patch_embed"
    arrays = {f"{root}.scaling.weight": found.factors, f"{root}.scaling.bias": found.offsets}
    for number, (weight, bias) in enumerate(zip(found.weights, found.biases, strict=True)):
        arrays |= {
            f"{root}.convolutions.layers.{number}.{leaf}": array for leaf, array in (("weight", weight), ("bias", bias))
        }
    return dict(tensors) | {name: torch.tensor(array) for name, array in arrays.items()}


def _draw(name: str, shapes: Mapping[str, Shape], scheme: Initialisation, seed: int) -> Tensor:
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
    # The fan-in of the layer's matrix applies to its bias too.
    fan_in = math.prod(shapes[f"{path}.weight"][1:])
    if is_convolution and scheme == "published":
        return tensor.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    if leaf == "bias":
        return tensor.fill_(_TEXTURE_BIAS if path == _TEXTURE_OUT and scheme == "fan-in" else 0.0)
    if scheme == "published":
        return nn.init.trunc_normal_(tensor, std=_SWIN_STD, generator=generator)
    std = fan_in**-0.5
    if path == _TEXTURE_OUT:
        std *= _TEXTURE_SCALE
    elif ".blocks." in path and layer in ("proj", "fc2"):
        std *= _BRANCH_SCALE
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def trainable_network(
    config: KvqConfig,
    tensors: Mapping[str, Tensor],
    dropout: float,
    precision: TrainPrecision = "fp32",
    recompute: bool = False,
) -> KvqNetwork:
    """Build a network in training mode around `tensors`, which it shares.

    Its heads drop out, and with `recompute` its blocks are computed again in the backward pass to save memory.
    Parameters are float32 in either precision.
    """
    network = build_network(config, tensors, _DTYPES[precision]).train()
    for head in (network.vqa_head, network.weight_head):
        if head is not None:
            head.dropout = dropout
    for stage in network.fragments_backbone.layers:
        assert isinstance(stage, Stage)
        stage.recompute = recompute
    return network


def scoring_network(config: KvqConfig, tensors: Mapping[str, Tensor], precision: TrainPrecision) -> KvqNetwork:
    """Build a network in scoring mode around `tensors`, which it shares."""
    return build_network(config, tensors, _DTYPES[precision])
