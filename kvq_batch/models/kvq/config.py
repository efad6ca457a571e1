"""Sizes of a KVQ network, and what follows from them: token grids, valid input sizes, names and shapes of all tensors.

A smaller network is another value of `KvqConfig`. The module imports without torch, so commands that only describe a
model start fast.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from kvq_batch.domain.errors import SpecError
from kvq_batch.models.backbones.lite_blocks import NUM_LITE_BLOCKS, convolution_shapes, num_features
from kvq_batch.models.checkpoints.tensors import Shape

Grid = tuple[int, int, int]

# Fields that were added after the published network. `as_json` leaves them out where they have their default, so that
# the digest of the published network does not change.
_ADDED_FIELDS = (
    "num_segments",
    "num_bands",
    "statistics",
    "convolutions",
    "stem_width",
    "fragments",
    "slot_by_slot",
    "crop",
    "intra",
    "saliency",
)

# Number of statistics of a patch: of a frame with one band, of each further band, of the change of a band.
_PER_FRAME, _PER_BAND, _PER_CHANGE = 45, 6, 3
CHANGING_BANDS = 2
"""Number of bands, the finest ones, whose change from frame to frame is measured."""


@dataclass(frozen=True, slots=True)
class KvqConfig:
    """Sizes of one network; the defaults are the published ones (KVQ_SPEC section 3).

    Per stage: `depths` is the number of blocks, `num_heads` the number of heads, and `top_k` the number of windows
    that cross-window attention selects, 0 for a stage without it. `patch` and `window` are (frames, rows, columns).
    `num_frames` and `input_size` (height, width) are requested from the decoder; the network accepts every size that
    `maps_shape` accepts. `num_segments` is the number of segments of a clip that its frames come from (KVQ_SPEC
    section 2).

    Options that the published network does not use; 0 switches each off. `num_bands` adds this number of bands of luma
    detail to the input. `stem_width` computes the first tokens by two convolutions with this number of channels
    between them. `statistics` = 1 computes them from statistics of each patch, and `convolutions` adds the features of
    this number of blocks of EfficientNet-Lite0, frozen, on the first frame of a slot. `fragments` (rows, columns)
    splices the input from patches of native resolution instead of resizing frames. `slot_by_slot` = 1 runs every slot
    of a clip separately, so a network that was trained on single slots scores clips of any length.

    Ablations; the defaults are the published network. `crop` is 1 or 2 to cut the input from the middle of a frame of
    native size instead of resizing the frame; with 2, training cuts it at random positions. `intra` = 0 leaves
    attention inside windows out of the fusion blocks, and `top_k` of 0 everywhere the attention across windows, with
    its saliency maps. `saliency` is 2 for the maps of all fusion stages, 1 for those of the last one, 0 for a score
    without saliency, the mean of the texture.

    Raises:
        SpecError: sizes that do not form a network.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    top_k: tuple[int, ...] = (0, 0, 8, 4)
    patch: Grid = (2, 4, 4)
    window: Grid = (8, 7, 7)
    mlp_ratio: int = 4
    head_hidden: int = 64
    num_frames: int = 32
    input_size: tuple[int, int] = (448, 448)
    num_segments: int = 8
    num_bands: int = 0
    statistics: int = 0
    convolutions: int = 0
    stem_width: int = 0
    fragments: tuple[int, int] = (0, 0)
    slot_by_slot: int = 0
    crop: int = 0
    intra: int = 1
    saliency: int = 2

    def __post_init__(self) -> None:
        if not self.depths or not len(self.depths) == len(self.num_heads) == len(self.top_k):
            raise SpecError(
                f"depths {self.depths}, num_heads {self.num_heads} and top_k {self.top_k} differ in length. Give each "
                "one entry per stage."
            )
        positive = (self.embed_dim, *self.depths, *self.num_heads, *self.patch, *self.window)
        positive += (self.mlp_ratio, self.head_hidden, self.num_frames, *self.input_size, self.num_segments)
        if min(positive) < 1 or min(self.num_bands, self.stem_width, *self.fragments) < 0:
            raise SpecError(f"Every size of a network must be at least 1, and of an option at least 0: {self}.")
        if min(self.top_k) < 0:
            raise SpecError(f"Invalid top_k {self.top_k}: set it nowhere below 0.")
        if not self.intra and not any(self.top_k):
            raise SpecError("intra = 0 needs attention across windows. Set top_k to at least 1 in one stage.")
        if self.crop and any(self.fragments):
            raise SpecError("crop and fragments exclude each other: both say which pixels of a frame are the input.")
        for stage, heads in enumerate(self.num_heads):
            if self.width(stage) % heads:
                raise SpecError(
                    f"The {self.width(stage)} channels of stage {stage} are not a multiple of its {heads} heads. "
                    "Change embed_dim or num_heads."
                )
        for name, highest in (("slot_by_slot", 1), ("statistics", 1), ("intra", 1), ("crop", 2), ("saliency", 2)):
            if not 0 <= getattr(self, name) <= highest:
                allowed = " or ".join(map(str, range(highest + 1)))
                raise SpecError(f"Invalid {name} {getattr(self, name)}: expected {allowed}.")
        if self.num_frames % self.num_segments:
            raise SpecError(f"num_frames {self.num_frames} is not a multiple of num_segments {self.num_segments}.")
        if self.stem_width and self.patch[1:] != (4, 4):
            raise SpecError(f"Invalid patch {self.patch}: with stem_width it must be (frames, 4, 4).")
        if any(self.fragments) and any(
            not number or extent % number for extent, number in zip(self.input_size, self.fragments, strict=True)
        ):
            raise SpecError(f"input_size {self.input_size} is not a multiple of fragments {self.fragments}.")
        if self.statistics:
            self._check_statistics()
        if self.convolutions and not (self.statistics and 3 <= self.convolutions <= NUM_LITE_BLOCKS):
            raise SpecError(
                f"Invalid convolutions {self.convolutions}: expected 0, or 3 to {NUM_LITE_BLOCKS} blocks with "
                "statistics = 1."
            )
        self.maps_shape(self.num_frames, *self.input_size)

    def _check_statistics(self) -> None:
        side, tile = self.patch[1], self.tile(*self.input_size)
        if not self.num_bands or self.stem_width:
            raise SpecError("statistics = 1 needs num_bands > 0 and stem_width = 0.")
        if side % 8 or self.patch[2] != side or any(extent % side for extent in tile):
            raise SpecError(
                f"Invalid patch of {side}x{self.patch[2]} pixels: with statistics it must be square, its side a "
                f"multiple of 8, and fragments of {tile[0]}x{tile[1]} pixels a multiple of it."
            )

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def fusion_stages(self) -> tuple[int, ...]:
        return tuple(stage for stage, k in enumerate(self.top_k) if k)

    @property
    def map_stages(self) -> tuple[int, ...]:
        """The fusion stages whose saliency maps are used."""
        return self.fusion_stages[len(self.fusion_stages) - 1 :] if self.saliency == 1 else self.fusion_stages

    @property
    def num_maps(self) -> int:
        """Number of saliency maps that are used, one per fusion block of `map_stages`."""
        return sum(self.depths[stage] for stage in self.map_stages) if self.saliency else 0

    @property
    def input_channels(self) -> int:
        """Number of input planes: RGB, and two for each band."""
        return 3 + 2 * self.num_bands

    @property
    def num_statistics(self) -> int:
        """Number of statistics of a patch of a slot: of its frames, and of the changes from one to the next."""
        per_frame = _PER_FRAME + (self.num_bands - 1) * _PER_BAND
        per_change = min(self.num_bands, CHANGING_BANDS) * _PER_CHANGE
        return self.patch[0] * per_frame + (self.patch[0] - 1) * per_change

    @property
    def num_measurements(self) -> int:
        """Number of measurements that a token is made from: its statistics, and its features of convolutions."""
        return self.num_statistics + num_features(self.convolutions, self.patch[1])

    def tile(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the area whose pixels were neighbours in the video: a fragment, or the whole frame."""
        if not all(self.fragments):
            return height, width
        tile = (self.input_size[0] // self.fragments[0], self.input_size[1] // self.fragments[1])
        return tile if not height % tile[0] and not width % tile[1] else (height, width)

    def has_intra(self, stage: int) -> bool:
        """Whether blocks of a stage have attention inside windows."""
        return bool(self.intra or not self.top_k[stage])

    def width(self, stage: int) -> int:
        """Return the channels of a token in a stage; every patch merging doubles them."""
        return self.embed_dim << stage

    def grids(self, num_frames: int, height: int, width: int) -> list[Grid]:
        """Return the tokens (slots, rows, columns) of every stage for a clip; ends are padded, so sizes round up."""
        size = (num_frames, height, width)
        slots, rows, columns = (-(-extent // step) for extent, step in zip(size, self.patch, strict=True))
        return [(slots, -(-rows // (1 << s)), -(-columns // (1 << s))) for s in range(self.num_stages)]

    def maps_shape(self, num_frames: int, height: int, width: int) -> Grid:
        """Return (slots, rows, columns) of the texture and saliency maps of a clip.

        Valid are multiples of patch * 2^(stages - 1) pixels (32 for the published sizes), and any number of frames.

        Raises:
            SpecError: a size at which the maps of the fusion stages cannot be pooled onto the last grid.
        """
        if min(num_frames, height, width) < 1:
            raise SpecError(
                f"KVQ cannot run on {num_frames} frames of {height}x{width} pixels: each must be at least 1."
            )
        grids = self.grids(num_frames, height, width)
        slots, rows, columns = grids[-1]
        for stage in self.fusion_stages:
            step = self.pool_step(stage, grids)
            if grids[stage][1] // step != rows or grids[stage][2] // step != columns:
                multiple = tuple(step << (self.num_stages - 1) for step in self.patch[1:])
                raise SpecError(
                    f"KVQ cannot run on frames of {height}x{width} pixels: the {grids[stage][1]}x{grids[stage][2]} "
                    f"saliency maps of stage {stage} do not pool onto the {rows}x{columns} texture map. Use a height "
                    f"that is a multiple of {multiple[0]}, and a width that is a multiple of {multiple[1]}."
                )
        return slots, rows, columns

    def pool_step(self, stage: int, grids: list[Grid]) -> int:
        """Return kernel and stride, in cells, of the pooling of a stage's maps: floor(W_map / W_Q) (section 3.4)."""
        return max(1, grids[stage][2] // grids[-1][2])

    def as_json(self) -> dict[str, Any]:
        """Return the sizes as JSON types, tuples as lists, without added fields that have their default."""
        used = {key: v for key, v in asdict(self).items() if key not in _ADDED_FIELDS or v != getattr(PUBLISHED, key)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in used.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "KvqConfig":
        """Return the configuration that `as_json` wrote.

        Raises:
            SpecError: an unknown or missing size, or one that is neither an integer nor a list of integers.
        """
        names = set(cls.__dataclass_fields__)
        if missing := names - set(_ADDED_FIELDS) - set(fields):
            raise SpecError(f"The sizes lack {', '.join(sorted(missing))}.")
        if unknown := set(fields) - names:
            raise SpecError(f"The sizes have unknown keys: {', '.join(sorted(unknown))}.")
        for key, value in fields.items():
            numbers = value if isinstance(value, list) else [value]
            if not all(type(number) is int for number in numbers):
                raise SpecError(f"{key} = {value!r} is neither an integer nor a list of integers.")
        sizes: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}
        return cls(**sizes)


PUBLISHED = KvqConfig()

# Patches of 8x8 pixels and three stages give the published [16, 14, 14] maps. Only the last stage has fusion blocks:
# one more of them, on 28x28 cells, took longer than everything else (1.7 s per clip on one core, 0.7 s without).
TINY = KvqConfig(embed_dim=32, depths=(1, 1, 2), num_heads=(1, 2, 4), top_k=(0, 0, 4), patch=(2, 8, 8), head_hidden=32)

# KVQ-Lite: statistics and convolutions of native fragments of 32 pixels, two frames per slot, slots run separately; see
# jobs/lite.
LITE = KvqConfig(
    embed_dim=96,
    depths=(2, 2),
    num_heads=(3, 6),
    top_k=(4, 1),
    patch=(2, 16, 16),
    window=(1, 7, 7),
    num_frames=16,
    input_size=(224, 224),
    num_bands=4,
    statistics=1,
    convolutions=11,
    fragments=(7, 7),
    slot_by_slot=1,
)

INDEX_SUFFIX = ".relative_position_index"


def tensor_shapes(config: KvqConfig) -> dict[str, Shape]:
    """Return the shape of every learnable tensor by its published name (KVQ_SPEC section 4), in file order."""
    shapes: dict[str, Shape] = {}

    def affine(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = weight[:1]

    root = "fragments_backbone"
    if config.stem_width:
        affine(f"{root}.patch_embed.conv1", config.stem_width, config.input_channels, 3, 3)
        affine(f"{root}.patch_embed.conv2", config.embed_dim, config.stem_width, 3, 3)
        affine(f"{root}.patch_embed.proj", config.embed_dim, config.patch[0] * config.embed_dim)
    elif config.statistics:
        for number, shape in enumerate(convolution_shapes(config.convolutions) if config.convolutions else ()):
            affine(f"{root}.patch_embed.convolutions.layers.{number}", *shape)
        if config.convolutions:
            affine(f"{root}.patch_embed.scaling", config.num_measurements - config.num_statistics)
        affine(f"{root}.patch_embed.proj", config.embed_dim, config.num_measurements)
    else:
        affine(f"{root}.patch_embed.proj", config.embed_dim, config.input_channels, *config.patch)
    affine(f"{root}.patch_embed.norm", config.embed_dim)
    table = math.prod(2 * extent - 1 for extent in config.window)
    for stage, depth in enumerate(config.depths):
        width = config.width(stage)
        for block in range(depth):
            name = f"{root}.layers.{stage}.blocks.{block}"
            affine(f"{name}.norm1", width)
            if has_intra := config.has_intra(stage):
                shapes[f"{name}.attn.relative_position_bias_table"] = (table, config.num_heads[stage])
            if config.top_k[stage]:
                affine(f"{name}.attn.cross_windowattn.qkv", 3 * width, width)
                affine(f"{name}.attn.cross_windowattn.proj", width, width)
            if has_intra:
                affine(f"{name}.attn.qkv", 3 * width, width)
                affine(f"{name}.attn.proj", width, width)
            affine(f"{name}.norm2", width)
            affine(f"{name}.mlp.fc1", config.mlp_ratio * width, width)
            affine(f"{name}.mlp.fc2", width, config.mlp_ratio * width)
        if stage + 1 < config.num_stages:
            shapes[f"{root}.layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
            affine(f"{root}.layers.{stage}.downsample.norm", 4 * width)
    last = config.width(config.num_stages - 1)
    affine(f"{root}.norm", last)
    for head in ("vqa_head", "weight_head") if config.saliency else ("vqa_head",):
        affine(f"{head}.fc_hid", config.head_hidden, last, 1, 1, 1)
        affine(f"{head}.fc_last", 1, config.head_hidden, 1, 1, 1)
    if config.num_maps:
        affine("weight_conv", 1, config.num_maps, 1, 1, 1)
    return shapes


def index_shapes(config: KvqConfig) -> dict[str, Shape]:
    """Return the shape of the int64 index buffers of published files by name; they contain nothing that is learned."""
    tokens = math.prod(config.window)
    tables = [name for name in tensor_shapes(config) if name.endswith(".relative_position_bias_table")]
    return {name.removesuffix(".relative_position_bias_table") + INDEX_SUFFIX: (tokens, tokens) for name in tables}
