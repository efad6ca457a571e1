"""SwinV2 for pictures (SWINV2_SPEC section 2), with torchvision's names and its rule for small maps.

Norms follow attention and MLP, attention compares directions, and its position bias is computed from logarithmic
offsets. A map that is smaller than the window is padded with zeros, which take part in attention.

Axes: B pictures, H rows, W columns, C channels, N tokens of a window, h heads, d head width, w side of a window.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.fastvqa.windows import WindowLayout, window_layout
from kvq_batch.models.kvq.attention import split_heads
from kvq_batch.models.kvq.blocks import NORM_EPS, SEPARATION, normalise_tokens
from kvq_batch.models.kvq.embedding import add_energy_bands
from kvq_batch.models.swinv2_ctf.config import SwinV2Config

_PATCH = 4
# Largest factor of the cosines, and the scale of the position bias.
_LARGEST_SCALE = math.log(100.0)
_BIAS_SCALE = 16.0
_BIAS_HIDDEN = 512


class SwinV2(nn.Module):
    """Embedding, stages and final norm; with `num_classes`, a classifier of the mean token.

    Pictures are float32 [B, 3, H, W], normalised as for ImageNet.
    """

    def __init__(self, config: SwinV2Config, num_classes: int | None = None) -> None:
        super().__init__()
        self.config = config
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        self.features = nn.ModuleList(
            [nn.ModuleDict({"0": nn.Conv2d(3 + 2 * config.num_bands, config.embed_dim, _PATCH, _PATCH)})]
        )
        stem = self.features[0]
        assert isinstance(stem, nn.ModuleDict)
        stem["2"] = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        for stage, depth in enumerate(config.depths):
            drops = rates[sum(config.depths[:stage]) :]
            self.features.append(nn.ModuleList(Block(config, stage, drops[number]) for number in range(depth)))
            if stage + 1 < config.num_stages:
                self.features.append(PatchMerging(config.width(stage)))
        last = config.width(config.num_stages - 1)
        self.norm = nn.LayerNorm(last, eps=NORM_EPS)
        self.head = None if num_classes is None else nn.Linear(last, num_classes)

    def stages(self, pictures: Tensor) -> list[Tensor]:
        """Return the output of every stage before merging, [B, H, W, C]; the last one after the final norm."""
        x = self.embed(pictures)
        found = []
        for stage in range(self.config.num_stages):
            x = self.run_stage(stage, x)
            found.append(x)
            if stage + 1 < self.config.num_stages:
                x = self.features[2 * stage + 2](x)
        found[-1] = normalise_tokens(found[-1], self.norm)
        return found

    def embed(self, pictures: Tensor) -> Tensor:
        """Return the tokens of patches of 4x4 pixels, [B, H/4, W/4, C]; an incomplete patch at the end is cut off."""
        stem = self.features[0]
        assert isinstance(stem, nn.ModuleDict)
        norm = stem["2"]
        assert isinstance(norm, nn.LayerNorm)
        if self.config.num_bands:
            height, width = pictures.shape[2:]
            pictures = add_energy_bands(pictures[:, :, None], self.config.num_bands, (height, width))[:, :, 0]
        return normalise_tokens(stem["0"](pictures).permute(0, 2, 3, 1), norm)

    def run_stage(self, stage: int, x: Tensor) -> Tensor:
        """Run the blocks of a stage on [B, H, W, C]."""
        layouts = [square_windows(x.shape[1], x.shape[2], self.config.window, odd, x.device) for odd in (False, True)]
        blocks = self.features[2 * stage + 1]
        assert isinstance(blocks, nn.ModuleList)
        for number, block in enumerate(blocks):
            x = block(x, layouts[number % 2])
        return x

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the mean token [B, C], or the logits of the classes."""
        feature = self.stages(pictures)[-1].mean((1, 2))
        if self.head is not None:
            feature = self.head(feature)
        return feature


