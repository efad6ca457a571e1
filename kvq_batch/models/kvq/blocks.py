"""Blocks of KVQ's stages (KVQ_SPEC sections 3.1 to 3.3): attention inside and across windows, and the MLP.

The modules hold the parameters under their published names; `attention` has the functions that they call.

Axes: B clips, D slots, H rows, W columns (W windows next to N), C channels, L tokens of a padded grid,
N tokens of a window.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.host_threads import run_tasks
from kvq_batch.models.kvq.attention import (
    WindowGroup,
    WindowLayout,
    cross_window_attention,
    saliencies,
    select_windows,
    step_bytes,
    window_attention,
    window_rows,
)
from kvq_batch.models.kvq.config import KvqConfig

NORM_EPS = 1e-5
# Attention bias between tokens of different regions of a rolled grid: Swin's finite value, as published.
SEPARATION = -100.0

Biases = dict[tuple[WindowLayout, int], Tensor]
"""Attention biases [h, N, N] by layout and kind of windows."""

# Two layouts of eight kinds: a model that scores clips of ever other sizes must not fill the memory.
_MAX_KEPT_BIASES = 16


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
        tokens = tokens.flatten(0, 3)
        in_windows = window_rows(layout, clips)
        num_windows, count = layout.indices.shape
        is_fusion = self.attn.cross_windowattn is not None
        crossed, salience = None, None
        if is_fusion:
            parts = tokens.index_select(0, in_windows).view(-1, count, width)
            exact = normalise_tokens(parts, self.norm1)
            normals = exact.to(self.compute_dtype)
            crossed, salience = self._cross(exact, normals, layout, clips)
        out = torch.empty_like(tokens)
        store = self.attn.bias_store(layout, self.compute_dtype)
        widest = max(4 * width, self.mlp.fc1.out_features) * self.compute_dtype.itemsize
        # Steps fit the cache. Under autograd there is one step, because the gradient of each is as large as `tokens`.
        step = max(1, step_bytes(x.device) // (clips * count * widest))
        num_steps = 1 if torch.is_grad_enabled() else -(-num_windows // step)
        in_parallel = x.device.type == "cpu" and num_steps > 1
        if in_parallel:
            # A multiple of 4: threads, 2 or 4 above all, wait for each other less.
            num_steps = min(num_windows, -(-num_steps // 4) * 4)

        def run_step(groups: tuple[WindowGroup, ...], found: list[Tensor]) -> Tensor:
            within = slice(groups[0].start * clips, groups[-1].stop * clips)
            indices = in_windows[within.start * count : within.stop * count]
            if is_fusion:
                part, normal = parts[within], normals[within]
            else:
                part = tokens.index_select(0, indices).view(-1, count, width)
                normal = normalise_tokens(part, self.norm1).to(self.compute_dtype)
            if self.attn.has_intra:
                sizes = [(group.stop - group.start) * clips for group in groups]
                mixed = self.attn(normal, list(zip(sizes, found, strict=True)))
                part = added(mixed if crossed is None else added(mixed, crossed[within]), part)
            elif crossed is not None:
                part = part + crossed[within]
            part = added(self.mlp(normalise_tokens(part, self.norm2).to(self.compute_dtype)), part)
            return out.index_copy_(0, indices, part.flatten(0, 1))

        def steps() -> Iterator[Callable[[], Tensor]]:
            for groups in layout.steps(num_steps):
                # Biases are computed here, between steps, because steps share them.
                found = (
                    self.attn.biases(layout, groups, index, self.compute_dtype, store) if self.attn.has_intra else []
                )
                yield partial(run_step, groups, found)

        if in_parallel:
            run_tasks(steps(), num_steps)
        else:
            for task in steps():
                out = task()
        grid = out.view(clips, *layout.padded, width)[:, :slots, :rows, :columns]
        return grid, None if salience is None else salience.view(clips, slots, rows, columns)

    def _cross(self, exact: Tensor, normal: Tensor, layout: WindowLayout, clips: int) -> tuple[Tensor, Tensor]:
        """Return cross-window attention, float32 [W * B, N, C], and saliency in grid order, [B, D * H * W].

        Both inputs are normalised tokens [W * B, N, C]: in float32, and in the precision of products.
        """
        cross = self.attn.cross_windowattn
        assert cross is not None
        crossed, by_window = cross(*(torch.unflatten(part, 0, (-1, clips)) for part in (exact, normal)), layout)
        return crossed.flatten(0, 1), by_window.index_select(1, layout.positions)


def added(update: Tensor, x: Tensor) -> Tensor:
    """Return the sum of an update and float32 `x`, in float32. It takes the memory of the update if that is float32."""
    return update.add_(x) if update.dtype == x.dtype else x + update


class WindowAttention(nn.Module):
    """Attention inside windows with a relative position bias; owns the cross-window module, as published."""

    def __init__(self, config: KvqConfig, stage: int) -> None:
        super().__init__()
        width = config.width(stage)
        self.num_heads = config.num_heads[stage]
        self.is_frozen = False
        self._kept_biases: Biases = {}
        rows = 1
        for extent in config.window:
            rows *= 2 * extent - 1
        self.has_intra = config.has_intra(stage)
        if self.has_intra:
            self.relative_position_bias_table = nn.Parameter(torch.empty(rows, self.num_heads))
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)
        top_k = config.top_k[stage]
        self.cross_windowattn = CrossWindowAttention(width, self.num_heads, top_k) if top_k else None

    def bias_store(self, layout: WindowLayout, dtype: torch.dtype) -> Biases:
        """Return where the biases of a forward pass are kept: across passes only if weights are frozen.

        A CPU keeps small ones only: all biases of the published network take 380 MB.
        """
        size = len(layout.groups) * self.num_heads * layout.indices.shape[1] ** 2 * dtype.itemsize
        return self._kept_biases if self.is_frozen and size <= step_bytes(layout.indices.device) else {}

    def biases(
        self, layout: WindowLayout, groups: Sequence[WindowGroup], index: Tensor, dtype: torch.dtype, store: Biases
    ) -> list[Tensor]:
        """Return position bias plus region mask of each group of windows, [h, N, N]."""
        found = []
        for group in groups:
            bias = store.get((layout, group.kind))
            if bias is None:
                if store is not self._kept_biases or len(store) >= _MAX_KEPT_BIASES:
                    # The next step may start in the middle of this group, and needs no earlier one.
                    store.clear()
                bias = store[layout, group.kind] = self._bias(index, group.is_separated, dtype)
            found.append(bias)
        return found

    def _bias(self, index: Tensor, is_separated: Tensor | None, dtype: torch.dtype) -> Tensor:
        # Contiguous, because fused attention copies a strided mask on every call, a third of its time. An embedding,
        # because on a CPU the gradient of plain indexing is summed in an order that depends on threads.
        rows = F.embedding(index.flatten(), self.relative_position_bias_table)
        bias = rows.t().contiguous().view(-1, *index.shape)
        if is_separated is not None:
            bias = bias + SEPARATION * is_separated.to(bias.dtype)
        return bias.to(dtype)

    def forward(self, normal: Tensor, biases: Sequence[tuple[int, Tensor]]) -> Tensor:
        return linear(window_attention(linear(normal, self.qkv), self.num_heads, biases), self.proj)


class CrossWindowAttention(nn.Module):
    """Attention to the windows that the mean query of a window selects, and saliency of every token (section 3.3)."""

    def __init__(self, width: int, num_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.router = WindowRouter(num_heads, top_k)

    def forward(self, exact: Tensor, normal: Tensor, layout: WindowLayout) -> tuple[Tensor, Tensor]:
        """Return mixed tokens [W, B, N, C] and saliency [B, W * N], both float32, of normalised windows [W, B, N, C].

        `exact` are the windows in float32, `normal` in the precision of products.
        """
        windows, weights = self._select(exact, layout)
        qkv = linear(normal, self.qkv)
        mixed = cross_window_attention(qkv, self.num_heads, windows, weights)
        with torch.no_grad():
            width = qkv.shape[-1] // 3
            query, key = qkv.detach()[..., : 2 * width].transpose(0, 1).flatten(1, 2).chunk(2, dim=-1)
            # As published: the dot product is over all heads, but scaled as for one.
            salience = saliencies(query, key, (width // self.num_heads) ** -0.5)
        return linear(mixed, self.proj).float(), salience

    @torch.no_grad()
    def _select(self, exact: Tensor, layout: WindowLayout) -> tuple[Tensor, Tensor]:
        """Return the selection of the router, which sees windows in the order of the grid, in the order of the layout.

        Among equal windows the first of the grid is selected, so the order matters.
        """
        mean = exact.mean(2, dtype=torch.float64).transpose(0, 1)
        if layout.by_grid is None or layout.by_mask is None:
            chosen: tuple[Tensor, Tensor] = self.router(mean, self.qkv)
            return chosen
        windows, weights = self.router(mean.index_select(1, layout.by_grid), self.qkv)
        windows = F.embedding(windows.index_select(2, layout.by_mask), layout.by_grid[:, None]).squeeze(-1)
        return windows, weights.index_select(2, layout.by_mask)


class WindowRouter(nn.Module):
    """Selection of windows, without parameters and gradient. It is a module so that hooks can read its decisions."""

    def __init__(self, num_heads: int, top_k: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.top_k = top_k
        self._exact: tuple[Tensor, Tensor] | None = None

    def freeze(self, qkv: nn.Linear) -> None:
        """Keep the float64 weights of this layer, which will not change."""
        self._exact = self._weights(qkv)

    @torch.no_grad()
    def forward(self, mean: Tensor, qkv: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return `select_windows` for the means of windows and the layer that computes their queries and keys.

        `mean` is float64 [B, W, C], of the normalised tokens of each window. The layer is applied to it in float64.
        That equals the mean of its outputs, and does not depend on the shape or the precision of other products.
        """
        weight, bias = self._weights(qkv) if self._exact is None else self._exact
        query, key = F.linear(mean, weight, bias).chunk(2, dim=-1)
        return select_windows(query, key, self.num_heads, self.top_k)

    @torch.no_grad()
    def _weights(self, qkv: nn.Linear) -> tuple[Tensor, Tensor]:
        rows = 2 * qkv.in_features
        return qkv.weight[:rows].double(), qkv.bias[:rows].double()


class Mlp(nn.Module):
    """Two layers with an exact GELU between them, in the precision of the input."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return linear(F.gelu(linear(x, self.fc1)), self.fc2)


def normalise_tokens(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def freeze(network: nn.Module, compute_dtype: torch.dtype) -> None:
    """Declare that the weights of a backbone do not change any more: cast them once, and let it keep what it derives.

    Only weights of products are cast; norms and bias tables stay float32.
    """
    network.requires_grad_(requires_grad=False)
    for module in network.modules():
        if isinstance(module, CrossWindowAttention):
            module.router.freeze(module.qkv)
        elif isinstance(module, WindowAttention):
            module.is_frozen = True
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            module.to(compute_dtype)


def linear(x: Tensor, layer: nn.Linear | nn.Conv3d) -> Tensor:
    """Apply the layer to the last axis, in the precision of `x`; a convolution is applied to flattened patches."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.flatten(1).to(x.dtype), bias)
