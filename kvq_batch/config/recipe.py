"""Renditions as data: the segment of a reference, and what is done to it in which rectangles, reproducible from a seed.

A recipe is a chain of steps over the whole frame and, where it has patches, rectangles of the frame that hold another
chain of the same source. Every chain runs over whole frames before its rectangle is cut, so that a cell's quality is
that of the rendition shown in it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import canonical_json

CELL_PX = 32
"""Side of a cell of the texture map of the published network, in pixels of its input."""

SLOT_FRAMES = 2
"""Frames of a slot of the texture map."""


@dataclass(frozen=True, slots=True)
class StepKind:
    """Unit and accepted range (inclusive) of the amount of a step."""

    unit: str
    low: float
    high: float
    is_codec: bool = False


STEPS = {
    "h264": StepKind("x264 CRF", 1, 51, True),
    "hevc": StepKind("x265 CRF", 1, 51, True),
    "vp9": StepKind("libvpx CRF", 1, 63, True),
    "av1": StepKind("SVT-AV1 CRF", 1, 63, True),
    "mjpeg": StepKind("quantiser of each picture on its own: blocks", 2, 31, True),
    "packet_loss": StepKind("share of H.264 slices lost, at CRF 24", 0.001, 0.5, True),
    "downscale": StepKind("factor down, by area, and up again, bicubic", 1.1, 16),
    "pixelate": StepKind("side of the squares in pixels", 1.5, 16),
    "blur": StepKind("sigma of a Gaussian in pixels", 0.2, 32),
    "motion_blur": StepKind("length of a line in pixels", 2, 64),
    "noise": StepKind("sigma in levels of 255, drawn for every frame", 0.5, 96),
    "banding": StepKind("remaining levels of luma and chroma", 2, 128),
    "exposure": StepKind("stops; light out of range is clipped", -4, 4),
    "freeze": StepKind("share of frames that repeat the one before", 0.01, 0.95),
}


@dataclass(frozen=True, slots=True)
class Step:
    """A single degradation: its name in `STEPS` and its amount.

    Raises:
        SpecError: unknown name, or an amount outside its range.
    """

    name: str
    amount: float

    def __post_init__(self) -> None:
        kind = STEPS.get(self.name)
        if kind is None:
            raise SpecError(f"no degradation {self.name!r}; expected one of {', '.join(STEPS)}")
        if not kind.low <= self.amount <= kind.high:
            raise SpecError(
                f"degradation {self.name} takes {kind.low:g} to {kind.high:g} ({kind.unit}), got {self.amount:g}"
            )
        # 35 and 35.0 are the same step and must give the same text and label.
        object.__setattr__(self, "amount", float(self.amount))

    def __str__(self) -> str:
        return f"{self.name}-{self.amount:g}"


Chain = tuple[Step, ...]
"""Steps applied in order. An empty chain is the reference itself."""


@dataclass(frozen=True, slots=True)
class Cells:
    """A rectangle on the grid of cells, starting at row `top` and column `left`."""

    top: int
    left: int
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if min(self.top, self.left) < 0 or min(self.rows, self.columns) < 1:
            raise SpecError(f"a rectangle of cells needs a position of at least 0 and a size of at least 1, got {self}")


def draw_cells(grid: tuple[int, int], rng: np.random.Generator) -> Cells:
    """Draw a rectangle of a quarter to two thirds of the grid (rows, columns) each way, but not all cells."""
    sizes = [int(np.clip(round(rng.uniform(0.25, 0.67) * extent), 1, max(1, extent - 1))) for extent in grid]
    top, left = (int(rng.integers(0, extent - size + 1)) for extent, size in zip(grid, sizes, strict=True))
    return Cells(top, left, *sizes)


@dataclass(frozen=True, slots=True)
class Patch:
    """A rectangle that shows another rendition of the same reference."""

    cells: Cells
    steps: Chain


@dataclass(frozen=True, slots=True)
class Recipe:
    """Description of a rendition: `steps` over the frame, then each patch on top, in order.

    `seed` seeds everything that a step draws: noise, the direction of a motion, which packets are lost.
    """

    steps: Chain = ()
    patches: tuple[Patch, ...] = ()
    seed: int = 0

    def __str__(self) -> str:
        """Return a readable name, such as `h264-35`, `blur-2+h264-35`, `none~blur-3` (blur in a region)."""
        return "~".join(["+".join(map(str, chain)) or "none" for chain in self.chains])

    @property
    def chains(self) -> tuple[Chain, ...]:
        """Return the distinct chains, that of the whole frame first."""
        return tuple(dict.fromkeys([self.steps, *(patch.steps for patch in self.patches)]))

    @property
    def rate(self) -> str:
        """Return the last codec and rate of the whole frame, or `source` without one: a part of a label's group id."""
        coded = [str(step) for step in self.steps if STEPS[step.name].is_codec]
        return coded[-1] if coded else "source"

    @property
    def kind(self) -> str:
        """Return clean, single (one step), chain (several), region (in a clean frame), or mix (of two renditions)."""
        if not self.patches:
            return ("clean", "single")[len(self.steps)] if len(self.steps) < 2 else "chain"
        return "region" if not self.steps and all(patch.steps for patch in self.patches) else "mix"

    def to_json(self) -> str:
        """Return canonical JSON: equal recipes give equal text."""
        return canonical_json(
            {
                "steps": steps_json(self.steps),
                "patches": [
                    {"cells": [p.cells.top, p.cells.left, p.cells.rows, p.cells.columns], "steps": steps_json(p.steps)}
                    for p in self.patches
                ],
                "seed": self.seed,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Parse the text of `to_json`.

        Raises:
            SpecError: the text is not a recipe.
        """
        try:
            value: dict[str, Any] = json.loads(text)
            patches = tuple(Patch(Cells(*p["cells"]), chain_of(p["steps"])) for p in value["patches"])
            return cls(chain_of(value["steps"]), patches, int(value["seed"]))
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(f"not a recipe: {text[:200]}") from error


def steps_json(steps: Chain) -> list[list[str | float]]:
    """Return a chain as JSON values: [name, amount] of each step."""
    return [[step.name, step.amount] for step in steps]


def chain_of(values: Sequence[Sequence[Any]]) -> Chain:
    """Return the chain of `steps_json` values.

    Raises:
        SpecError: unknown step.
    """
    return tuple(Step(name, amount) for name, amount in values)


FramingMode = Literal["native", "cover", "whole"]

CameraMotion = Literal["moving", "slow", "rest"]
"""How the camera moves over a still."""


@dataclass(frozen=True, slots=True)
class Segment:
    """`num_frames` consecutive frames from the middle of the `number`-th of `of` equal stretches of a reference.

    `framing`: "native" crops height x width pixels at a position that `seed` draws, "cover" first scales the frame down
    until it just covers them, "whole" scales the frame to them, like KVQ's own input (aspect ratio not kept). No
    framing scales up. A still has one stretch; `seed` draws the motion of its camera: "moving" pans up to 5 pixels a
    frame, zooms, rotates and may shake, "slow" pans by less than a pixel a frame, "rest" shows the same pixels in every
    frame.

    `pre_degraded` is a chain applied to the reference itself. Uploads of users are often soft, noisy or coded, and a
    model trained on sharp references only rates them as damaged.

    Raises:
        SpecError: the size is not made of whole cells, or there is no such stretch.
    """

    number: int = 0
    of: int = 1
    num_frames: int = 32
    height_px: int = 448
    width_px: int = 448
    framing: FramingMode = "native"
    seed: int = 0
    pre_degraded: Chain = ()
    camera: CameraMotion = "moving"

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise SpecError(f"segment number {self.number} is not within 0 to {self.of - 1}")
        if self.num_frames < 2 or self.num_frames % 2:
            raise SpecError(f"a segment needs an even number of frames, got {self.num_frames}")
        if min(self.height_px, self.width_px) < 2 * CELL_PX or self.height_px % CELL_PX or self.width_px % CELL_PX:
            raise SpecError(
                f"a segment of {self.height_px}x{self.width_px} pixels is not made of whole cells; use multiples of "
                f"{CELL_PX}, at least {2 * CELL_PX}"
            )

    @property
    def segment_id(self) -> str:
        """Return canonical JSON of all fields, without an empty `pre_degraded` and a `camera` that is moving."""
        fields: dict[str, Any] = asdict(self) | {"pre_degraded": steps_json(self.pre_degraded)}
        left_out = {"pre_degraded": [], "camera": "moving"}
        return canonical_json({name: value for name, value in fields.items() if left_out.get(name) != value})

    @classmethod
    def from_json(cls, text: str) -> "Segment":
        """Return the segment whose `segment_id` is `text`."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"pre_degraded": chain_of(fields.get("pre_degraded", ()))})

    def can_show(self, steps: Chain) -> bool:
        """Return whether the steps change the segment: frozen frames look like those of a picture at rest."""
        return self.camera != "rest" or all(step.name != "freeze" for step in steps)

    def first_frame(self, num_frames: int) -> int | None:
        """Return the first frame in a reference of `num_frames` frames; None if the stretch is too short."""
        stretch = num_frames // self.of
        if stretch < self.num_frames:
            return None
        return self.number * stretch + (stretch - self.num_frames) // 2

    def rng(self) -> np.random.Generator:
        """Return the generator that draws a crop position or the motion of a camera."""
        return np.random.default_rng([self.seed, self.number])
