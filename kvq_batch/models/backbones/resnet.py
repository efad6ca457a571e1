"""ResNet-50 with the names of torchvision (STUDY_SPEC section 3): features of single frames.

The stride of a stage is in its 3x3 convolution, as in torchvision's weights.

Axes: B frames, C channels, H rows, W columns.
"""

import torch
from torch import Tensor, nn

from kvq_batch.models.backbones.layers import FrozenNorm

NUM_CHANNELS = 2048
"""Channels of the last stage: half of the number of features of a frame."""

_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
_EXPANSION = 4
_NUM_CLASSES = 1000


class Bottleneck(nn.Module):
    """Residual block of three convolutions; the first block of a stage projects its input."""

    def __init__(self, inputs: int, width: int, stride: int, is_projected: bool) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = FrozenNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = FrozenNorm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = FrozenNorm(outputs)
        projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenNorm(outputs))
        self.downsample = projection if is_projected else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return torch.relu_(x.add_(shortcut))


class ResNet50(nn.Module):
    """ResNet-50 of 320 entries in torchvision's state dict, its 53 counters of batches included."""

    def __init__(self, num_classes: int = _NUM_CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = FrozenNorm(64)
        inputs = 64
        for number, (width, depth, stride) in enumerate(_STAGES, 1):
            blocks = [Bottleneck(inputs, width, stride, is_projected=True)]
            inputs = _EXPANSION * width
            blocks += [Bottleneck(inputs, width, 1, is_projected=False) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(NUM_CHANNELS, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        """Return the first convolution and max pooling of normalised frames [B, 3, H, W]: [B, 64, H / 4, W / 4]."""
        return nn.functional.max_pool2d(torch.relu_(self.bn1(self.conv1(x))), 3, 2, 1)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of the stem and of the four stages for normalised frames [B, 3, H, W]."""
        found = [self.stem(x)]
        for number in range(1, len(_STAGES) + 1):
            found.append(self.get_submodule(f"layer{number}")(found[-1]))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the last stage [B, 2048, ceil(H / 32), ceil(W / 32)] of normalised frames [B, 3, H, W]."""
        x = self.stem(x)
        for number in range(1, len(_STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x


def spatial_mean(maps: Tensor) -> Tensor:
    """Return the mean of each channel over space, [B, C] of [B, C, H, W]."""
    return maps.flatten(2).mean(2)


def spatial_std(maps: Tensor) -> Tensor:
    """Return the unbiased standard deviation of each channel over space, [B, C]; NaN for maps of one cell."""
    return maps.flatten(2).std(2)
