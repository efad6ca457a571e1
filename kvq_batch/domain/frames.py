"""Frames that a model requests of a video: the sampler, and the request.

Axes: T frames, H rows, W columns, 3 = RGB.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Offset = Literal["middle", "random"]

ALGORITHMS = {"sampling": 1, "decode": 2, "resize": 1}
"""Increase a number when code changes the pixels that a model gets. All fingerprints change with it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Fragment sampling of KVQ_SPEC section 2, with a deterministic position inside each segment.

    A clip of n frames is divided into `num_fragments` segments of L = n // num_fragments frames. Each segment gives
    `frames_per_fragment` frames, `stride` apart. `offset` is the start of a fragment in its segment: "middle" is
    floor((L - span) / 2), "random" is uniform in [0, L - span), with span = frames_per_fragment * stride; both are 0 if
    L <= span. One frame per fragment with stride 1 is uniform sampling.
    """

    num_fragments: int = 8
    frames_per_fragment: int = 4
    stride: int = 2
    offset: Offset = "middle"
    seed: int = 0

    @property
    def num_frames(self) -> int:
        return self.num_fragments * self.frames_per_fragment

    def indices(self, num_frames: int, key: str = "") -> NDArray[np.int64]:
        """Return frame indices in [0, num_frames), int64 [num_fragments * frames_per_fragment]; short videos repeat.

        `key` names the clip (video id and clip index). With offset "random" it seeds the draw, so a score does not
        depend on the worker or on the order of the videos.
        """
        if num_frames < 1:
            raise ValueError(f"A video needs at least one frame, got {num_frames}.")
        segment = num_frames // self.num_fragments
        span = self.frames_per_fragment * self.stride
        starts = np.arange(self.num_fragments, dtype=np.int64) * segment
        slack = segment - span
        if slack > 0 and self.offset == "middle":
            starts += slack // 2
        elif slack > 0:
            digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
            generator = np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))
            starts += generator.integers(0, slack, size=self.num_fragments)
        steps = np.arange(self.frames_per_fragment, dtype=np.int64) * self.stride
        return ((starts[:, None] + steps[None, :]) % num_frames).reshape(-1)


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """The frames of one clip that a scorer requests: uint8 RGB [T, H, W, 3].

    `size` is (height, width) in pixels after the bicubic resize of KVQ_SPEC section 2, which does not keep the aspect
    ratio; None requests the native size, rotated upright. With `fragments` (rows, columns) a frame of that size is
    spliced from patches of native resolution, each cut from the middle of its cell (fragments of FAST-VQA, ECCV 2022,
    section 3.1, at a fixed position).

    Raises:
        ValueError: the size is not a multiple of the fragments.
    """

    sampling: Sampling = Sampling()
    size: tuple[int, int] | None = (448, 448)
    fragments: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.fragments is None:
            return
        if self.size is None or any(n < 1 or extent % n for extent, n in zip(self.size, self.fragments, strict=True)):
            raise ValueError(f"Frame size {self.size} is not a multiple of fragments {self.fragments}.")
