"""KVQ network (KVQ_SPEC section 3): maps normalised clips to texture and saliency maps.

Modules and parameters have the published names, so checkpoints load by name. Parameters are float32. Products are
computed in `compute_dtype`; the residual stream, norms, saliency sums and heads in float32, routing in float64. The
network is differentiable, except for routing and saliency maps, which are detached as published. Only training mode
computes whole batches on a CPU, applies dropout in the heads, and can recompute blocks to save memory.

Axes: B clips, T frames, D slots, H rows, W columns, C channels, L tokens of a padded grid, N tokens of a window.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kvq_batch.models.kvq.attention import attention_backends, bias_index, window_layout
from kvq_batch.models.kvq.blocks import NORM_EPS, Block, freeze, linear, normalise_tokens
from kvq_batch.models.kvq.config import Grid, KvqConfig
from kvq_batch.models.kvq.embedding import ConvolutionalStem, PatchEmbedding
from kvq_batch.models.kvq.pixels import padded_to
from kvq_batch.models.kvq.statistics import StatisticsEmbedding

# Dropout before each layer of the heads (section 3.4).
_DROPOUT = 0.5


@dataclass(frozen=True, slots=True)
class KvqMaps:
    """Output of the network, all float32; D, H, W is the grid of the last stage.

    `texture` Q, `saliency` S (mean 1 over the cells of each slot) and `logits` (S before its softmax) are [B, D, H, W].
    `levels` [B, blocks, D, H, W] holds the pooled maps of the fusion blocks, `features` [B, D, H, W, C] the tokens
    after the final norm.
    """

    texture: Tensor
    saliency: Tensor
    logits: Tensor
    levels: Tensor
    features: Tensor

    def scores(self) -> Tensor:
        """Return mean(S * Q) of each clip, float64 [B] (section 3.4), as SQL computes it from stored maps."""
        return (self.texture.double() * self.saliency.double()).flatten(1).mean(1)


class KvqNetwork(nn.Module):
    """KVQ network of given sizes. Build it with `build_network`; the constructor sets no weights.

    On a CPU, where batches are not faster, clips are computed one by one, so a score is bit-identical in any batch. On
    a GPU, matrix products of other shapes round differently.
    """

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.fragments_backbone = Backbone(config, compute_dtype)
        width = config.width(config.num_stages - 1)
        self.vqa_head = Head(width, config.head_hidden)
        self.weight_head = Head(width, config.head_hidden) if config.saliency else None
        self.weight_conv = nn.Conv3d(config.num_maps, 1, 1) if config.num_maps else None

    def forward(self, clips: Tensor) -> KvqMaps:
        """Return the maps of normalised clips, float32 [B, 3, T, H, W].

        Raises:
            SpecError: frames of a size that the network cannot run on.
        """
        self.config.maps_shape(clips.shape[2], clips.shape[3], clips.shape[4])
        if self.training or clips.device.type != "cpu" or len(clips) == 1:
            with attention_backends(clips.device):
                return self._run_slots(clips) if self.config.slot_by_slot else self._run(clips)
        parts = [self(clip[None]) for clip in clips]
        return KvqMaps(*(torch.cat(field) for field in zip(*map(_fields, parts), strict=True)))

    def measure(self, clips: Tensor) -> Tensor:
        """Return what tokens are made from, float32 [B, D, H/h, W/w, S]; for networks of statistics only.

        Nothing of it is learned, so a training computes it once.
        """
        embedding = self.fragments_backbone.patch_embed
        assert isinstance(embedding, StatisticsEmbedding)
        return embedding.measure(clips)

    def maps_of_measured(self, measured: Tensor) -> KvqMaps:
        """Return the maps of what `measure` returned; every slot is run as a clip of its own."""
        embedding = self.fragments_backbone.patch_embed
        assert isinstance(embedding, StatisticsEmbedding)
        tokens = embedding.embed(measured.flatten(0, 1)[:, None])
        with attention_backends(measured.device):
            return self._join_slots(self._heads(*self.fragments_backbone.run_stages(tokens)), measured.shape[1])

    def _run_slots(self, clips: Tensor) -> KvqMaps:
        """Run every slot as a clip of its own, and join the maps."""
        slots = torch.unflatten(padded_to(clips, (self.config.patch[0], 1, 1)), 2, (-1, self.config.patch[0]))
        return self._join_slots(self._run(slots.transpose(1, 2).flatten(0, 1)), slots.shape[2])

    def _join_slots(self, maps: KvqMaps, count: int) -> KvqMaps:
        """Return the maps of clips of `count` slots each, for the maps of all slots."""
        texture, saliency, logits = (field.view(-1, count, *field.shape[2:]) for field in _fields(maps)[:3])
        levels = torch.unflatten(maps.levels, 0, (-1, count)).transpose(1, 2).flatten(2, 3)
        features = torch.unflatten(maps.features, 0, (-1, count)).flatten(1, 2)
        return KvqMaps(texture, saliency, logits, levels, features)

    def _run(self, clips: Tensor) -> KvqMaps:
        return self._heads(*self.fragments_backbone(clips))

    def _heads(self, features: Tensor, levels: Tensor) -> KvqMaps:
        texture = self.vqa_head(features)
        logits = torch.zeros_like(texture) if self.weight_head is None else self.weight_head(features)
        if self.weight_conv is not None:
            logits = linear(levels.movedim(1, -1), self.weight_conv).squeeze(-1) + logits
        cells = logits.shape[2] * logits.shape[3]
        salience = cells * torch.softmax(logits.flatten(2), dim=-1).view_as(logits)
        return KvqMaps(texture, salience, logits, levels, features)


class Backbone(nn.Module):
    """Patch embedding, stages and final norm; returns features [B, D, H, W, C] and pooled maps [B, blocks, D, H, W]."""

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = _embedding(config)(config, compute_dtype)
        self.layers = nn.ModuleList(Stage(config, stage, compute_dtype) for stage in range(config.num_stages))
        self.norm = nn.LayerNorm(config.width(config.num_stages - 1), eps=NORM_EPS)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        return self.run_stages(self.patch_embed(clips))

    def run_stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same for tokens [B, D, H, W, C]."""
        patch = self.config.patch
        grids = self.config.grids(x.shape[1] * patch[0], x.shape[2] * patch[1], x.shape[3] * patch[2])
        levels = []
        for stage, layer in enumerate(self.layers):
            x, maps = layer(x)
            if maps and stage in self.config.map_stages:
                step = self.config.pool_step(stage, grids)
                levels.append(F.avg_pool3d(torch.stack(maps, dim=1), (1, step, step)))
        # Without fusion blocks there are no maps.
        none = x.new_zeros(x.shape[0], 0, *x.shape[1:4])
        return normalise_tokens(x, self.norm), torch.cat([none, *levels], dim=1)


