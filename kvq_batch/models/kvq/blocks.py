"""Blocks of KVQ's stages (KVQ_SPEC sections 3.1 to 3.3): attention inside and across windows, and the MLP.

The modules hold the parameters under their published names; `attention` has the functions that they call.

Axes: B clips, D slots, H rows, W columns (W windows next to N), C channels, L tokens of a padded grid,
N tokens of a window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.kvq.attention import (
    WindowLayout,
    cross_window_attention,
    saliencies,
    select_windows,
    step_bytes,
    window_attention,
)
from kvq_batch.models.kvq.config import KvqConfig

NORM_EPS = 1e-5
# Attention bias between tokens of different regions of a rolled grid: Swin's finite value, as published.
SEPARATION = -100.0


class Block(nn.Module):
    """Attention and MLP on windows; a fusion block adds cross-window attention and returns a saliency map."""

    def __init__(self, config: KvqConfig, stage: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        width = config.width(stage)
        self.compute_dtype = compute_dtype
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = WindowAttention(config, stage)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, config.mlp_ratio)

    def forward(self, x: Tensor, layout: WindowLayout, index: Tensor) -> tuple[Tensor, Tensor | None]:
        clips, slots, rows, columns, width = x.shape
        pad = [after - before for after, before in zip(layout.padded, (slots, rows, columns), strict=True)]
        # Padding comes before the norm, so a padded token is the norm's bias, and attention does not mask it
        # (section 3.1).
        tokens = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0])) if any(pad) else x
        tokens = tokens.flatten(1, 3)
        crossed, salience = self._cross(tokens, layout) if self.attn.cross_windowattn is not None else (None, None)
        out = torch.empty_like(tokens)
        count = layout.indices.shape[1]
        widest = max(4 * width, self.mlp.fc1.out_features) * self.compute_dtype.itemsize
        # Steps fit the cache. Under autograd there is one step, because the gradient of each is as large as `tokens`.
        step = max(1, step_bytes(x.device) // (clips * count * widest))
        if torch.is_grad_enabled():
            step = len(layout.indices)
        for group in layout.groups:
            bias = self.attn.bias(index, group.is_separated, self.compute_dtype)
            for windows in torch.split(group.windows, step):
                indices = layout.indices[windows].flatten()
                part = tokens.index_select(1, indices).view(-1, count, width)
                mixed = self.attn(self._norm1(part), bias)
                if crossed is not None:
                    mixed = mixed.add_(crossed.index_select(1, windows).view_as(mixed))
                part = mixed.add_(part)
                part = self.mlp(normalise_tokens(part, self.norm2).to(self.compute_dtype)).add_(part)
                out = out.index_copy_(1, indices, part.view(clips, -1, width))
        grid = torch.unflatten(out, 1, layout.padded)[:, :slots, :rows, :columns]
        if salience is not None:
            salience = torch.unflatten(salience, 1, layout.padded)[:, :slots, :rows, :columns]
        return grid, salience

    def _norm1(self, part: Tensor) -> Tensor:
        return normalise_tokens(part, self.norm1).to(self.compute_dtype)

    def _cross(self, tokens: Tensor, layout: WindowLayout) -> tuple[Tensor, Tensor]:
        """Return cross-window attention of all windows, float32 [B, W, N, C], and saliency in grid order [B, L]."""
        cross = self.attn.cross_windowattn
        assert cross is not None
        normal = normalise_tokens(tokens.index_select(1, layout.indices.flatten()), self.norm1)
        crossed, by_window = cross(torch.unflatten(normal, 1, layout.indices.shape), self.compute_dtype)
        salience = torch.empty_like(by_window)
        salience[:, layout.indices.flatten()] = by_window
        return crossed, salience


class WindowAttention(nn.Module):
    """Attention inside windows with a relative position bias; owns the cross-window module, as published."""

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

    def bias(self, index: Tensor, is_separated: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return position bias plus region mask of one group of windows, [h, N, N]."""
        # Contiguous, because fused attention copies a strided mask on every call, a third of its time. An embedding,
        # because on a CPU the gradient of plain indexing is summed in an order that depends on threads.
        rows = F.embedding(index.flatten(), self.relative_position_bias_table)
        bias = rows.t().contiguous().view(-1, *index.shape)
        if is_separated is not None:
            bias = bias + SEPARATION * is_separated.to(bias.dtype)
        return bias.to(dtype)

    def forward(self, normal: Tensor, bias: Tensor) -> Tensor:
        return linear(window_attention(linear(normal, self.qkv), self.num_heads, bias), self.proj).float()


class CrossWindowAttention(nn.Module):
    """Attention to the windows that the mean query of a window selects, and saliency of every token (section 3.3)."""

    def __init__(self, width: int, num_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.router = WindowRouter(num_heads, top_k)

    def forward(self, normal: Tensor, compute_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return mixed tokens [B, W, N, C] of normalised windows of that shape, and saliency [B, W * N], float32."""
        windows, weights = self.router(normal, self.qkv)
        qkv = linear(normal.to(compute_dtype), self.qkv)
        mixed = cross_window_attention(qkv, self.num_heads, windows, weights)
        with torch.no_grad():
            query, key, _ = qkv.detach().flatten(1, 2).chunk(3, dim=-1)
            # As published: the dot product is over all heads, but scaled as for one.
            scale = (query.shape[-1] // self.num_heads) ** -0.5
            salience = saliencies(query, key, scale)
        return linear(mixed, self.proj).float(), salience


class WindowRouter(nn.Module):
    """Selection of windows, without parameters and gradient. It is a module so that hooks can read its decisions."""

    def __init__(self, num_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.top_k = top_k

    @torch.no_grad()
    def forward(self, normal: Tensor, qkv: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return `select_windows` for windows [B, W, N, C] and the layer that computes their queries and keys.

        The layer is applied to the mean of the tokens, in float64. That equals the mean of its outputs, and does not
        depend on the shape or the precision of other products.
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
        return linear(F.gelu(linear(x, self.fc1)), self.fc2).float()


def normalise_tokens(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def linear(x: Tensor, layer: nn.Linear | nn.Conv3d) -> Tensor:
    """Apply the layer to the last axis, in the precision of `x`; a convolution is applied to flattened patches."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.flatten(1).to(x.dtype), bias)
