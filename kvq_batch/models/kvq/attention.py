"""Attention of KVQ: the windows of a grid, attention inside and across them, and saliency.

The functions here have no parameters, so each can be tested against its formula (KVQ_SPEC sections 3.1 to 3.3).
Partition, roll and their inverses are one table of token indices: a block gathers some windows, works on them while
they are in cache, and scatters them back. Attention scores are computed in blocks that fit a cache; the L x L matrix of
section 3.3 is never in memory as a whole.

Axes: B clips, n or W windows, N tokens of a window, L = W * N tokens of a clip, h heads, d head width, C = h * d,
K selected windows.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kvq_batch.models.kvq.config import Grid

# Measured on 2 cores (2 MiB L2 each), three runs each: 6 to 8 MiB reach 52-55% of the rate of the matrix products,
# 24 MiB 53%, 48 MiB 52%.
_CPU_STEP_BYTES = 8 << 20
_CUDA_STEP_BYTES = 1 << 30
# The whole key matrix passes through the cache once per block of rows, so blocks are few and large: a clip takes 5%
# less time than with 12 MiB. More than 80 MiB gains nothing.
_CPU_SALIENCY_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class WindowGroup:
    """Windows of one layout that share one attention mask.

    `windows` int64 [n] holds their indices; `is_separated` bool [N, N] is true between tokens of different regions, or
    None if all tokens are of one region.
    """

    windows: Tensor
    is_separated: Tensor | None


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """The windows of one block.

    `indices` int64 [W, N] holds the index of each token in the flat padded grid; `padded` is the size of that grid.
    Windows, and tokens in them, are ordered by (slot, row, column) of the rolled grid.
    """

    padded: Grid
    indices: Tensor
    groups: tuple[WindowGroup, ...]


def window_layout(grid: Grid, window: Grid, is_shifted: bool, device: torch.device) -> WindowLayout:
    """Return the windows of a grid; odd blocks are shifted, even ones are not."""
    size, shift = _fit_window(grid, window, is_shifted)
    counts = tuple(-(-extent // step) for extent, step in zip(grid, size, strict=True))
    padded: Grid = (counts[0] * size[0], counts[1] * size[1], counts[2] * size[2])
    flat = torch.arange(math.prod(padded), device=device).view(padded)
    indices = _partition(torch.roll(flat, [-step for step in shift], dims=(0, 1, 2)), counts, size)

    # Only the last window of a shifted axis has a mask of its own, so there are at most 8 masks.
    regions = torch.zeros(padded, dtype=torch.int64, device=device)
    kinds = torch.zeros(counts, dtype=torch.int64, device=device)
    for axis in range(3):
        if shift[axis]:
            index = torch.arange(padded[axis], device=device)
            start, wrapped = padded[axis] - size[axis], padded[axis] - shift[axis]
            region = (index >= start).long() + (index >= wrapped).long()
            last = (torch.arange(counts[axis], device=device) == counts[axis] - 1).long()
            along = [-1 if other == axis else 1 for other in range(3)]
            regions = regions * 3 + region.view(along)
            kinds = kinds * 2 + last.view(along)
    in_window = _partition(regions, counts, size)
    kinds = kinds.flatten()
    groups = []
    for kind in torch.unique(kinds).tolist():
        windows = (kinds == kind).nonzero().flatten()
        tokens = in_window[windows[0]]
        groups.append(WindowGroup(windows, (tokens[:, None] != tokens[None, :]) if kind else None))
    return WindowLayout(padded, indices, tuple(groups))


def _fit_window(grid: Grid, window: Grid, is_shifted: bool) -> tuple[Grid, Grid]:
    """Return (window, shift) on a grid: no axis of the window exceeds the grid, and a full axis is not shifted."""
    size = [min(extent, full) for extent, full in zip(grid, window, strict=True)]
    # Half a window, rounded as in Swin: (4, 3, 3) for (8, 7, 7).
    shift = [full // 2 if is_shifted and extent > full else 0 for extent, full in zip(grid, window, strict=True)]
    return (size[0], size[1], size[2]), (shift[0], shift[1], shift[2])


def _partition(grid: Tensor, counts: tuple[int, ...], size: Grid) -> Tensor:
    """Reshape [D, H, W] to [windows, tokens of a window]."""
    parts = grid.view(counts[0], size[0], counts[1], size[1], counts[2], size[2])
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(math.prod(counts), math.prod(size))


def bias_index(num_tokens: int, window: Grid, device: torch.device, size: Grid | None = None) -> Tensor:
    """Return the row of the relative position bias table for each pair of tokens, int64 [N, N] (KVQ_SPEC section 3.2).

    `window` is the window of the table. Coordinates are those in a window of `size`; by default those of a full window
    even if the window is smaller, as the published network was trained.
    """
    token = torch.arange(num_tokens, device=device)
    _, rows, columns = size or window
    coordinates = (token // (rows * columns), token // columns % rows, token % columns)
    index = torch.zeros(num_tokens, num_tokens, dtype=torch.int64, device=device)
    for extent, coordinate in zip(window, coordinates, strict=True):
        index = index * (2 * extent - 1) + (coordinate[:, None] - coordinate[None, :] + extent - 1)
    return index


def step_bytes(device: torch.device) -> int:
    """Return the memory that one step of a blocked computation may use: a share of a CPU's cache or a GPU's memory."""
    return _CUDA_STEP_BYTES if device.type == "cuda" else _CPU_STEP_BYTES


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of qkv [..., N, 3C]: views [..., h, N, d]."""
    query, key, value = torch.unflatten(qkv, -1, (3, num_heads, -1)).transpose(-4, -2).unbind(-3)
    return query, key, value


