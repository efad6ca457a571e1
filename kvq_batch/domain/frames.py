"""Which frames of a video a model sees: the sampler and the request that a model makes of it.

Legend of axes: T frames, H rows, W columns, 3 = RGB.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Offset = Literal["middle", "random"]

ALGORITHMS = {"sampling": 1, "decode": 1, "resize": 1}
"""Increase by hand when code changes which pixels a model sees: every fingerprint changes with it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Fragment sampling of KVQ_SPEC section 2, with a deterministic place inside each segment.

    A clip of n frames is cut into `num_fragments` segments of L = n // num_fragments frames; each segment gives
    `frames_per_fragment` frames, `stride` apart. `offset` says where in its segment a fragment starts:
    "middle" at floor((L - span) / 2), "random" uniform in [0, L - span), both 0 where L <= span, with
    span = frames_per_fragment * stride. One frame per fragment and stride 1 is plain uniform sampling.
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
        """Frame indices in [0, num_frames), int64 [num_fragments * frames_per_fragment], wrapping round short videos.

        `key` names the clip (video id and clip index); with offset "random" it seeds the draw, so that a score
        depends neither on the worker nor on the order of the videos.
        """
        if num_frames < 1:
            raise ValueError(f"a video needs at least one frame, got {num_frames}")
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
    """The frames that a scorer wants of one clip: uint8 RGB [T, H, W, 3].

    `size` is (height, width) in pixels of the bicubic resize of KVQ_SPEC section 2 (aspect ratio not kept), or
    None for the native size of the video, rotated upright. With `fragments` (rows, columns) a frame of that size is
    spliced from that many patches instead, each cut at native resolution from the middle of its cell of the frame
    (fragments of FAST-VQA, ECCV 2022, section 3.1, at a fixed place).

    Raises: ValueError for fragments that do not divide the size.
    """

    sampling: Sampling = Sampling()
    size: tuple[int, int] | None = (448, 448)
    fragments: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.fragments is None:
            return
        if self.size is None or any(n < 1 or extent % n for extent, n in zip(self.size, self.fragments, strict=True)):
            raise ValueError(f"a frame of {self.size} cannot be spliced from {self.fragments} patches of one size")
