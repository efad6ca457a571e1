"""Sizes of the coarse-to-fine network: SwinV2 and what joins its stages and frames.

The paper (arXiv 2401.08522) gives the structure, not the sizes, and has no code or weights. The sizes here are those of
SWINV2_SPEC section 3. The module imports without torch.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.frames import NATIVE_SIDE

MAX_FRAMES = 32


@dataclass(frozen=True, slots=True)
class SwinV2Config:
    """Sizes of SwinV2; the defaults are those of SwinV2-T (SWINV2_SPEC section 2).

    `num_bands`, which SwinV2 does not have, adds this number of bands of luma detail to the input, as in KVQ-Lite.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 8
    mlp_ratio: int = 4
    drop_path: float = 0.2
    num_bands: int = 0

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
        spatial = self.spatial
        if not spatial.depths or len(spatial.depths) != len(spatial.num_heads):
            raise SpecError(
                f"depths {spatial.depths} and num_heads {spatial.num_heads} differ in length. Give each one entry per "
                "stage."
            )
        positive = (spatial.embed_dim, *spatial.depths, *spatial.num_heads, spatial.mlp_ratio, *self.input_size)
        positive += (self.dim, self.num_heads, self.fusion_layers, self.time_layers, self.grid, self.head_hidden)
        if min(positive) < 1 or spatial.num_bands < 0 or spatial.window < 2 or not 0 <= spatial.drop_path < 1:
            raise SpecError(f"Every size of a network must be at least 1, its window 2, drop_path 0 to 1: {self}.")
        for stage, heads in enumerate(spatial.num_heads):
            if spatial.width(stage) % heads:
                raise SpecError(
                    f"The {spatial.width(stage)} channels of stage {stage} are not a multiple of its {heads} heads. "
                    "Change embed_dim or num_heads."
                )
        smallest = 4 << (spatial.num_stages - 1)
        if min(self.input_size) < smallest:
            raise SpecError(
                f"Invalid input_size {self.input_size}: {spatial.num_stages} stages need {smallest} pixels."
            )
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

    @property
    def short_side(self) -> int:
        """The length to which a longer short side of a frame is resized: 288 pixels for an input of 256."""
        return NATIVE_SIDE if self.view == "native" else max(self.input_size) * 9 // 8

    def as_json(self) -> dict[str, Any]:
        """Return the sizes as JSON types, tuples as lists."""
        spatial, others = asdict(self.spatial), {key: v for key, v in asdict(self).items() if key != "spatial"}
        return {"spatial": _as_lists(spatial)} | _as_lists(others)

    @classmethod
    def from_json(cls, sizes: dict[str, Any]) -> "CtfConfig":
        """Return the configuration that `as_json` wrote.

        Raises:
            SpecError: an unknown or missing size, or a value of another type.
        """
        spatial = sizes.get("spatial")
        if not isinstance(spatial, dict):
            raise SpecError("The sizes lack spatial.")
        others = _checked(cls, {key: value for key, value in sizes.items() if key != "spatial"}, ("spatial",))
        return cls(spatial=SwinV2Config(**_checked(SwinV2Config, spatial, ())), **others)


def _as_lists(sizes: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()}


def _checked(kind: type, found: dict[str, Any], ignored: tuple[str, ...]) -> dict[str, Any]:
    """Return the sizes of a dataclass from JSON types, each of the type of its default."""
    expected = {f.name: f.default for f in fields(kind) if f.name not in ignored}
    if different := sorted(set(expected) ^ set(found)):
        raise SpecError(f"The sizes lack, or have unknown keys: {', '.join(different)}.")
    sizes = {}
    for key, value in found.items():
        default = expected[key]
        if isinstance(default, tuple):
            is_valid = isinstance(value, list) and all(type(number) is int for number in value)
        else:
            is_valid = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
        if not is_valid:
            raise SpecError(f"{key} = {value!r} does not have the type of {default!r}.")
        sizes[key] = tuple(value) if isinstance(value, list) else value
    return sizes


PUBLISHED_STRUCTURE = CtfConfig()
"""SwinV2-T at 256x256, 8 frames: the sizes of the specification."""