class Stage(nn.Module):
    """Blocks of one width, followed by patch merging except in the last stage.

    Returns tokens [B, D, H, W, C], and one float32 map [B, D, H, W] per fusion block, cropped to the grid.
    """

    def __init__(self, config: KvqConfig, stage: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.window = config.window
        self.blocks = nn.ModuleList(Block(config, stage, compute_dtype) for _ in range(config.depths[stage]))
        self.recompute = False
        last = stage == config.num_stages - 1
        self.downsample = None if last else PatchMerging(config.width(stage), compute_dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        grid: Grid = (x.shape[1], x.shape[2], x.shape[3])
        layouts = [window_layout(grid, self.window, is_odd, x.device) for is_odd in (False, True)[: len(self.blocks)]]
        index = bias_index(layouts[0].indices.shape[1], self.window, x.device)
        maps = []
        for i, block in enumerate(self.blocks):
            inputs = (x, layouts[i % 2], index)
            x, salience = checkpoint(block, *inputs, use_reentrant=False) if self.recompute else block(*inputs)
            if salience is not None:
                maps.append(salience)
        return (x if self.downsample is None else self.downsample(x)), maps


class PatchMerging(nn.Module):
    """Merging of 2x2 tokens into one of twice the width; odd sizes are padded with zeros (section 3)."""

    def __init__(self, width: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2 or x.shape[3] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        # Phases in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
        phases = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged = normalise_tokens(torch.cat(phases, dim=-1), self.norm).to(self.compute_dtype)
        return linear(merged, self.reduction).float()


class Head(nn.Module):
    """Head: features [B, D, H, W, C] -> one number per cell [B, D, H, W], in float32; dropout in training mode."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dropout = _DROPOUT
        self.fc_hid = nn.Conv3d(width, hidden, 1)
        self.fc_last = nn.Conv3d(hidden, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.gelu(linear(F.dropout(features, self.dropout, self.training), self.fc_hid))
        return linear(F.dropout(hidden, self.dropout, self.training), self.fc_last).squeeze(-1)


def build_network(
    config: KvqConfig,
    tensors: Mapping[str, Tensor],
    compute_dtype: torch.dtype = torch.float32,
    *,
    is_frozen: bool = False,
) -> KvqNetwork:
    """Build a network in scoring mode around tensors, which it shares; `checkpoint.check_tensors` has checked them.

    The tensors of a frozen network must not change any more: it casts them once and keeps what it derives from them.
    """
    with torch.device("meta"):
        network = KvqNetwork(config, compute_dtype)
    network.load_state_dict(dict(tensors), strict=True, assign=True)
    if is_frozen:
        freeze(network.fragments_backbone, compute_dtype)
    return network.eval()


def _embedding(config: KvqConfig) -> type[PatchEmbedding | ConvolutionalStem | StatisticsEmbedding]:
    if config.statistics:
        return StatisticsEmbedding
    return ConvolutionalStem if config.stem_width else PatchEmbedding


def _fields(maps: KvqMaps) -> tuple[Tensor, ...]:
    return maps.texture, maps.saliency, maps.logits, maps.levels, maps.features
