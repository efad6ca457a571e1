"""Triton kernels for the column sums of a softmax over rows, which is the saliency of KVQ (KVQ_SPEC section 3.3).

The matrix of L x L logits never leaves the chip. The first kernel computes the normaliser of each row, the second sums
the columns: products are computed twice, and memory is only read. At L = 12544 and C = 384 that is 243 GFLOP instead of
121, and a few MB instead of 2.5 GB for logits that are written, normalised and summed.

Triton comes with the CUDA builds of torch. Import this module only where it is installed.

Axes: B clips, L tokens of all windows, C channels of all heads.
"""

import logging
import subprocess
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from kvq_batch.models.device_errors import first_line

_LOG = logging.getLogger(__name__)

_LOG2_E = 1.4426950408889634
_BLOCK_ROWS, _BLOCK_COLUMNS, _BLOCK_CHANNELS = 128, 128, 64
_WARPS = 8


@triton.jit
def _logits(
    query, key, rows, columns, length, channels, stride_q, stride_k, R: tl.constexpr, N: tl.constexpr, C: tl.constexpr
):
    """Return the products of R rows of `query` and N rows of `key`, float32 [R, N]."""
    found = tl.zeros((R, N), dtype=tl.float32)
    for start in range(0, channels, C):
        channel = start + tl.arange(0, C)
        is_channel = channel < channels
        q = tl.load(
            query + rows[:, None] * stride_q + channel[None, :],
            mask=(rows < length)[:, None] & is_channel[None, :],
            other=0.0,
        )
        k = tl.load(
            key + columns[None, :] * stride_k + channel[:, None],
            mask=(columns < length)[None, :] & is_channel[:, None],
            other=0.0,
        )
        found = tl.dot(q, k, found, input_precision="ieee")
    return found


@triton.jit
def _row_normalisers(
    query,
    key,
    normaliser,
    scale,
    length,
    channels,
    clip_q,
    clip_k,
    stride_q,
    stride_k,
    R: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """Store log2(sum of 2^x) of each row, for logits x in base 2."""
    clip = tl.program_id(1).to(tl.int64)
    query += clip * clip_q
    key += clip * clip_k
    rows = tl.program_id(0) * R + tl.arange(0, R)
    largest = tl.full((R,), -float("inf"), tl.float32)
    total = tl.zeros((R,), tl.float32)
    for start in range(0, length, N):
        columns = start + tl.arange(0, N)
        x = scale * _logits(query, key, rows, columns, length, channels, stride_q, stride_k, R, N, C)
        x = tl.where((columns < length)[None, :], x, -float("inf"))
        larger = tl.maximum(largest, tl.max(x, 1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(x - larger[:, None]), 1)
        largest = larger
    tl.store(normaliser + clip * length + rows, largest + tl.log2(total), mask=rows < length)


@triton.jit
def _sum_columns(
    query,
    key,
    normaliser,
    found,
    scale,
    length,
    channels,
    clip_q,
    clip_k,
    stride_q,
    stride_k,
    R: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """Store the sum of each column of the softmax. One program sums whole columns, so the order is always the same."""
    clip = tl.program_id(1).to(tl.int64)
    query += clip * clip_q
    key += clip * clip_k
    columns = tl.program_id(0) * N + tl.arange(0, N)
    total = tl.zeros((N,), tl.float32)
    for start in range(0, length, R):
        rows = start + tl.arange(0, R)
        x = scale * _logits(query, key, rows, columns, length, channels, stride_q, stride_k, R, N, C)
        row = tl.load(normaliser + clip * length + rows, mask=rows < length, other=float("inf"))
        total += tl.sum(tl.exp2(x - row[:, None]), 0)
    tl.store(found + clip * length + columns, total, mask=columns < length)


def column_sums(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return the column sums of softmax_rows(scale * query key^T), float32 [B, L], of [B, L, C] twice.

    The last axis must be contiguous. Logits and sums are float32, whatever the type of `query`.
    """
    clips, length, channels = query.shape
    normaliser = torch.empty(clips, length, dtype=torch.float32, device=query.device)
    found = torch.empty_like(normaliser)
    strides = (query.stride(0), key.stride(0), query.stride(1), key.stride(1))
    sizes = (scale * _LOG2_E, length, channels, *strides)
    blocks = {"R": _BLOCK_ROWS, "N": _BLOCK_COLUMNS, "C": _BLOCK_CHANNELS, "num_warps": _WARPS}
    _row_normalisers[(triton.cdiv(length, _BLOCK_ROWS), clips)](query, key, normaliser, *sizes, **blocks)
    _sum_columns[(triton.cdiv(length, _BLOCK_COLUMNS), clips)](query, key, normaliser, found, *sizes, **blocks)
    return found


@cache
def is_usable(device: torch.device) -> bool:
    """Return whether the kernels compile and compute correctly on a device. Triton needs a C compiler, for example."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 200, 96, generator=generator).half().to(device)
    expected = torch.softmax(0.2 * (query.float() @ key.float().mT), -1).sum(1)
    try:
        gap = (column_sums(query, key, 0.2) - expected).abs().max()
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        _LOG.warning("saliency runs without its Triton kernel: %s", first_line(error))
        return False
    if not gap < 1e-3 * expected.max():
        _LOG.warning("saliency runs without its Triton kernel, whose result differs by %.2g", float(gap))
        return False
    return True
