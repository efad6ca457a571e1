"""Frames of RAPIQUE: one chunk a second, with two frames for statistics of pictures, eight in time and a centre.

Rules of STUDY_SPEC section 2.2. Frames are counted from the start of the clip. Needs numpy only.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import ClipTimes


@dataclass(frozen=True, slots=True)
class Chunk:
    """Frame indices of one second: its centre, two frames for spatial statistics, up to eight for temporal ones."""

    centre: int
    previous: int
    following: int
    temporal: tuple[int, ...]

    @property
    def last(self) -> int:
        """The last frame that the chunk needs."""
        return max(self.following, self.temporal[-1] if self.temporal else 0)


def chunks(num_frames: int, frame_rate: Fraction | float) -> list[Chunk]:
    """Return the chunks of a video, one for each second of it.

    Raises:
        DecodeError: the frame rate is not positive, or the video is shorter than half a second and two frames.
    """
    rate = int(float(frame_rate) + 0.5)
    if rate < 1:
        message = f"The frame rate is {float(frame_rate):g}. These features need at least 0.5 frames per second."
        raise DecodeError("frame_rate_too_low", message, True)
    found = [
        Chunk(
            centre,
            max(1, centre - rate // 3),
            min(num_frames - 2, centre + rate // 3),
            tuple(range(max(1, centre - 4), min(num_frames - 3, max(1, centre - 4) + 7) + 1)),
        )
        for centre in range(rate // 2, num_frames - 1, rate)
    ]
    if not found:
        message = f"The clip has {num_frames} frames. At {float(frame_rate):g} per second it needs {rate // 2 + 2}."
        raise DecodeError("too_few_frames", message, True)
    return found


@dataclass(frozen=True, slots=True)
class ChunkSampling:
    """Sampler of all frames of all chunks, in rising order, each once."""

    @property
    def num_frames(self) -> None:
        return None

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """See `Sampler.select`; `key` is not used."""
        found = chunks(clip.num_frames, clip.frame_rate)
        return np.unique([index for c in found for index in (c.previous, c.following, *c.temporal)]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class CentreSampling:
    """Sampler of the centre of each chunk."""

    @property
    def num_frames(self) -> None:
        return None

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """See `Sampler.select`; `key` is not used."""
        return np.array([chunk.centre for chunk in chunks(clip.num_frames, clip.frame_rate)], np.int64)


@dataclass(frozen=True, slots=True)
class SecondSampling:
    """Sampler of one frame of each complete second: the last one, or the first (STUDY_SPEC section 4.2).

    A second has as many frames as the frame rate says, rounded. For first frames it is truncated, as in the published
    code.
    """

    is_last: bool = True

    @property
    def num_frames(self) -> None:
        return None

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """See `Sampler.select`; `key` is not used."""
        rate = max(1, int(clip.frame_rate + 0.5) if self.is_last else int(clip.frame_rate))
        if clip.num_frames < rate:
            message = f"The clip has {clip.num_frames} frames. It needs a second: {rate}."
            raise DecodeError("too_few_frames", message, True)
        seconds = np.arange(clip.num_frames // rate, dtype=np.int64)
        return seconds * rate + (rate - 1 if self.is_last else 0)
