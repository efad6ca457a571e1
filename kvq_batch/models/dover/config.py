"""Sizes of DOVER and DOVER-Mobile, and the constants that fuse their branches.

The module imports without torch, so commands that only list models start fast.
"""

from dataclasses import asdict, dataclass
from typing import Any

from kvq_batch.models.fastvqa.config import SwinConfig, sigmoid


@dataclass(frozen=True, slots=True)
class ConvNextConfig:
    """Sizes of a ConvNeXt in 3D (FASTVQA_SPEC section 6).

    `version` is 1 (a scale per channel) or 2 (global response normalisation). `dims` and `depths` are the channels and
    the blocks of each stage.
    """

    version: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DoverConfig:
    """Sizes of the two branches and of their heads.

    The technical branch scores fragments of native resolution in `num_clips` clips, the aesthetic branch whole frames.
    """

    technical: SwinConfig | ConvNextConfig
    aesthetic: ConvNextConfig
    head_hidden: int
    weights_file: str
    num_clips: int = 3
    clip_frames: int = 32
    stride: int = 2
    fragments: tuple[int, int] = (7, 7)

    def as_json(self) -> dict[str, Any]:
        """Return the sizes of the networks as JSON types."""
        return {
            "technical": asdict(self.technical),
            "aesthetic": asdict(self.aesthetic),
            "head_hidden": self.head_hidden,
        }


_FEMTO = ConvNextConfig(2, (48, 96, 192, 384), (2, 2, 6, 2))
DOVER = DoverConfig(
    technical=SwinConfig(scales_window=False),
    aesthetic=ConvNextConfig(1, (96, 192, 384, 768), (3, 3, 9, 3)),
    head_hidden=64,
    weights_file="DOVER.pth",
)
DOVER_MOBILE = DoverConfig(technical=_FEMTO, aesthetic=_FEMTO, head_hidden=32, weights_file="DOVER-Mobile.pth")


def fuse(technical: float, aesthetic: float) -> tuple[float, float, float]:
    """Return (technical, aesthetic, overall) quality in 0..1 of the raw scores of the branches (section 6)."""
    t = (technical - 0.1107) / 0.07355
    a = (aesthetic + 0.08285) / 0.03774
    return sigmoid(t), sigmoid(a), sigmoid(0.6104 * t + 0.3896 * a)
