"""Plain implementation of KVQ, written from KVQ_SPEC section 3 without code of the network.

The tests compare the network with it, and `benchmarks/kvq_cpu.py` compares its speed. It has no blocked computation and
no fused attention, and needs 3.5 GiB at [1, 3, 32, 448, 448].
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from kvq_batch.models.kvq.config import KvqConfig

Weights = Mapping[str, Tensor]


def plain_forward(weights: Weights, config: KvqConfig, clips: Tensor) -> dict[str, Tensor]:
    """Return score [B], texture, saliency and logits [B, D, H, W], and levels [B, blocks, D, H, W] of clips.

    `clips` is [B, 3, T, H, W]. The precision is that of `clips` and `weights`: use float64 as a reference for float32.
    """
    short = [-extent % step for extent, step in zip(clips.shape[2:], config.patch, strict=True)]
    padded = F.pad(clips, (0, short[2], 0, short[1], 0, short[0]))
    root = "fragments_backbone"
    x = F.conv3d(
        padded, weights[f"{root}.patch_embed.proj.weight"], weights[f"{root}.patch_embed.proj.bias"], config.patch
    )
    x = norm(x.permute(0, 2, 3, 4, 1), weights, f"{root}.patch_embed.norm")
    levels = []
    for stage, depth in enumerate(config.depths):
        for number in range(depth):
            x, salience = block(x, weights, f"{root}.layers.{stage}.blocks.{number}", config, stage, number % 2 == 1)
            if salience is not None:
                levels.append(salience)
        if stage + 1 < len(config.depths):
            x = merge(x, weights, f"{root}.layers.{stage}.downsample")
    features = norm(x, weights, f"{root}.norm").permute(0, 4, 1, 2, 3)
    avg_pool = []
    for level in levels:
        step = max(1, level.shape[3] // features.shape[4])
        avg_pool.append(F.avg_pool3d(level, (1, step, step)))
    stacked = torch.stack(avg_pool, dim=1)
    texture = head(features, weights, "vqa_head")
    logits = F.conv3d(stacked, weights["weight_conv.weight"], weights["weight_conv.bias"]) + head(
        features, weights, "weight_head"
    )
    saliency = torch.softmax(logits.flatten(3), -1).view_as(logits) * logits.shape[3] * logits.shape[4]
    return {
        "score": (texture * saliency).mean((1, 2, 3, 4)),
        "texture": texture[:, 0],
        "saliency": saliency[:, 0],
        "logits": logits[:, 0],
        "levels": stacked,
    }


def block(
    x: Tensor, weights: Weights, name: str, config: KvqConfig, stage: int, odd: bool
) -> tuple[Tensor, Tensor | None]:
    """Apply one block to [B, D, H, W, C]; a fusion block also returns saliency [B, D, H, W] (sections 3.1 to 3.3)."""
    grid = x.shape[1:4]
    size = [min(extent, window) for extent, window in zip(grid, config.window, strict=True)]
    shift = [w // 2 if odd and extent > w else 0 for extent, w in zip(grid, config.window, strict=True)]
    pad = [-extent % w for extent, w in zip(grid, size, strict=True)]
    x = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
    full = x.shape[1:4]
    x = torch.roll(x, [-s for s in shift], (1, 2, 3))
    windows = cut(x, size)
    normal = norm(windows, weights, f"{name}.norm1")
    heads = config.num_heads[stage]
    mixed = intra(normal, weights, f"{name}.attn", heads, config, region_mask(full, size, shift, x))
    salience = None
    if config.top_k[stage]:
        crossed, salience = cross(normal, weights, f"{name}.attn.cross_windowattn", heads, config.top_k[stage])
        mixed = mixed + crossed
        salience = torch.roll(paste(salience[..., None], full, size), shift, (1, 2, 3))[..., 0]
        salience = salience[:, : grid[0], : grid[1], : grid[2]]
    windows = windows + mixed
    hidden = F.gelu(dense(norm(windows, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"))
    windows = windows + dense(hidden, weights, f"{name}.mlp.fc2")
    x = torch.roll(paste(windows, full, size), shift, (1, 2, 3))
    return x[:, : grid[0], : grid[1], : grid[2]], salience


def intra(normal: Tensor, weights: Weights, name: str, heads: int, config: KvqConfig, mask: Tensor) -> Tensor:
    """Apply attention inside windows [B, W, N, C], with position bias and region mask (section 3.2)."""
    query, key, value = qkv_heads(normal, weights, name, heads)
    tokens = normal.shape[2]
    extents = config.window
    plane = extents[1] * extents[2]
    coordinates = torch.tensor([(n // plane, n // extents[2] % extents[1], n % extents[2]) for n in range(tokens)])
    offsets = coordinates[:, None] - coordinates[None, :]
    rows, columns = 2 * extents[1] - 1, 2 * extents[2] - 1
    index = (offsets[..., 0] + extents[0] - 1) * rows * columns
    index = index + (offsets[..., 1] + extents[1] - 1) * columns + offsets[..., 2] + extents[2] - 1
    bias = weights[f"{name}.relative_position_bias_table"][index].permute(2, 0, 1)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias + mask[:, None]
    return dense((torch.softmax(scores, -1) @ value).transpose(2, 3).flatten(3), weights, f"{name}.proj")


def cross(normal: Tensor, weights: Weights, name: str, heads: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Apply attention to selected windows [B, W, N, C]; also return saliency [B, W, N] (section 3.3)."""
    query, key, value = qkv_heads(normal, weights, name, heads)
    clips, count, _, tokens, width = query.shape
    scale = width**-0.5
    affinity = scale * torch.einsum("bihd,bjhd->bhij", query.mean(3), key.mean(3))
    best, chosen = affinity.topk(min(top_k, count), dim=-1)
    weight = torch.softmax(best, -1)
    mixed = torch.empty_like(query)
    for clip in range(clips):
        for a in range(heads):
            for i in range(count):
                windows, r = chosen[clip, a, i], weight[clip, a, i][:, None, None]
                keys = (r * key[clip, windows, a]).reshape(-1, width)
                values = (r * value[clip, windows, a]).reshape(-1, width)
                mixed[clip, i, a] = torch.softmax(scale * query[clip, i, a] @ keys.T, -1) @ values
    all_query = query.transpose(2, 3).reshape(clips, count * tokens, -1)
    all_key = key.transpose(2, 3).reshape(clips, count * tokens, -1)
    salience = torch.softmax(scale * all_query @ all_key.transpose(1, 2), -1).sum(1)
    return dense(mixed.transpose(2, 3).flatten(3), weights, f"{name}.proj"), salience.view(clips, count, tokens)