def window_attention(qkv: Tensor, num_heads: int, bias: Tensor) -> Tensor:
    """Return softmax(s q k^T + bias) v of each window, [n, N, C]; qkv is [n, N, 3C], `bias` [h, N, N] (section 3.2)."""
    query, key, value = split_heads(qkv, num_heads)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].expand(len(qkv), -1, -1, -1))
    return mixed.transpose(1, 2).flatten(2)


def select_windows(mean_query: Tensor, mean_key: Tensor, num_heads: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Select the K = min(top_k, W) windows that each window attends to, per head (section 3.3).

    `mean_query` and `mean_key` are float64 [B, W, C], means over the tokens of a window. Returns window indices int64
    [B, h, W, K], best first, the lower index first among equals, and float64 weights of the same shape that sum to 1.
    The precision is float64 because the closest decisions of a clip are 1e-6 apart, and a score must not depend on
    rounding.
    """
    query = torch.unflatten(mean_query, -1, (num_heads, -1)).transpose(1, 2)
    key = torch.unflatten(mean_key, -1, (num_heads, -1)).transpose(1, 2)
    affinity = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    ranked, windows = torch.sort(affinity, dim=-1, descending=True, stable=True)
    return windows[..., :top_k], torch.softmax(ranked[..., :top_k], dim=-1)


def cross_window_attention(qkv: Tensor, num_heads: int, windows: Tensor, weights: Tensor) -> Tensor:
    """Return the attention of each window to the tokens of its selected windows, [B, W, N, C] (section 3.3).

    `qkv` is [B, W, N, 3C]. Keys and values are both scaled by the weight of their window. They are gathered for some
    heads at a time, because all of them take K times the memory of `qkv`. Fused attention is used on a CPU too: on one
    thread, at the sizes of the published stage 3, it reaches 65 GFLOP/s; two products and a softmax reach 44 to 53.
    """
    clips, count, tokens, width = qkv.shape
    selected = windows.shape[-1]
    head_bytes = 2 * clips * count * selected * tokens * (width // 3 // num_heads) * qkv.element_size()
    step = max(1, min(num_heads, step_bytes(qkv.device) // head_bytes))
    # Heads before windows: [B, h, W, N, d].
    query, key, value = (part.transpose(1, 2) for part in split_heads(qkv, num_heads))
    mixed = []
    for first in range(0, num_heads, step):
        heads = slice(first, first + step)
        rows = windows[:, heads].flatten(0, 1)
        scale = weights[:, heads].flatten(0, 1)[..., None].to(torch.promote_types(qkv.dtype, torch.float32))
        keys, values = (_gather(part[:, heads].flatten(0, 1), rows, scale) for part in (key, value))
        out = _attend(query[:, heads].flatten(0, 1), keys, values)
        mixed.append(torch.unflatten(out, 0, (clips, -1)))
    # [B, h, W, N, d] -> [B, W, N, C]
    return torch.cat(mixed, dim=1).permute(0, 2, 3, 1, 4).flatten(3)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(s q k^T) v of [n, N, d].

    It is fused, except on a CPU under autograd if the scores fit a cache: a training step of KVQ-Lite, without its
    statistics, took 0.35 core-seconds with the gradient of fused attention and 0.25 without.
    """
    score_bytes = len(query) * query.shape[-2] * key.shape[-2] * query.element_size()
    if query.device.type == "cpu" and torch.is_grad_enabled() and score_bytes <= _CPU_STEP_BYTES:
        attended = torch.softmax(query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2), dim=-1)
        return attended @ value
    return F.scaled_dot_product_attention(query, key, value)


