"""Sizes of the coarse-to-fine network: SwinV2 and what joins its stages and frames.

The paper (arXiv 2401.08522) gives the structure, not the sizes, and has no code or weights. The sizes here are those of
SWINV2_SPEC section 3. The module imports without torch.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from kvq_batch.domain.errors import SpecError

MAX_FRAMES = 32


@dataclass(frozen=True, slots=True)
class SwinV2Config:
    """Sizes of SwinV2; the defaults are those of SwinV2-T (SWINV2_SPEC section 2)."""

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 8
    mlp_ratio: int = 4
    drop_path: float = 0.2

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    def width(self, stage: int) -> int:
        """Return the channels of a token in a stage; every patch merging doubles them."""
        return self.embed_dim << stage


@dataclass(frozen=True, slots=True)
class CtfConfig:
    """Sizes of the whole network, and the frames that it scores.

    `dim` is the width of the fused features, `grid` the side of the pooled maps of each stage. With `fuses_stages` off
    only the last stage is used, and with `fuses_frames` off the frame features are averaged instead of attended to.
    `view` is "resize" (short side to 288 pixels at most, then the centre) or "native" (the centre).

    Raises:
        SpecError: sizes that do not form a network.
    """

    spatial: SwinV2Config = field(default_factory=SwinV2Config)
    dim: int = 256
    num_heads: int = 4
    fusion_layers: int = 2
    time_layers: int = 2
    grid: int = 8
    head_hidden: int = 64
    fuses_stages: bool = True
    fuses_frames: bool = True
    num_frames: int = 8
    input_size: tuple[int, int] = (256, 256)
    view: str = "resize"

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise SpecError(f"dim {self.dim} is not a multiple of its {self.num_heads} heads. Change one of them.")
        if not 1 <= self.num_frames <= MAX_FRAMES:
            raise SpecError(f"Invalid num_frames {self.num_frames}: expected 1 to {MAX_FRAMES}.")
        if self.view not in ("resize", "native"):
            raise SpecError(f"Invalid view {self.view!r}: expected 'resize' or 'native'.")

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages whose maps are fused."""
        last = self.spatial.num_stages - 1
        return tuple(range(last + 1)) if self.fuses_stages else (last,)

    def as_json(self) -> dict[str, Any]:
        """Return the sizes as JSON types."""
        return asdict(self)


PUBLISHED_STRUCTURE = CtfConfig()
"""SwinV2-T at 256x256, 8 frames: the sizes of the specification."""
