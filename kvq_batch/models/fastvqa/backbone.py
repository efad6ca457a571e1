"""Swin3D backbone of FAST-VQA (FASTVQA_SPEC section 3): windows with gated relative position bias.

It shares the products, norms, patch merging and heads of KVQ. Other than there, a window may shrink with the input, its
bias depends on the fragments of its tokens, and padding comes after the norm.

Axes: B clips, T frames, D slots, H rows, W columns, C channels, L tokens of a grid, N tokens of a window, h heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.fastvqa.config import Grid, SwinConfig
from kvq_batch.models.fastvqa.windows import WindowLayout, window_layout
from kvq_batch.models.kvq.attention import bias_index, step_bytes, window_attention
from kvq_batch.models.kvq.blocks import NORM_EPS, SEPARATION, Mlp, linear, normalise_tokens
from kvq_batch.models.kvq.embedding import embed_patches
from kvq_batch.models.kvq.network import PatchMerging


class SwinBackbone(nn.Module):
    """Patch embedding, stages and final norm: normalised clips [B, 3, T, H, W] -> features [B, D, H/8, W/8, C]."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.layers = nn.ModuleList(Stage(config, stage) for stage in range(config.num_stages))
        self.norm = nn.LayerNorm(config.width(config.num_stages - 1), eps=NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        """Return the features.

        Raises:
            SpecError: an input for which the window cannot be scaled.
        """
        window = self.config.largest_window((clips.shape[2], clips.shape[3], clips.shape[4]))
        x = self.patch_embed(clips)
        for stage in self.layers:
            x = stage(x, window)
        return normalise_tokens(x, self.norm)


class PatchEmbedding(nn.Module):
    """Embedding of patches of RGB: [B, 3, T, H, W] -> [B, D, H, W, C], zero-padded at the end to whole patches."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, config.embed_dim, config.patch, config.patch)
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)

    def forward(self, clips: Tensor) -> Tensor:
        return embed_patches(clips, self.proj, self.norm, torch.float32)


class Stage(nn.Module):
    """Blocks of one width, followed by patch merging except in the last stage; [B, D, H, W, C] in and out."""

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, stage) for _ in range(config.depths[stage]))
        is_last = stage == config.num_stages - 1
        self.downsample = None if is_last else PatchMerging(config.width(stage), torch.float32)

    def forward(self, x: Tensor, window: Grid) -> Tensor:
        grid: Grid = (x.shape[1], x.shape[2], x.shape[3])
        full = self.config.window
        size, shift = fit_window(grid, window, full)
        layouts = [window_layout(grid, size, step, x.device) for step in ((0, 0, 0), shift)]
        # With a fixed window, tokens of a smaller one are counted as in the full window, as published.
        index = bias_index(math.prod(size), full, x.device, size if self.config.scales_window else full)
        for number, block in enumerate(self.blocks):
            x = block(x, layouts[number % 2], index)
        return x if self.downsample is None else self.downsample(x)


def fit_window(grid: Grid, window: Grid, full: Grid) -> tuple[Grid, Grid]:
    """Return (window, shift of odd blocks) on a grid (FASTVQA_SPEC section 3.2).

    An axis that fits into the window is not shifted. The shift is half of the full window, scaled or not.
    """
    axes = list(zip(grid, window, full, strict=True))
    size = [min(extent, step) for extent, step, _ in axes]
    shift = [base // 2 if extent > step else 0 for extent, step, base in axes]
    return (size[0], size[1], size[2]), (shift[0], shift[1], shift[2])


class Block(nn.Module):
    """Attention in windows, then an MLP, both with a residual connection; [B, D, H, W, C] in and out."""

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        width = config.width(stage)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = FragmentAttention(config, stage)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, config.mlp_ratio)

    def forward(self, x: Tensor, layout: WindowLayout, index: Tensor) -> Tensor:
        clips, slots, rows, columns, width = x.shape
        short = [after - before for after, before in zip(layout.padded, (slots, rows, columns), strict=True)]
        tokens = F.pad(x, (0, 0, 0, short[2], 0, short[1], 0, short[0])).flatten(1, 3)
        out = torch.empty_like(tokens)
        tables = self.attn.bias_tables(index)
        count = layout.indices.shape[1]
        # Steps fit the cache, as in KVQ's blocks. Under autograd there is one step per kind.
        step = max(1, step_bytes(x.device) // (clips * count * self.mlp.fc1.out_features * x.element_size()))
        for kind in layout.kinds():
            bias = self.attn.bias(tables, kind.distance, kind.is_separated)
            for windows in torch.split(kind.windows, len(kind.windows) if torch.is_grad_enabled() else step):
                indices = layout.indices[windows].flatten()
                part = tokens.index_select(1, indices).view(-1, count, width)
                normal = normalise_tokens(part, self.norm1)
                if layout.is_padding is not None:
                    # Padding comes after the norm, so padded tokens are 0 here (FASTVQA_SPEC section 3.1).
                    normal = normal.masked_fill(layout.is_padding[windows].repeat(clips, 1)[..., None], 0.0)
                part = self.attn(normal, bias).add_(part)
                part = self.mlp(normalise_tokens(part, self.norm2)).add_(part)
                out = out.index_copy_(1, indices, part.view(clips, -1, width))
        return torch.unflatten(out, 1, layout.padded)[:, :slots, :rows, :columns]


class FragmentAttention(nn.Module):
    """Attention inside windows; its bias depends on the relative position and on the fragments of two tokens."""

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        width = config.width(stage)
        self.num_heads = config.num_heads[stage]
        rows = math.prod(2 * extent - 1 for extent in config.window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, self.num_heads))
        self.fragment_position_bias_table: nn.Parameter | None = None
        if config.fragment_bias[stage]:
            self.fragment_position_bias_table = nn.Parameter(torch.empty(rows, self.num_heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def bias_tables(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return R and F - R of every pair of tokens, [h, N, N] each; None in a stage without the second table."""
        relative = _entries(self.relative_position_bias_table, index)
        if self.fragment_position_bias_table is None:
            return relative, None
        return relative, _entries(self.fragment_position_bias_table, index) - relative

    def bias(self, tables: tuple[Tensor, Tensor | None], distance: Tensor, is_separated: Tensor | None) -> Tensor:
        """Return G R + (1 - G) F plus the mask of a kind of windows, [h, N, N]; G is the distance of fragments.

        G is a distance, not a gate of 0 and 1: that is what the published weights were trained with (FASTVQA_SPEC
        section 3.3).
        """
        relative, difference = tables
        bias = relative if difference is None else torch.addcmul(relative, 1 - distance, difference)
        return bias if is_separated is None else bias + SEPARATION * is_separated

    def forward(self, normal: Tensor, bias: Tensor) -> Tensor:
        return linear(window_attention(linear(normal, self.qkv), self.num_heads, [(len(normal), bias)]), self.proj)


def _entries(table: Tensor, index: Tensor) -> Tensor:
    """Return the entries of a bias table [rows, h] at the rows `index` [N, N], contiguous [h, N, N]."""
    return F.embedding(index.flatten(), table).t().contiguous().view(-1, *index.shape)
