"""Attention of KVQ: the windows of a grid, attention inside and across them, and saliency.

The functions here have no parameters, so each can be tested against its formula (KVQ_SPEC sections 3.1 to 3.3).
Partition, roll and their inverses are one table of token indices: a block gathers some windows, works on them while
they are in cache, and scatters them back. Attention scores are computed in blocks that fit a cache; the L x L matrix of
section 3.3 is never in memory as a whole.

The host runs ahead of a GPU, so nothing here reads a value from a device: what depends on shapes only is computed on
the host, once, and kept for each device.

Axes: B clips, n or W windows, N tokens of a window, L = W * N tokens of a clip, h heads, d head width, C = h * d,
K selected windows.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvq_batch.models.host_threads import run_tasks
from kvq_batch.models.kvq.config import Grid

_LOG = logging.getLogger(__name__)

# Measured on 2 cores (2 MiB L2 each), three runs each: 6 to 8 MiB reach 52-55% of the rate of the matrix products,
# 24 MiB 53%, 48 MiB 52%.
_CPU_STEP_BYTES = 8 << 20
_CUDA_STEP_BYTES = 1 << 30
# Of each thread. The whole key matrix passes through the cache once per block of rows, so blocks are large: on one
# thread, blocks of 128, 224, 334, 448 and 668 rows of 12544 (6 to 32 MiB) take 1.79, 1.61, 1.52, 1.50 and 1.50 s.
_CPU_SALIENCY_BYTES = 22 << 20


@dataclass(frozen=True, slots=True)
class WindowGroup:
    """Windows of one layout that share one attention mask: those from `start` to before `stop`.

    `kind` is the number of the mask in the layout. `is_separated` bool [N, N] is true between tokens of different
    regions, or None if all tokens are of one region.
    """

    kind: int
    start: int
    stop: int
    is_separated: Tensor | None


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """The windows of one block, on one device. It is immutable and shared: `window_layout` keeps it.

    `indices` int64 [W, N] holds the index of each token in the flat padded grid; `padded` is the size of that grid.
    `positions` int64 [D * H * W] holds the position, in `indices`, of each token of the grid without padding.
    Windows are ordered by mask, so a group is a slice, and then by (slot, row, column) of the rolled grid, as tokens
    in them are. `by_grid` and `by_mask` int64 [W] translate this order: `by_grid[i]` is the window that is number i in
    the rolled grid, and `by_mask` is its inverse. Both are None if the orders are the same.
    """

    padded: Grid
    indices: Tensor
    positions: Tensor
    groups: tuple[WindowGroup, ...]
    by_grid: Tensor | None
    by_mask: Tensor | None

    def steps(self, number: int) -> Iterator[tuple[WindowGroup, ...]]:
        """Yield the windows in steps of equal size: for each step the groups, or slices of them."""
        count = len(self.indices)
        for step in range(number):
            start, stop = step * count // number, (step + 1) * count // number
            yield tuple(
                replace(group, start=max(start, group.start), stop=min(stop, group.stop))
                for group in self.groups
                if group.start < stop and group.stop > start
            )


@lru_cache(maxsize=64)
def window_layout(grid: Grid, window: Grid, is_shifted: bool, device: torch.device) -> WindowLayout:
    """Return the windows of a grid; odd blocks are shifted, even ones are not.

    Layouts are computed on the host and kept, so a device never waits for one.
    """
    size, shift = _fit_window(grid, window, is_shifted)
    counts = tuple(-(-extent // step) for extent, step in zip(grid, size, strict=True))
    padded: Grid = (counts[0] * size[0], counts[1] * size[1], counts[2] * size[2])
    flat = np.arange(math.prod(padded)).reshape(padded)
    indices = _partition(np.roll(flat, [-step for step in shift], axis=(0, 1, 2)), counts, size)

    # Only the last window of a shifted axis has a mask of its own, so there are at most 8 masks.
    regions = np.zeros(padded, np.int64)
    kinds = np.zeros(counts, np.int64)
    for axis in range(3):
        if shift[axis]:
            index = np.arange(padded[axis])
            start, wrapped = padded[axis] - size[axis], padded[axis] - shift[axis]
            region = (index >= start).astype(np.int64) + (index >= wrapped)
            last = np.arange(counts[axis]) == counts[axis] - 1
            along = [-1 if other == axis else 1 for other in range(3)]
            regions = regions * 3 + region.reshape(along)
            kinds = kinds * 2 + last.reshape(along)
    in_window = _partition(regions, counts, size)
    order = np.argsort(kinds, axis=None, kind="stable")
    groups: list[WindowGroup] = []
    for kind, start, count in zip(*np.unique(kinds.ravel()[order], return_index=True, return_counts=True), strict=True):
        tokens = in_window[order[start]]
        separated = constant(tokens[:, None] != tokens[None, :], device) if kind else None
        groups.append(WindowGroup(len(groups), int(start), int(start + count), separated))
    rank = np.argsort(order)
    is_same = np.array_equal(order, np.arange(len(order)))
    positions = np.argsort(indices[order], axis=None).reshape(padded)[: grid[0], : grid[1], : grid[2]].ravel()
    return WindowLayout(
        padded,
        constant(indices[order], device),
        constant(positions, device),
        tuple(groups),
        None if is_same else constant(rank, device),
        None if is_same else constant(order, device),
    )


@lru_cache(maxsize=64)
def window_rows(layout: WindowLayout, clips: int) -> Tensor:
    """Return the row of each token of each window in tokens [B * L, C] of padded grids, int64 [W * B * N].

    Windows come before clips, so that a group of windows is a slice of all clips.
    """
    length = math.prod(layout.padded)
    with torch.inference_mode(False):
        first = torch.arange(clips, device=layout.indices.device) * length
        return (layout.indices[:, None] + first[:, None]).flatten()


def constant(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor that is kept: it can be used with gradients too, wherever it was first needed."""
    with torch.inference_mode(False):
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _fit_window(grid: Grid, window: Grid, is_shifted: bool) -> tuple[Grid, Grid]:
    """Return (window, shift) on a grid: no axis of the window exceeds the grid, and a full axis is not shifted."""
    size = [min(extent, full) for extent, full in zip(grid, window, strict=True)]
    # Half a window, rounded as in Swin: (4, 3, 3) for (8, 7, 7).
    shift = [full // 2 if is_shifted and extent > full else 0 for extent, full in zip(grid, window, strict=True)]
    return (size[0], size[1], size[2]), (shift[0], shift[1], shift[2])


def _partition(grid: NDArray[np.int64], counts: tuple[int, ...], size: Grid) -> NDArray[np.int64]:
    """Reshape [D, H, W] to [windows, tokens of a window]."""
    parts = grid.reshape(counts[0], size[0], counts[1], size[1], counts[2], size[2])
    return parts.transpose(0, 2, 4, 1, 3, 5).reshape(math.prod(counts), math.prod(size))


@lru_cache(maxsize=64)
def bias_index(num_tokens: int, window: Grid, device: torch.device, size: Grid | None = None) -> Tensor:
    """Return the row of the relative position bias table for each pair of tokens, int64 [N, N] (KVQ_SPEC section 3.2).

    `window` is the window of the table. Coordinates are those in a window of `size`; by default those of a full window
    even if the window is smaller, as the published network was trained.
    """
    token = np.arange(num_tokens)
    _, rows, columns = size or window
    coordinates = (token // (rows * columns), token // columns % rows, token % columns)
    index = np.zeros((num_tokens, num_tokens), np.int64)
    for extent, coordinate in zip(window, coordinates, strict=True):
        index = index * (2 * extent - 1) + (coordinate[:, None] - coordinate[None, :] + extent - 1)
    return constant(index, device)


# The first of these that can compute a call does. Flash attention takes no bias, so it serves cross-window attention;
# memory-efficient attention reads a bias that windows share without copying it. cuDNN plans each shape, and is slow to
# start. Without an order, torch's own heuristics choose, which differ between its releases.
_CUDA_BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)


def attention_backends(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which fused attention chooses its backend on a device; nothing changes on a CPU."""
    return nullcontext() if device.type == "cpu" else sdpa_kernel(list(_CUDA_BACKENDS), set_priority=True)


def step_bytes(device: torch.device) -> int:
    """Return the memory that one step of a blocked computation may use: a share of a CPU's cache or a GPU's memory."""
    return _CPU_STEP_BYTES if device.type == "cpu" else _CUDA_STEP_BYTES


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of qkv [..., N, 3C]: views [..., h, N, d]."""
    query, key, value = torch.unflatten(qkv, -1, (3, num_heads, -1)).transpose(-4, -2).unbind(-3)
    return query, key, value


def window_attention(qkv: Tensor, num_heads: int, biases: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Return softmax(s q k^T + bias) v of each window, [n, N, C]; qkv is [n, N, 3C] (section 3.2).

    `biases` are the biases [h, N, N] of successive windows, each with the number of windows that share it.
    """
    query, key, value = split_heads(qkv, num_heads)
    mixed, start = [], 0
    for count, bias in biases:
        part = slice(start, start + count)
        mask = bias[None].expand(count, -1, -1, -1)
        out = F.scaled_dot_product_attention(query[part], key[part], value[part], attn_mask=mask)
        mixed.append(out.transpose(1, 2).flatten(2))
        start += count
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


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
    """Return the attention of each window to the tokens of its selected windows, [W, B, N, C] (section 3.3).

    `qkv` is [W, B, N, 3C], `windows` and `weights` are [B, h, W, K]. Keys and values are both scaled by the weight of
    their window. They are gathered for some heads at a time, because all of them take K times the memory of `qkv`.
    Fused attention is used on a CPU too: on one thread, at the sizes of the published stage 3, it reaches 65 GFLOP/s;
    two products and a softmax reach 44 to 53.
    """
    count, clips, tokens, width = qkv.shape
    selected = windows.shape[-1]
    head_bytes = 2 * clips * count * selected * tokens * (width // 3 // num_heads) * qkv.element_size()
    step = max(1, min(num_heads, step_bytes(qkv.device) // head_bytes))
    # [W, B, h, N, d] -> [B, h, W, N, d]
    query, key, value = (part.permute(1, 2, 0, 3, 4) for part in split_heads(qkv, num_heads))
    parts = [slice(first, first + step) for first in range(0, num_heads, step)]
    mixed: dict[int, Tensor] = {}

    def attend(number: int) -> None:
        heads = parts[number]
        rows = windows[:, heads].flatten(0, 1)
        scale = weights[:, heads].flatten(0, 1)[..., None].to(torch.promote_types(qkv.dtype, torch.float32))
        keys, values = (_gather(part[:, heads].flatten(0, 1), rows, scale) for part in (key, value))
        out = _attend(query[:, heads].flatten(0, 1), keys, values)
        mixed[number] = torch.unflatten(out, 0, (clips, -1))

    _run_in_steps(attend, len(parts), qkv.device)
    # [B, h, W, N, d] -> [W, B, N, C]
    joined = mixed[0] if len(mixed) == 1 else torch.cat([mixed[number] for number in range(len(parts))], dim=1)
    return joined.permute(2, 0, 3, 1, 4).flatten(3)


def _run_in_steps(run: Callable[[int], object], number: int, device: torch.device) -> None:
    """Run numbered steps that fit a cache; on a CPU several at a time, except under autograd."""
    if device.type == "cpu" and not torch.is_grad_enabled():
        run_tasks((partial(run, step) for step in range(number)), number)
    else:
        for step in range(number):
            run(step)


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
    flat = tokens.reshape(groups * count, length * width)
    rows = (windows + _offsets(groups, count, tokens.device)).flatten()
    picked = flat.index_select(0, rows).view(groups, count, -1, length * width)
    return picked.mul_(scale).view(groups, count, -1, width)


@lru_cache(maxsize=64)
def _offsets(groups: int, count: int, device: torch.device) -> Tensor:
    """Return the number of windows before those of each group, int64 [n, 1, 1]."""
    return constant(np.arange(groups)[:, None, None] * count, device)


def saliencies(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return `saliency` of each clip, float32 [B, L], of [B, L, C] twice. Small clips, as in training, are batched."""
    clips, length, _ = query.shape
    # Scores in bf16 and fp32 are stored with fingerprints that do not know the kernel.
    fused = _fused_column_sums(query.device) if query.is_cuda and query.dtype == torch.float16 else None
    if fused is not None:
        return fused(query, key, scale)
    step = _saliency_bytes(query.device) // (4 * length * length)
    # On a GPU, whole matrices of single clips are few kernels.
    if step < 1 or (query.device.type == "cpu" and (clips == 1 or step < 2)):
        return torch.stack([saliency(q, k, scale) for q, k in zip(query, key, strict=True)])
    parts = zip(torch.split(query * scale, step), torch.split(key, step), strict=True)
    return torch.cat([torch.softmax(_logits(q, k.mT), -1, dtype=torch.float32).sum(1) for q, k in parts])


@cache
def _fused_column_sums(device: torch.device) -> Callable[[Tensor, Tensor, float], Tensor] | None:
    """Return the Triton kernel for `saliencies`, None if Triton is missing or does not work here."""
    try:
        from kvq_batch.models.kvq import saliency_kernel
    except ImportError as error:
        _LOG.info("saliency runs without its Triton kernel: %s", error)
        return None
    return saliency_kernel.column_sums if saliency_kernel.is_usable(device) else None


def _logits(query: Tensor, keys: Tensor) -> Tensor:
    """Return the products of two batches of matrices.

    Those of fp16 are float32: logits of 32 in fp16 are 1/32 apart, so their exponentials would be wrong by 1.5%.
    """
    if query.dtype != torch.float16:
        return query @ keys
    if query.device.type == "cpu":
        return query.float() @ keys.float()
    found: Tensor = torch.bmm(query, keys, out_dtype=torch.float32)
    return found


def saliency(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return the column sums of softmax_rows(scale * query key^T): the attention to each token (section 3.3).

    `query` and `key` are [L, C], all windows and all heads of one clip, without gradient. Returns float32 [L] of
    mean 1. The result is exact: each step computes whole rows, and sums are accumulated in float32.
    """
    if query.dtype == torch.float16:
        # The logits of fp16 are float32, as in `_logits`.
        query, key = query.float(), key.float()
    length, device = len(key), key.device
    # Steps of equal size, for threads that share them. A step has few calls, because each call waits for the threads
    # that it runs on: with sixteen small softmaxes per product, saliency took 4% longer (best of three runs), and 1.2
    # to 2.3 times as long beside other work.
    number = -(-length // max(1, _saliency_bytes(device) // (4 * length)))
    blocks = torch.split(query * scale, -(-length // number))
    columns, ones = key.t(), torch.ones(1, len(blocks[0]), device=device)
    totals = torch.empty(len(blocks), length, device=device)
    # All steps of a thread write into one buffer, because new pages of this size cost more than the arithmetic. In
    # float32 the softmax uses it too.
    buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def sum_columns(step: int) -> None:
        block, thread = blocks[step], threading.get_ident()
        if thread not in buffers:
            logits = torch.empty(len(blocks[0]), length, dtype=query.dtype, device=device)
            buffers[thread] = logits, logits if query.dtype == torch.float32 else logits.float()
        logits, rows = (buffer[: len(block)] for buffer in buffers[thread])
        product = torch.mm(block, columns, out=logits)
        attended = torch.softmax(product, -1, dtype=torch.float32, out=rows)
        torch.mm(ones[:, : len(block)], attended, out=totals[step : step + 1])

    with torch.no_grad():
        _run_in_steps(sum_columns, len(blocks), device)
        return totals.sum(0)


def _saliency_bytes(device: torch.device) -> int:
    return _CPU_SALIENCY_BYTES if device.type == "cpu" else _CUDA_STEP_BYTES
