"""A KVQ network made ready to be trained: its heads drop out, its blocks may be computed again to save memory.

The network itself belongs to `models`; nothing of a step stands here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.models.kvq.network import KvqNetwork, Stage, build_network
from kvq_batch.training.settings import TrainPrecision

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def trainable_network(
    config: KvqConfig,
    tensors: Mapping[str, Tensor],
    dropout: float,
    precision: TrainPrecision = "fp32",
    recompute: bool = False,
) -> KvqNetwork:
    """A network around `tensors`, which it shares, in training mode. Parameters are float32 in either precision."""
    network = build_network(config, tensors, _DTYPES[precision]).train()
    network.vqa_head.dropout = network.weight_head.dropout = dropout
    for stage in network.fragments_backbone.layers:
        assert isinstance(stage, Stage)
        stage.recompute = recompute
    return network


def scoring_network(config: KvqConfig, tensors: Mapping[str, Tensor], precision: TrainPrecision) -> KvqNetwork:
    """A network around `tensors`, which it shares, as a scorer has it."""
    return build_network(config, tensors, _DTYPES[precision])
