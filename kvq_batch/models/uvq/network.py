"""Content, distortion and aggregation networks of UVQ 1.5 and 1.0 (SWINV2_SPEC sections 6 and 7).

All features have channels last, as the aggregation networks take them. Modules have the names of the published files.
`compression.py` has the third network of UVQ 1.0.

Axes: B pictures, H rows, W columns, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.models.backbones.efficientnet import NUM_CHANNELS, SameConv2d, feature_layers, run_features
from kvq_batch.models.backbones.layers import FrozenNorm

PATCH = (360, 640)
"""Size of a distortion patch in pixels."""
_CONTENT_SIZE_15 = (256, 256)
_CONTENT_GRID_10 = 16
_POOL = (5, 13)
_WIDTH_15, _WIDTH_10 = 128, 100
_LABELS_10 = 3862
_DISTORTIONS_10, _HIDDEN_10 = 26, 512
_AGGREGATED = 256
_GRID_15 = 4
_NORM_EPS = 1e-3


class Content15(nn.Module):
    """Content features [B, 8, 8, 128] of whole pictures [B, 3, H, W] in -1..1, which are resized to 256x256."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList([*feature_layers(), SameConv2d(NUM_CHANNELS, _WIDTH_15, (2, 2))])

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.interpolate(pictures, _CONTENT_SIZE_15, mode="bilinear", align_corners=False)
        return channels_last(self.features[-1](run_features(self.features, x)))


class Distortion15(nn.Module):
    """Distortion features [B, 8, 8, 128] of patches [B, 3, 360, 640] in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList([*feature_layers(), SameConv2d(NUM_CHANNELS, _WIDTH_15, (2, 2))])

    def forward(self, patches: Tensor) -> Tensor:
        x = self.features[-1](run_features(self.features, patches))
        return channels_last(F.max_pool2d(x, _POOL, 1))


class Aggregation15(nn.Module):
    """Score of each picture [B], in 1..5, from its content [B, 8, 8, 128] and distortion [B, 24, 24, 128] features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2 * _WIDTH_15, _AGGREGATED, 1)
        self.ln1 = nn.LayerNorm([_AGGREGATED, _GRID_15, _GRID_15], eps=_NORM_EPS)
        self.linear1 = nn.Linear(_AGGREGATED, 1)

    def forward(self, content: Tensor, distortion: Tensor) -> Tensor:
        pooled = [F.adaptive_avg_pool2d(channels_first(x), _GRID_15) for x in (content, distortion)]
        x = torch.relu(self.ln1(self.conv1(torch.cat(pooled, 1)))).amax((2, 3))
        score: Tensor = torch.tanh(self.linear1(x)[:, 0]) * 2 + 3
        return score


class Content10(nn.Module):
    """Content features [B, 16, 16, 100] of pictures [B, 3, 496, 496] in -1..1, and labels of YouTube-8M [B, 3862]."""

    def __init__(self) -> None:
        super().__init__()
        # The published index 17 is a resize, which has no weights.
        resize = nn.Upsample((_CONTENT_GRID_10, _CONTENT_GRID_10), mode="bilinear", align_corners=False)
        last = SameConv2d(NUM_CHANNELS, _WIDTH_10, (_CONTENT_GRID_10, _CONTENT_GRID_10))
        self.features = nn.ModuleList([*feature_layers(), resize, last])
        self.classifier = nn.ModuleDict({"2": nn.Linear(_WIDTH_10, _LABELS_10)})

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features[-1](self.features[-2](run_features(self.features, pictures)))
        return channels_last(x), torch.sigmoid(self.classifier["2"](x.mean((2, 3))))


class Distortion10(nn.Module):
    """Distortion features [B, 8, 8, 100] of patches [B, 3, 360, 640] in -1..1, and scores of 26 distortions [B, 26]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList([*feature_layers(), SameConv2d(NUM_CHANNELS, _WIDTH_10, (12, 20))])
        cells = 8 * 8 * _WIDTH_10
        self.classifier = nn.ModuleDict(
            {"2": nn.Linear(cells, _HIDDEN_10), "4": nn.Linear(_HIDDEN_10, _DISTORTIONS_10)}
        )

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        features = channels_last(F.max_pool2d(self.features[-1](run_features(self.features, patches)), _POOL, 1))
        hidden = F.relu6(self.classifier["2"](features.flatten(1)))
        return features, torch.sigmoid(self.classifier["4"](hidden))


class Aggregation10(nn.Module):
    """Score of a video [], not bounded, from the features of its chunks [B, 16, 16, 100], in the published order."""

    def __init__(self, num_parts: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_parts * _WIDTH_10, _AGGREGATED, 1)
        self.bn1 = FrozenNorm(_AGGREGATED, _NORM_EPS)
        self.linear1 = nn.Linear(_AGGREGATED, 1)

    def forward(self, parts: list[Tensor]) -> Tensor:
        x = channels_first(torch.cat(parts, -1))
        x = torch.relu(self.bn1(self.conv1(x))).amax((2, 3))
        score: Tensor = self.linear1(x).mean()
        return score


def patches_of(picture: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Cut pictures [..., H, W] into patches [n, ..., h, w], row by row."""
    rows = [picture.narrow(-2, row * patch[0], patch[0]) for row in range(grid[0])]
    return torch.stack([row.narrow(-1, column * patch[1], patch[1]) for row in rows for column in range(grid[1])])


def joined(patches_nHWC: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the features of patches [n, H, W, C] as those of one picture, [1, rows H, columns W, C]."""
    tiles = torch.unflatten(patches_nHWC, 0, grid)
    rows = tiles.transpose(1, 2).flatten(0, 1)
    return rows.flatten(1, 2)[None]


def channels_last(x: Tensor) -> Tensor:
    """Return [B, H, W, C] of [B, C, H, W]."""
    return x.movedim(1, -1)


def channels_first(x: Tensor) -> Tensor:
    """Return [B, C, H, W] of [B, H, W, C]."""
    return x.movedim(-1, 1)