def _gather(tokens: Tensor, windows: Tensor, scale: Tensor) -> Tensor:
    """Return the tokens of selected windows, times their scale: [n, W, K * N, d] of [n, W, N, d] and [n, W, K]."""
    groups, count, length, width = tokens.shape
    offsets = torch.arange(groups, device=tokens.device)[:, None, None] * count
    flat = tokens.reshape(groups * count, length * width)
    picked = flat.index_select(0, (windows + offsets).flatten()).view(groups, count, -1, length * width)
    return picked.mul_(scale).view(groups, count, -1, width)


def saliencies(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return `saliency` of each clip, float32 [B, L], of [B, L, C] twice. Small clips, as in training, are batched."""
    clips, length, _ = query.shape
    step = _saliency_bytes(query.device) // (4 * length * length)
    if clips == 1 or step < 2:
        return torch.stack([saliency(q, k, scale) for q, k in zip(query, key, strict=True)])
    parts = zip(torch.split(query * scale, step), torch.split(key, step), strict=True)
    return torch.cat([torch.softmax(q @ k.mT, -1, dtype=torch.float32).sum(1) for q, k in parts])


def saliency(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return the column sums of softmax_rows(scale * query key^T): the attention to each token (section 3.3).

    `query` and `key` are [L, C], all windows and all heads of one clip, without gradient. Returns float32 [L] of
    mean 1. The result is exact: each step computes whole rows, and sums are accumulated in float32.
    """
    length, device = len(key), key.device
    # All steps write into one buffer, because new pages of this size cost more than the arithmetic. In float32 the
    # softmax uses it too. A step has few calls, because each call waits for all threads: with sixteen small softmaxes
    # per product, saliency took 4% longer (best of three runs), and 1.2 to 2.3 times as long beside other work.
    step = max(1, min(length, _saliency_bytes(device) // (4 * length)))
    scaled, columns = query * scale, key.t()
    logits = torch.empty(step, length, dtype=query.dtype, device=device)
    rows = logits if query.dtype == torch.float32 else torch.empty(step, length, device=device)
    ones = torch.ones(1, step, device=device)
    total = torch.zeros(1, length, device=device)
    for block in torch.split(scaled, step):
        product = torch.mm(block, columns, out=logits[: len(block)])
        attended = torch.softmax(product, -1, dtype=torch.float32, out=rows[: len(block)])
        total.addmm_(ones[:, : len(block)], attended)
    return total[0]


def _saliency_bytes(device: torch.device) -> int:
    return _CUDA_STEP_BYTES // 2 if device.type == "cuda" else _CPU_SALIENCY_BYTES
