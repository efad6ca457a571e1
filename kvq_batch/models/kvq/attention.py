"""The three products of KVQ's attention: inside windows, across windows, and the saliency that falls off the second.

All scores of attention live in blocks that fit a cache: the L x L matrix of section 3.3 never exists. Parameters live
in `network`; this module deliberately has none, so that each product can be tested against its formula.

Axes: B clips, n or W windows, N tokens of a window, L = W * N tokens of a clip, h heads, d head width, C = h * d,
K selected windows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Measured on 2 cores (2 MiB L2 each), three runs each: 6 to 8 MiB 52-55% of the products' rate, 24 MiB 53%, 48 MiB 52%.
_CPU_STEP_BYTES = 8 << 20
_CUDA_STEP_BYTES = 1 << 30
# The whole key matrix passes through the cache once per block of rows, so few large blocks: the clip takes 5% less
# time than with 12 MiB; from 80 MiB on there is no more to win.
_CPU_SALIENCY_BYTES = 32 << 20


def step_bytes(device: torch.device) -> int:
    """How much one step of a blocked computation may hold: a share of the last cache, or of a GPU's memory."""
    return _CUDA_STEP_BYTES if device.type == "cuda" else _CPU_STEP_BYTES


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[..., N, 3C] -> queries, keys and values, views [..., h, N, d]; q, k, v in this order, head-major inside."""
    query, key, value = torch.unflatten(qkv, -1, (3, num_heads, -1)).transpose(-4, -2).unbind(-3)
    return query, key, value


def window_attention(qkv: Tensor, num_heads: int, bias: Tensor) -> Tensor:
    """softmax(s q k^T + bias) v inside each window: [n, N, 3C] -> [n, N, C]; `bias` is [h, N, N] (section 3.2)."""
    query, key, value = split_heads(qkv, num_heads)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].expand(len(qkv), -1, -1, -1))
    return mixed.transpose(1, 2).flatten(2)


def select_windows(mean_query: Tensor, mean_key: Tensor, num_heads: int, top_k: int) -> tuple[Tensor, Tensor]:
    """The K = min(top_k, W) windows that each window attends to, per head, and their weights (section 3.3).

    `mean_query` and `mean_key` are float64 [B, W, C], means over the tokens of a window. Returns window numbers int64
    [B, h, W, K], best first, of equals the lowest number, and float64 weights of the same shape that sum to 1.
    Float64, because the closest decisions of a clip are 1e-6 apart: a score must not depend on rounding.
    """
    query = torch.unflatten(mean_query, -1, (num_heads, -1)).transpose(1, 2)
    key = torch.unflatten(mean_key, -1, (num_heads, -1)).transpose(1, 2)
    affinity = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    ranked, windows = torch.sort(affinity, dim=-1, descending=True, stable=True)
    return windows[..., :top_k], torch.softmax(ranked[..., :top_k], dim=-1)


def cross_window_attention(qkv: Tensor, num_heads: int, windows: Tensor, weights: Tensor) -> Tensor:
    """Each window attends to the tokens of its selected windows: [B, W, N, 3C] -> [B, W, N, C] (section 3.3).

    Keys and values are both scaled by the weight of their window. Only some heads' gathered keys and values exist at
    a time: all of them would be K times the size of `qkv`. Fused attention on a CPU too: on one thread, at the sizes of
    the published stage 3, it does 65 GFLOP/s where a product, a softmax in place and a product do 44 to 53, in blocks
    of any size.
    """
    clips, count, tokens, width = qkv.shape
    chosen = windows.shape[-1]
    head_bytes = 2 * clips * count * chosen * tokens * (width // 3 // num_heads) * qkv.element_size()
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
    """softmax(s q k^T) v of [n, N, d], fused; but where a CPU has to find gradients of what fits a cache.

    There the fused gradient is slow: a training step of KVQ-Lite, its statistics not counted, took 0.35 core-seconds
    with it, and 0.25 without.
    """
    held = len(query) * query.shape[-2] * key.shape[-2] * query.element_size()
    if query.device.type == "cpu" and torch.is_grad_enabled() and held <= _CPU_STEP_BYTES:
        attended = torch.softmax(query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2), dim=-1)
        return attended @ value
    return F.scaled_dot_product_attention(query, key, value)


def _gather(tokens: Tensor, windows: Tensor, scale: Tensor) -> Tensor:
    """The tokens [n, W, N, d] of selected windows [n, W, K], times their scale: [n, W, K * N, d]."""
    groups, count, length, width = tokens.shape
    offsets = torch.arange(groups, device=tokens.device)[:, None, None] * count
    flat = tokens.reshape(groups * count, length * width)
    picked = flat.index_select(0, (windows + offsets).flatten()).view(groups, count, -1, length * width)
    return picked.mul_(scale).view(groups, count, -1, width)


def saliencies(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """`saliency` of each clip: [B, L, C] and [B, L, C] -> float32 [B, L]. Small clips, as training has, go together."""
    clips, length, _ = query.shape
    step = _saliency_bytes(query.device) // (4 * length * length)
    if clips == 1 or step < 2:
        return torch.stack([saliency(q, k, scale) for q, k in zip(query, key, strict=True)])
    parts = zip(torch.split(query * scale, step), torch.split(key, step), strict=True)
    return torch.cat([torch.softmax(q @ k.mT, -1, dtype=torch.float32).sum(1) for q, k in parts])


def saliency(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Column sums of softmax_rows(scale * query key^T): how much all tokens attend to each one (section 3.3).

    `query` and `key` are [L, C], all windows and all heads of one clip, without gradient. Returns float32 [L] of
    mean 1, exact: whole rows are worked on, some at a time, and the sums are accumulated in float32.
    """
    length, device = len(key), key.device
    # All steps write into one buffer: fresh ones of this size are fresh pages each time, and cost more than the
    # arithmetic. In float32 the softmax stays in it too. A step is three calls, because each waits for all threads:
    # with sixteen small softmaxes to a product, saliency took 4% longer, best of three runs of each, and 1.2
    # to 2.3 times as long beside other work (six pairs).
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
