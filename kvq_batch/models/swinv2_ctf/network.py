"""Coarse-to-fine network (SWINV2_SPEC section 3): SwinV2 on every frame, fusion of its stages, then of the frames.

Axes: B videos, T frames, D width of fused features, G side of the pooled maps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kvq_batch.domain.errors import SpecError
from kvq_batch.models.kvq.blocks import NORM_EPS
from kvq_batch.models.swinv2_ctf.config import MAX_FRAMES, CtfConfig
from kvq_batch.models.swinv2_ctf.swinv2 import SwinV2

RAW_SCALE = 100.0
"""Raw scores are this times the output of the head, which is trained on labels mapped to 0..1."""

_DROPOUT = 0.1
# Mean and standard deviation of ImageNet, of RGB in 0..1.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class CtfOutput:
    """Features of the frames [B, T, D], features of the videos [B, D], and scores [B] (VMAF / 100)."""

    frames: Tensor
    features: Tensor
    scores: Tensor


class CtfNetwork(nn.Module):
    """Maps frames float32 [B, T, 3, H, W], normalised as for ImageNet, to features and scores."""

    def __init__(self, config: CtfConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial = SwinV2(config.spatial)
        self.fusion = StageFusion(config)
        self.temporal = FrameFusion(config)
        self.head = QualityHead(config)

    def forward(self, frames: Tensor) -> CtfOutput:
        """Return features and scores.

        Raises:
            SpecError: more frames than the network has positions for.
        """
        if frames.shape[1] > MAX_FRAMES:
            raise SpecError(f"swinv2-ctf cannot run on {frames.shape[1]} frames: expected at most {MAX_FRAMES}.")
        stages = self.spatial.stages(frames.flatten(0, 1))
        of_frames = torch.unflatten(self.fusion(stages), 0, frames.shape[:2])
        features = self.temporal(of_frames)
        return CtfOutput(of_frames, features, self.head(features))


class StageFusion(nn.Module):
    """Attention over the pooled maps of all stages of a frame: a list of [B, H, W, C] -> [B, D]."""

    def __init__(self, config: CtfConfig) -> None:
        super().__init__()
        dim, cells = config.dim, config.grid**2
        self.grid = config.grid
        self.stages = config.stages
        self.cls = nn.Parameter(torch.empty(1, dim))
        self.stage_embed = nn.Parameter(torch.empty(len(config.stages), dim))
        self.pos_embed = nn.Parameter(torch.empty(cells, dim))
        self.proj = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(config.spatial.width(stage), eps=NORM_EPS),
                    "linear": nn.Linear(config.spatial.width(stage), dim),
                }
            )
            for stage in config.stages
        )
        self.layers = nn.ModuleList(_encoder_layer(config) for _ in range(config.fusion_layers))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, stages: list[Tensor]) -> Tensor:
        tokens = [self.cls.expand(len(stages[0]), 1, -1)]
        for number, (stage, proj) in enumerate(zip(self.stages, self.proj, strict=True)):
            assert isinstance(proj, nn.ModuleDict)
            pooled = F.adaptive_avg_pool2d(stages[stage].permute(0, 3, 1, 2), self.grid).flatten(2).transpose(1, 2)
            tokens.append(proj["linear"](proj["norm"](pooled)) + self.stage_embed[number] + self.pos_embed)
        return _first_token(torch.cat(tokens, dim=1), self.layers, self.norm)


class FrameFusion(nn.Module):
    """Attention over the features of the frames of a video: [B, T, D] -> [B, D]. Without it: their mean, normed."""

    def __init__(self, config: CtfConfig) -> None:
        super().__init__()
        dim = config.dim
        self.is_attending = config.fuses_frames
        if self.is_attending:
            self.video_token = nn.Parameter(torch.empty(1, dim))
            self.time_embed = nn.Parameter(torch.empty(MAX_FRAMES, dim))
            self.layers = nn.ModuleList(_encoder_layer(config) for _ in range(config.time_layers))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, frames: Tensor) -> Tensor:
        if not self.is_attending:
            mean: Tensor = self.norm(frames.mean(1))
            return mean
        token = self.video_token.expand(len(frames), 1, -1)
        tokens = torch.cat([token, frames + self.time_embed[: frames.shape[1]]], dim=1)
        return _first_token(tokens, self.layers, self.norm)


class QualityHead(nn.Module):
    """Two layers that map the feature of a video [B, D] to its score [B]."""

    def __init__(self, config: CtfConfig) -> None:
        super().__init__()
        self.dropout = _DROPOUT
        self.fc1 = nn.Linear(config.dim, config.head_hidden)
        self.fc2 = nn.Linear(config.head_hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(F.dropout(features, self.dropout, self.training)))
        score: Tensor = self.fc2(hidden).squeeze(-1)
        return score


def normalise_pictures(clips: Tensor) -> Tensor:
    """Return (v / 255 - mean) / std of uint8 RGB [B, T, H, W, 3], float32 [B, T, 3, H, W]."""
    mean, std = (torch.tensor(values, device=clips.device) for values in (_MEAN, _STD))
    return ((clips.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)


def _encoder_layer(config: CtfConfig) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        config.dim, config.num_heads, 4 * config.dim, _DROPOUT, "gelu", NORM_EPS, batch_first=True, norm_first=True
    )


def _first_token(tokens: Tensor, layers: nn.ModuleList, norm: nn.LayerNorm) -> Tensor:
    """Run encoder layers on [B, n, D] and return the first token after a norm, [B, D]."""
    for layer in layers:
        tokens = layer(tokens)
    first: Tensor = norm(tokens[:, 0])
    return first
