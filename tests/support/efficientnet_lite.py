"""EfficientNet-Lite0 written out with torch's own layers, with random weights: a reference and files for tests."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (expansion, kernel, stride, channels, repeats), from the paper of EfficientNet, table 1.
_TABLE = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3)]


class _Same(nn.Conv2d):
    """Convolution with TensorFlow's "same": ceil(extent / stride) outputs, the odd zero at the end."""

    def forward(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        pads = []
        for extent in (x.shape[3], x.shape[2]):
            total = max((-(-extent // stride) - 1) * stride + kernel - extent, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, None, stride, groups=self.groups)


class _Block(nn.Module):
    def __init__(self, inputs: int, expansion: int, kernel: int, stride: int, outputs: int) -> None:
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _Same(inputs, width, 1, bias=False), nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = _Same(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv, self._bn2 = _Same(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=1e-3)
        self._has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        inner = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(inner)))))
        output: Tensor = x + inner if self._has_shortcut else inner
        return output


class ReferenceLite0(nn.Module):
    """The stem and the first 11 blocks, with the names of the published file."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Same(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        blocks, inputs = [], 32
        for expansion, kernel, stride, outputs, repeats in _TABLE:
            for repeat in range(repeats):
                blocks.append(_Block(inputs, expansion, kernel, stride if repeat == 0 else 1, outputs))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in self.state_dict().items():
            if name.endswith(("running_var", "weight")) and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.ndim == 4 else 25
                tensor.normal_(0, fan_in**-0.5, generator=generator)
        self.eval()

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Return the output of every block for RGB [B, 3, H, W], 0 to 255."""
        x = F.relu6(self._bn0(self._conv_stem((pictures - 127) / 128)))
        found = []
        for block in self._blocks:
            x = block(x)
            found.append(x)
        return found

    def save(self, path: Path) -> Path:
        """Write a file as it is published; return its path."""
        torch.save(self.state_dict(), path)
        return path
