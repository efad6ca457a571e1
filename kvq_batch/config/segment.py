"""Segments of references: which frames, which region of them, and at which size."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from kvq_batch.config.recipe import CELL_PX, Chain, chain_of, steps_json
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import canonical_json

FramingMode = Literal["native", "cover", "whole"]


@dataclass(frozen=True, slots=True)
class Segment:
    """`num_frames` consecutive frames from the middle of the `number`-th of `of` equal stretches of a reference.

    `framing`: "native" crops height x width pixels at a position that `seed` draws, "cover" first scales the frame down
    until it just covers them, "whole" scales the frame to them, like KVQ's own input (aspect ratio not kept). No
    framing scales up. A still has one stretch; `seed` draws the motion of its camera.

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
        """Return canonical JSON of all fields, without an empty `pre_degraded`."""
        fields: dict[str, Any] = asdict(self) | {"pre_degraded": steps_json(self.pre_degraded)}
        return canonical_json({name: value for name, value in fields.items() if name != "pre_degraded" or value})

    @classmethod
    def from_json(cls, text: str) -> "Segment":
        """Return the segment whose `segment_id` is `text`."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"pre_degraded": chain_of(fields.get("pre_degraded", ()))})

    def first_frame(self, num_frames: int) -> int | None:
        """Return the first frame in a reference of `num_frames` frames; None if the stretch is too short."""
        stretch = num_frames // self.of
        if stretch < self.num_frames:
            return None
        return self.number * stretch + (stretch - self.num_frames) // 2

    def rng(self) -> np.random.Generator:
        """Return the generator that draws a crop position or the motion of a camera."""
        return np.random.default_rng([self.seed, self.number])