def square_windows(height: int, width: int, side: int, is_shifted: bool, device: torch.device) -> WindowLayout:
    """Return the windows of a map; odd blocks shift axes that are longer than a window by half of it (section 2.1)."""
    rows, columns = (side // 2 if is_shifted and extent > side else 0 for extent in (height, width))
    return window_layout((1, height, width), (1, side, side), (0, rows, columns), device)


class Block(nn.Module):
    """Attention in windows and an MLP, each followed by a norm inside its residual connection."""

    def __init__(self, config: SwinV2Config, stage: int, drop_path: float) -> None:
        super().__init__()
        width = config.width(stage)
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = CosineAttention(width, config.num_heads[stage], config.window)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        hidden = config.mlp_ratio * width
        # Indices of the published names: 1 is the activation, 2 and 4 are dropout, which is off.
        self.mlp = nn.ModuleDict({"0": nn.Linear(width, hidden), "3": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        x = x + self._dropped(normalise_tokens(self.attn(x, layout), self.norm1))
        return x + self._dropped(normalise_tokens(self.mlp["3"](F.gelu(self.mlp["0"](x))), self.norm2))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Return the branch; in training it is 0 for some pictures (stochastic depth)."""
        if not self.training or not self.drop_path:
            return branch
        kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class CosineAttention(nn.Module):
    """Attention in windows by the cosine of queries and keys, with a computed position bias (sections 2.2 and 2.3)."""

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
        # Index 1 of the published names is the activation.
        self.cpb_mlp = nn.ModuleDict(
            {"0": nn.Linear(2, _BIAS_HIDDEN), "2": nn.Linear(_BIAS_HIDDEN, num_heads, bias=False)}
        )

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        pictures, height, width, channels = x.shape
        tokens = F.pad(x, (0, 0, 0, layout.padded[2] - width, 0, layout.padded[1] - height)).flatten(1, 2)
        count = layout.indices.shape[1]
        windows = tokens.index_select(1, layout.indices.flatten()).view(pictures, -1, count, channels)
        # The key bias is 0 whatever a checkpoint holds.
        query_bias, _, value_bias = self.qkv.bias.chunk(3)
        bias = torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])
        query, key, value = split_heads(F.linear(windows, self.qkv.weight, bias), self.num_heads)
        scale = self.logit_scale.clamp(max=_LARGEST_SCALE).exp()
        cosine = F.normalize(query, dim=-1, eps=1e-12) @ F.normalize(key, dim=-1, eps=1e-12).transpose(-1, -2)
        # Not fused: a factor of up to 100 on the cosines, instead of on the queries, keeps the rounding errors small.
        logits = cosine * scale + (self.position_bias() + separation(layout)[:, None])
        mixed = torch.softmax(logits, dim=-1) @ value
        # [B, windows, h, N, d] -> [B, L, C], in the order of the grid.
        mixed = mixed.transpose(2, 3).flatten(3).flatten(1, 2).index_select(1, layout.indices.flatten().argsort())
        grid = torch.unflatten(mixed, 1, layout.padded[1:])[:, :height, :width]
        out: Tensor = self.proj(grid)
        return out

    def position_bias(self) -> Tensor:
        """Return 16 sigmoid(table) of every pair of tokens, [h, N, N]."""
        device = self.qkv.weight.device
        coordinates = log_coordinates(self.window).to(device, self.qkv.weight.dtype)
        table = self.cpb_mlp["2"](F.relu(self.cpb_mlp["0"](coordinates))).flatten(0, 1)
        index = pair_index(self.window).to(device)
        bias = F.embedding(index.flatten(), table).t().contiguous().view(-1, *index.shape)
        return _BIAS_SCALE * torch.sigmoid(bias)


def separation(layout: WindowLayout) -> Tensor:
    """Return the mask of each window, float32 [windows, N, N]: -100 between tokens of different regions."""
    windows, count = layout.indices.shape
    mask = torch.zeros(windows, count, count, device=layout.indices.device)
    for kind in layout.kinds():
        if kind.is_separated is not None:
            mask[kind.windows] = SEPARATION * kind.is_separated
    return mask


def log_coordinates(window: int) -> Tensor:
    """Return log-spaced offsets (row, column) of two tokens, float64 [2w-1, 2w-1, 2] in -1.06 .. 1.06 (section 2.3)."""
    offset = torch.arange(1 - window, window, dtype=torch.float64) * 8 / (window - 1)
    spaced = offset.sign() * torch.log2(offset.abs() + 1) / 3
    return torch.stack(torch.meshgrid(spaced, spaced, indexing="ij"), -1)


def pair_index(window: int) -> Tensor:
    """Return the row of the bias table for each pair (query, key) of tokens, int64 [N, N]."""
    token = torch.arange(window * window)
    row, column = token // window, token % window
    down = row[:, None] - row[None, :] + window - 1
    return down * (2 * window - 1) + column[:, None] - column[None, :] + window - 1


class PatchMerging(nn.Module):
    """Merging of 2x2 tokens into one of twice the width, then a norm; odd sizes are padded with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        phases = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return normalise_tokens(self.reduction(torch.cat(phases, dim=-1)), self.norm)
