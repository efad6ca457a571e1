"""The KVQ network (KVQ_SPEC section 3): normalised clips in, texture and saliency maps out.

Modules and parameters carry the published names, so that a checkpoint loads by name. Parameters stay float32; a
network computes its products in `compute_dtype`, and keeps the residual stream, norms, routing, saliency sums and
heads in float32. Gradients flow (saliency maps and routing are detached, as published), but there is no dropout, no
loss and no initialisation here: the network is made for inference, and is built around tensors that exist.

Axes: B clips, T frames, D slots, H rows, W columns, C channels, L tokens of a padded grid, N tokens of a window.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.kvq.attention import (
    cross_window_attention,
    saliency,
    select_windows,
    step_bytes,
    window_attention,
)
from kvq_batch.models.kvq.config import Grid, KvqConfig
from kvq_batch.models.kvq.windows import WindowLayout, bias_index, window_layout

_NORM_EPS = 1e-5
# Between tokens of different regions of a rolled grid; Swin's finite value, as published.
_SEPARATION = -100.0


@dataclass(frozen=True, slots=True)
class KvqMaps:
    """What the network returns, all float32; D, H, W are the last stage's grid.

    `texture` Q, `saliency` S (mean 1 over the cells of each slot) and `logits` (S before its softmax) are [B, D, H, W];
    `levels` [B, blocks, D, H, W] are the pooled maps of the fusion blocks; `features` [B, D, H, W, C] the final norm.
    """

    texture: Tensor
    saliency: Tensor
    logits: Tensor
    levels: Tensor
    features: Tensor

    def scores(self) -> Tensor:
        """mean(S * Q) of each clip, float64 [B] (section 3.4), summed in float64 as SQL does over stored maps."""
        return (self.texture.double() * self.saliency.double()).flatten(1).mean(1)


class KvqNetwork(nn.Module):
    """One member of the family. Build it with `build_network`; a bare one has no weights.

    A score depends on its clip alone: on a CPU, where batches bring no speed, clips are computed one by one and the
    result is the same to the last bit; on a GPU matrix products of other shapes round differently.
    """

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.fragments_backbone = Backbone(config, compute_dtype)
        width = config.width(config.num_stages - 1)
        self.vqa_head = Head(width, config.head_hidden)
        self.weight_head = Head(width, config.head_hidden)
        self.weight_conv = nn.Conv3d(config.num_maps, 1, 1)

    def forward(self, clips: Tensor) -> KvqMaps:
        """Maps of normalised clips, float32 [B, 3, T, H, W].

        Raises:
            SpecError: frames of a size that the network cannot run on.
        """
        self.config.maps_shape(clips.shape[2], clips.shape[3], clips.shape[4])
        if clips.device.type == "cuda" or len(clips) == 1:
            return self._run(clips)
        parts = [self._run(clip[None]) for clip in clips]
        return KvqMaps(*(torch.cat(field) for field in zip(*map(_fields, parts), strict=True)))

    def _run(self, clips: Tensor) -> KvqMaps:
        features, levels = self.fragments_backbone(clips)
        texture = self.vqa_head(features)
        logits = _linear(levels.movedim(1, -1), self.weight_conv).squeeze(-1) + self.weight_head(features)
        cells = logits.shape[2] * logits.shape[3]
        salience = cells * torch.softmax(logits.flatten(2), dim=-1).view_as(logits)
        return KvqMaps(texture, salience, logits, levels, features)


class Backbone(nn.Module):
    """Patch embedding, stages and the final norm: features [B, D, H, W, C] and pooled maps [B, blocks, D, H, W]."""

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config, compute_dtype)
        self.layers = nn.ModuleList(Stage(config, stage, compute_dtype) for stage in range(config.num_stages))
        self.norm = nn.LayerNorm(config.width(config.num_stages - 1), eps=_NORM_EPS)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        x: Tensor = self.patch_embed(clips)
        grids = self.config.grids(clips.shape[2], clips.shape[3], clips.shape[4])
        levels = []
        for stage, layer in enumerate(self.layers):
            x, maps = layer(x)
            if maps:
                step = self.config.pool_step(stage, grids)
                levels.append(F.avg_pool3d(torch.stack(maps, dim=1), (1, step, step)))
        return _normalise(x, self.norm), torch.cat(levels, dim=1)


class PatchEmbedding(nn.Module):
    """[B, 3, T, H, W] -> [B, D, H, W, C]: a convolution whose steps are its kernel, hence one matrix product."""

    def __init__(self, config: KvqConfig, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.patch = config.patch
        self.compute_dtype = compute_dtype
        self.proj = nn.Conv3d(3, config.embed_dim, config.patch, config.patch)
        self.norm = nn.LayerNorm(config.embed_dim, eps=_NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        frames, rows, columns = self.patch
        short = [-extent % step for extent, step in zip(clips.shape[2:], self.patch, strict=True)]
        if any(short):
            clips = F.pad(clips, (0, short[2], 0, short[1], 0, short[0]))
        slots, height, width = (extent // step for extent, step in zip(clips.shape[2:], self.patch, strict=True))
        parts = clips.view(len(clips), 3, slots, frames, height, rows, width, columns)
        patches = parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).to(self.compute_dtype)
        return _normalise(_linear(patches, self.proj).float(), self.norm)


class Stage(nn.Module):
    """Blocks of one width, and the merging that follows them but in the last stage.

    Returns tokens [B, D, H, W, C] and one float32 map [B, D, H, W] per fusion block, cropped to the grid.
    """

    def __init__(self, config: KvqConfig, stage: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.window = config.window
        self.blocks = nn.ModuleList(Block(config, stage, compute_dtype) for _ in range(config.depths[stage]))
        last = stage == config.num_stages - 1
        self.downsample = None if last else PatchMerging(config.width(stage), compute_dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        grid: Grid = (x.shape[1], x.shape[2], x.shape[3])
        layouts = [window_layout(grid, self.window, shifted, x.device) for shifted in (False, True)[: len(self.blocks)]]
        index = bias_index(layouts[0].positions.shape[1], self.window, x.device)
        maps = []
        for number, block in enumerate(self.blocks):
            x, salience = block(x, layouts[number % 2], index)
            if salience is not None:
                maps.append(salience)
        return (x if self.downsample is None else self.downsample(x)), maps


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width; odd ends are padded with zeros (section 3)."""

    def __init__(self, width: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        # Phases in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
        phases = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged = _normalise(torch.cat(phases, dim=-1), self.norm).to(self.compute_dtype)
        return _linear(merged, self.reduction).float()


class Block(nn.Module):
    """Attention and MLP on windows; a fusion block adds cross-window attention and gives a saliency map."""

    def __init__(self, config: KvqConfig, stage: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        width = config.width(stage)
        self.compute_dtype = compute_dtype
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = WindowAttention(config, stage)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = Mlp(width, config.mlp_ratio)

    def forward(self, x: Tensor, layout: WindowLayout, index: Tensor) -> tuple[Tensor, Tensor | None]:
        clips, slots, rows, columns, width = x.shape
        pad = [after - before for after, before in zip(layout.padded, (slots, rows, columns), strict=True)]
        # Padding comes before the norm, so a padded token enters attention as the norm's bias, unmasked (section 3.1).
        tokens = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0])) if any(pad) else x
        tokens = tokens.flatten(1, 3)
        crossed, salience = self._cross(tokens, layout) if self.attn.cross_windowattn is not None else (None, None)
        out = torch.empty_like(tokens)
        count = layout.positions.shape[1]
        widest = max(4 * width, self.mlp.fc1.out_features) * self.compute_dtype.itemsize
        step = max(1, step_bytes(x.device) // (clips * count * widest))
        for group in layout.groups:
            bias = self.attn.bias(index, group.separated, self.compute_dtype)
            for windows in torch.split(group.windows, step):
                places = layout.positions[windows].flatten()
                part = tokens.index_select(1, places).view(-1, count, width)
                mixed = self.attn(self._norm1(part), bias)
                if crossed is not None:
                    mixed = mixed.add_(crossed.index_select(1, windows).view_as(mixed))
                part = mixed.add_(part)
                part = self.mlp(_normalise(part, self.norm2).to(self.compute_dtype)).add_(part)
                out = out.index_copy_(1, places, part.view(clips, -1, width))
        grid = torch.unflatten(out, 1, layout.padded)[:, :slots, :rows, :columns]
        if salience is not None:
            salience = torch.unflatten(salience, 1, layout.padded)[:, :slots, :rows, :columns]
        return grid, salience

    def _norm1(self, part: Tensor) -> Tensor:
        return _normalise(part, self.norm1).to(self.compute_dtype)

    def _cross(self, tokens: Tensor, layout: WindowLayout) -> tuple[Tensor, Tensor]:
        """Cross-window attention of all windows [B, W, N, C], float32, and saliency in grid order [B, L]."""
        cross = self.attn.cross_windowattn
        assert cross is not None
        normal = _normalise(tokens.index_select(1, layout.positions.flatten()), self.norm1)
        crossed, by_window = cross(torch.unflatten(normal, 1, layout.positions.shape), self.compute_dtype)
        salience = torch.empty_like(by_window)
        salience[:, layout.positions.flatten()] = by_window
        return crossed, salience


class WindowAttention(nn.Module):
    """Attention inside windows with a relative position bias; holds the cross-window module as published."""

    def __init__(self, config: KvqConfig, stage: int) -> None:
        super().__init__()
        width = config.width(stage)
        self.num_heads = config.num_heads[stage]
        rows = 1
        for extent in config.window:
            rows *= 2 * extent - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, self.num_heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        top_k = config.top_k[stage]
        self.cross_windowattn = CrossWindowAttention(width, self.num_heads, top_k) if top_k else None

    def bias(self, index: Tensor, separated: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Position bias and region mask of one group of windows: [h, N, N]."""
        # Contiguous: fused attention copies a strided mask on every call, which cost a third of its time.
        bias = self.relative_position_bias_table[index.flatten()].t().contiguous().view(-1, *index.shape)
        if separated is not None:
            bias = bias + _SEPARATION * separated.to(bias.dtype)
        return bias.to(dtype)

    def forward(self, normal: Tensor, bias: Tensor) -> Tensor:
        return _linear(window_attention(_linear(normal, self.qkv), self.num_heads, bias), self.proj).float()


class CrossWindowAttention(nn.Module):
    """Attention to the windows that a window's mean query selects, and the saliency of every token (section 3.3)."""

    def __init__(self, width: int, num_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.router = WindowRouter(num_heads, top_k)

    def forward(self, normal: Tensor, compute_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Normalised windows, float32 [B, W, N, C] -> mixed tokens of that shape, and saliency float32 [B, W * N]."""
        windows, weights = self.router(normal, self.qkv)
        qkv = _linear(normal.to(compute_dtype), self.qkv)
        mixed = cross_window_attention(qkv, self.num_heads, windows, weights)
        with torch.no_grad():
            query, key, _ = qkv.detach().flatten(1, 2).chunk(3, dim=-1)
            # The dot product runs over all heads but is scaled as one: published so.
            scale = (query.shape[-1] // self.num_heads) ** -0.5
            salience = torch.stack([saliency(q, k, scale) for q, k in zip(query, key, strict=True)])
        return _linear(mixed, self.proj).float(), salience


class WindowRouter(nn.Module):
    """Which windows attend to which; no parameters and no gradient. A module, so that a hook can watch decisions."""

    def __init__(self, num_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.top_k = top_k

    @torch.no_grad()
    def forward(self, normal: Tensor, qkv: nn.Linear) -> tuple[Tensor, Tensor]:
        """Windows [B, W, N, C] and the layer that makes their queries and keys -> `select_windows`.

        The mean of a linear layer is the layer of the mean, taken here in float64: no rounding of a product of
        another shape or of a lower precision comes in between.
        """
        width = normal.shape[-1]
        mean = normal.mean(2, dtype=torch.float64)
        both = F.linear(mean, qkv.weight[: 2 * width].double(), qkv.bias[: 2 * width].double())
        query, key = both.chunk(2, dim=-1)
        return select_windows(query, key, self.num_heads, self.top_k)


class Mlp(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return _linear(F.gelu(_linear(x, self.fc1)), self.fc2).float()


class Head(nn.Module):
    """Features [B, D, H, W, C] -> one number per cell [B, D, H, W], in float32."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc_hid = nn.Conv3d(width, hidden, 1)
        self.fc_last = nn.Conv3d(hidden, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        return _linear(F.gelu(_linear(features, self.fc_hid)), self.fc_last).squeeze(-1)


def build_network(
    config: KvqConfig, tensors: Mapping[str, Tensor], compute_dtype: torch.dtype = torch.float32
) -> KvqNetwork:
    """A network around given tensors, which it shares; names and shapes are those of `config.tensor_shapes`.

    `checkpoint` is where they are checked; a mismatch here is a fault of ours and raises torch's RuntimeError.
    """
    with torch.device("meta"):
        network = KvqNetwork(config, compute_dtype)
    network.load_state_dict(dict(tensors), strict=True, assign=True)
    return network.eval()


def _fields(maps: KvqMaps) -> tuple[Tensor, ...]:
    return maps.texture, maps.saliency, maps.logits, maps.levels, maps.features


def _normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _linear(x: Tensor, layer: nn.Linear | nn.Conv3d) -> Tensor:
    """The layer on the last axis, in the precision of `x`; a convolution counts as the matrix that it is on patches."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.flatten(1).to(x.dtype), bias)
