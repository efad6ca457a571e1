"""VGG-16 with the names of torchvision (STUDY_SPEC section 4.1), without dropout.

Axes: B frames, C channels, H rows, W columns.
"""

import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of the convolutions in order; 0 is max pooling."""
_GRID = 7
_NUM_CLASSES = 1000

NUM_MAPS = 512
"""Channels of the last convolution."""
STEP = 16
"""Pixels per cell of the last convolution."""


class Vgg16(nn.Module):
    """VGG-16 of 32 entries in torchvision's state dict."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in _WIDTHS:
            if width:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = 4096
        # The indices of torchvision, whose dropout layers have no parameters.
        self.classifier = nn.ModuleDict(
            {
                "0": nn.Linear(NUM_MAPS * _GRID * _GRID, hidden),
                "3": nn.Linear(hidden, hidden),
                "6": nn.Linear(hidden, _NUM_CLASSES),
            }
        )

    def activations(self, x: Tensor) -> Tensor:
        """Return the last convolution after its ReLU, [B, 512, H / 16, W / 16], of normalised frames [B, 3, H, W]."""
        for layer in list(self.features)[:-1]:
            x = layer(x)
        return x

    def classify(self, activations: Tensor) -> Tensor:
        """Return the logits [B, 1000] of `activations`."""
        x = F.adaptive_avg_pool2d(self.features[-1](activations), _GRID).flatten(1)
        x = F.relu(self.classifier["0"](x), inplace=True)
        x = F.relu(self.classifier["3"](x), inplace=True)
        logits: Tensor = self.classifier["6"](x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, 1000] of normalised frames [B, 3, H, W]."""
        return self.classify(self.activations(x))
