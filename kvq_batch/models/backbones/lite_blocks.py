"""Sizes of EfficientNet-Lite0, without torch: its convolutions in order, and where its features are read.

EfficientNet-Lite0 (Google, 2020; Apache-2.0) is EfficientNet-B0 without squeezing, with ReLU6, and with a stem of fixed
width. Batch normalisation is folded into each convolution, so a convolution is a weight and a bias.
"""

from dataclasses import dataclass

STEM_CHANNELS = 32
NUM_LITE_BLOCKS = 16

# (repeats, expansion, side of the kernel, stride of the first, channels) of each group of blocks.
_GROUPS = (
    (1, 1, 3, 1, 16), (2, 6, 3, 2, 24), (2, 6, 5, 2, 40), (3, 6, 3, 2, 80), (3, 6, 5, 1, 112), (4, 6, 5, 2, 192),
    (1, 6, 3, 1, 320),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LiteBlock:
    """One block: expansion (if there is one), depthwise convolution, projection. `step` is its pixels per output."""

    inputs: int
    expansion: int
    outputs: int
    kernel: int
    stride: int
    step: int
    is_last_of_group: bool

    @property
    def width(self) -> int:
        return self.inputs * self.expansion

    @property
    def has_shortcut(self) -> bool:
        return self.stride == 1 and self.inputs == self.outputs

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the weights of its convolutions, in order."""
        expand = [(self.width, self.inputs, 1, 1)] if self.expansion > 1 else []
        return [*expand, (self.width, 1, self.kernel, self.kernel), (self.outputs, self.width, 1, 1)]


def lite_blocks(count: int) -> list[LiteBlock]:
    """Return the first `count` blocks, at most NUM_LITE_BLOCKS."""
    blocks: list[LiteBlock] = []
    inputs, step = STEM_CHANNELS, 2
    for repeats, expansion, kernel, first_stride, outputs in _GROUPS:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            step *= stride
            blocks.append(LiteBlock(inputs, expansion, outputs, kernel, stride, step, repeat == repeats - 1))
            inputs = outputs
    return blocks[:count]


def convolution_shapes(count: int) -> list[tuple[int, ...]]:
    """Return the shapes of the weights of the stem and the first `count` blocks; each has a bias of its first axis."""
    return [(STEM_CHANNELS, 3, 3, 3), *(shape for block in lite_blocks(count) for shape in block.shapes)]


def feature_blocks(count: int, side: int) -> list[int]:
    """Return the blocks whose outputs are features of squares of `side` pixels: the last of each group, 4 to `side`."""
    blocks = lite_blocks(count)
    return [i for i, block in enumerate(blocks) if block.is_last_of_group and 4 <= block.step <= side]


def num_features(count: int, side: int) -> int:
    """Return the number of features of a square of `side` pixels: a mean of each channel, and a deviation if it can."""
    blocks = lite_blocks(count)
    return sum(blocks[i].outputs * (2 if blocks[i].step < side else 1) for i in feature_blocks(count, side))