def qkv_heads(normal: Tensor, weights: Weights, name: str, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values [B, W, h, N, d] of windows [B, W, N, C]."""
    clips, count, tokens, width = normal.shape
    parts = dense(normal, weights, f"{name}.qkv").view(clips, count, tokens, 3, heads, width // heads)
    query, key, value = parts.permute(3, 0, 1, 4, 2, 5)
    return query, key, value


def region_mask(full: torch.Size, size: list[int], shift: list[int], like: Tensor) -> Tensor:
    """Return -100 between tokens of different regions of the rolled grid, else 0: [W, N, N] (section 3.2)."""
    region = torch.zeros(1, *full, 1)
    for axis in range(3):
        number = torch.zeros(full[axis])
        if shift[axis]:
            number[full[axis] - size[axis] :] = 1
            number[full[axis] - shift[axis] :] = 2
        along = [1, 1, 1, 1, 1]
        along[axis + 1] = -1
        region = 3 * region + number.view(along)
    tokens = cut(region, size)[0, :, :, 0]
    return (tokens[:, :, None] != tokens[:, None, :]).to(like.dtype) * -100.0


def merge(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Merge patches of [B, D, H, W, C] into [B, D, H / 2, W / 2, 2C]."""
    x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
    x = torch.cat([x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2], x[:, :, 0::2, 1::2], x[:, :, 1::2, 1::2]], -1)
    return norm(x, weights, f"{name}.norm") @ weights[f"{name}.reduction.weight"].T


def head(features: Tensor, weights: Weights, name: str) -> Tensor:
    """Return a head's map [B, 1, D, H, W] of features [B, C, D, H, W] (section 3.4)."""
    hidden = F.gelu(F.conv3d(features, weights[f"{name}.fc_hid.weight"], weights[f"{name}.fc_hid.bias"]))
    return F.conv3d(hidden, weights[f"{name}.fc_last.weight"], weights[f"{name}.fc_last.bias"])


def cut(x: Tensor, size: list[int]) -> Tensor:
    """Cut [B, D, H, W, C] into windows [B, W, N, C]."""
    clips, slots, rows, columns, width = x.shape
    d, h, w = size
    x = x.reshape(clips, slots // d, d, rows // h, h, columns // w, w, width).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(clips, -1, d * h * w, width)


def paste(windows: Tensor, full: torch.Size, size: list[int]) -> Tensor:
    """Join windows [B, W, N, C] to [B, D, H, W, C], the inverse of `cut`."""
    d, h, w = size
    x = windows.reshape(len(windows), full[0] // d, full[1] // h, full[2] // w, d, h, w, windows.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(windows), *full, windows.shape[-1])


def norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Apply LayerNorm over the last axis, with eps 1e-5."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def dense(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Apply a linear layer to the last axis."""
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
