"""Sizes and variants of FAST-VQA and FasterVQA, and the frames that each of them scores.

The module imports without torch, so commands that only list models start fast.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from kvq_batch.domain.errors import SpecError

Grid = tuple[int, int, int]

PATCH_PX = 32
"""Side of a patch of a spliced frame, in pixels."""

# The input (frames, rows, columns) to which a full window belongs (FASTVQA_SPEC section 3.2).
_FULL_INPUT = (32, 224, 224)


@dataclass(frozen=True, slots=True)
class SwinConfig:
    """Sizes of a Swin3D network with gated relative position bias; the defaults are those of FAST-VQA-B.

    Per stage: `depths` is the number of blocks, `num_heads` the number of heads, and `fragment_bias` says whether its
    blocks have a second bias table, for pairs of tokens of one fragment. `patch` and `window` are (frames, rows,
    columns). With `scales_window` the window shrinks in proportion to the input (FASTVQA_SPEC section 3.2).
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    patch: Grid = (2, 4, 4)
    window: Grid = (8, 7, 7)
    fragment_bias: tuple[bool, ...] = (True, True, True, False)
    mlp_ratio: int = 4
    head_hidden: int = 64
    scales_window: bool = True

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    def width(self, stage: int) -> int:
        """Return the channels of a token in a stage; every patch merging doubles them."""
        return self.embed_dim << stage

    def largest_window(self, size: Grid) -> Grid:
        """Return the window for an input of `size` (frames, rows, columns): as it is, or in proportion to the input.

        Raises:
            SpecError: an input for which the scaled window is empty or exceeds the bias table.
        """
        if not self.scales_window:
            return self.window
        frames, rows, columns = (
            extent * pixels // full for extent, pixels, full in zip(self.window, size, _FULL_INPUT, strict=True)
        )
        scaled = (frames, rows, columns)
        if min(scaled) < 1 or any(extent > full for extent, full in zip(scaled, self.window, strict=True)):
            raise SpecError(
                f"FAST-VQA cannot run on {size[0]} frames of {size[1]}x{size[2]} pixels: expected 4 to 35 frames, and "
                "a height and a width of 32 to 255."
            )
        return scaled

    def as_json(self) -> dict[str, Any]:
        """Return the sizes as JSON types, tuples as lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class FastVqaConfig:
    """A variant: its network, its frames, its scale, and the file that its authors publish.

    A video gives `num_clips` clips of `clip_frames` frames, `stride` apart: whole clips if `num_segments` is 0,
    otherwise `num_segments` segments of the video that share the frames of one clip. A frame is spliced from
    `fragments` (rows, columns) patches of 32 pixels; their positions are fixed. `mean` and `std` map a score to 0..1
    (FASTVQA_SPEC section 4).
    """

    network: SwinConfig = field(default_factory=SwinConfig)
    num_clips: int = 1
    clip_frames: int = 32
    num_segments: int = 0
    stride: int = 2
    fragments: tuple[int, int] = (7, 7)
    mean: float = 0.0
    std: float = 1.0
    weights_file: str = ""

    @property
    def num_frames(self) -> int:
        return self.num_clips * self.clip_frames


_B = SwinConfig()
# The window of M is fixed: its weights are older than the rule that scales windows (FASTVQA_SPEC section 1.1).
_M = SwinConfig(window=(4, 4, 4), fragment_bias=(False,) * 4, scales_window=False)

FAST_VQA = FastVqaConfig(_B, 4, mean=-0.110198185, std=0.04178565, weights_file="FAST_VQA_B_1_4.pth")
FAST_VQA_M = FastVqaConfig(
    _M, 4, 16, fragments=(4, 4), mean=0.023889644, std=0.030781006, weights_file="FAST_VQA_M_1_4.pth"
)
FASTERVQA = FastVqaConfig(_B, num_segments=8, mean=0.14759505, std=0.03613452, weights_file="FAST_VQA_3D_1_1.pth")
FASTERVQA_MS = FastVqaConfig(
    _B, num_segments=8, fragments=(5, 5), mean=0.15218826, std=0.03230298, weights_file="FAST_VQA_3D_1_1.pth"
)
FASTERVQA_MT = FastVqaConfig(
    _B, clip_frames=16, num_segments=4, mean=0.14699507, std=0.036453716, weights_file="FAST_VQA_3D_1_1.pth"
)


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
