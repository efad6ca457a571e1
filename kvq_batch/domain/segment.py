"""The stretch of a source that labels are made of: which frames, which part of them, at which size.

Reproducible from its fields alone. This module computes places; it opens no source.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import canonical_json
from kvq_batch.domain.recipe import CELL_PX

Framing = Literal["native", "cover", "whole"]


@dataclass(frozen=True, slots=True)
class Segment:
    """`num_frames` frames in a row from the middle of the `number`-th of `of` equal stretches of a source.

    `framing`: "native" cuts height x width pixels out at a place that `seed` draws, "cover" first scales the frame down
    until it just covers them, "whole" scales it to them, as KVQ's own input (aspect ratio not kept). No framing scales
    up: what is soft already is no source. A still has one stretch; its camera moves as `seed` draws.

    Raises:
        SpecError: a size that is not made of whole cells, or no such stretch.
    """

    number: int = 0
    of: int = 1
    num_frames: int = 32
    height_px: int = 448
    width_px: int = 448
    framing: Framing = "native"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise SpecError(f"a source has stretches 0 to {self.of - 1}, there is no {self.number}")
        if self.num_frames < 2 or self.num_frames % 2:
            raise SpecError(f"a segment needs an even number of frames, got {self.num_frames}")
        if min(self.height_px, self.width_px) < 2 * CELL_PX or self.height_px % CELL_PX or self.width_px % CELL_PX:
            raise SpecError(
                f"a segment of {self.height_px}x{self.width_px} pixels is not made of whole cells; use multiples of "
                f"{CELL_PX}, at least {2 * CELL_PX}"
            )

    @property
    def segment_id(self) -> str:
        """Canonical JSON of all fields."""
        return canonical_json(asdict(self))

    def first_frame(self, num_frames: int) -> int | None:
        """Where the segment starts in a source of `num_frames` frames; None where its stretch is too short."""
        stretch = num_frames // self.of
        if stretch < self.num_frames:
            return None
        return self.number * stretch + (stretch - self.num_frames) // 2

    def rng(self) -> np.random.Generator:
        """What draws a place or the motion of a camera."""
        return np.random.default_rng([self.seed, self.number])
