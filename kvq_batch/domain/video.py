"""Facts about a video, its clips, and decoded frames; all picklable."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import ItemError

Hdr = Literal["refuse", "as-is"]


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Facts from the container and the codec, and the number of frames that were found.

    The decoded picture is cropped to what is shown, mirrored left to right if `is_mirrored`, then turned clockwise by
    `rotation_deg` (0, 90, 180 or 270). Width and height are those of the picture after that, in stored pixels, not
    stretched by `sample_aspect_ratio` (width / height of one pixel). `frame_rate` is the mean, in frames per second.
    Colour fields are ffmpeg's names ("bt709", "smpte2084", "tv"), or "unknown".
    """

    width_px: int
    height_px: int
    rotation_deg: int
    is_mirrored: bool
    sample_aspect_ratio: float
    frame_rate: float
    is_variable_frame_rate: bool
    duration_s: float
    num_frames: int
    codec: str
    pixel_format: str
    bit_depth: int
    field_order: str
    color_primaries: str
    color_transfer: str
    color_matrix: str
    color_range: str


@dataclass(frozen=True, slots=True)
class Window:
    """An interval [start_s, end_s) of a video, in seconds from its first frame."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class ClipPolicy:
    """Rule that cuts a video into clips: one clip of the whole video (as published), or one every `every_s` seconds.

    Each clip of a series is `length_s` long (default: `every_s`, so clips are adjacent). The last clip is dropped if it
    is shorter than half of that, unless it is the only one.
    """

    every_s: float | None = None
    length_s: float | None = None

    def windows(self, duration_s: float) -> list[Window]:
        """Return the windows of all clips, at least one; none ends after `duration_s`."""
        if self.every_s is None:
            return [Window(0.0, duration_s)]
        length_s = self.length_s or self.every_s
        num_starts = max(1, int(np.ceil(duration_s / self.every_s)))
        windows = [Window(i * self.every_s, min(i * self.every_s + length_s, duration_s)) for i in range(num_starts)]
        return [w for i, w in enumerate(windows) if i == 0 or w.end_s - w.start_s >= length_s / 2]


@dataclass(frozen=True, slots=True)
class ClipFrames:
    """What answers one `FrameRequest` for one clip.

    `pixels` is uint8 RGB [T, H, W, 3], or the result of the request's extractor. `indices` int64 [T] are frame indices
    in presentation order from the start of the video, `times_s` float64 [T] presentation times from the first frame.
    With `error`, the request cannot be answered for this video, and the arrays are empty.
    """

    pixels: NDArray[Any]
    indices: NDArray[np.int64]
    times_s: NDArray[np.float64]
    error: ItemError | None = None

    @classmethod
    def empty(cls, error: ItemError | None = None) -> "ClipFrames":
        """Return no frames: because of `error`, or because they come in other parts of the clip."""
        return cls(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.float64), error)


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """One clip of a video for all models of the job: `frames[i]` answers the i-th `FrameRequest`.

    A streamed request comes in parts of its own, `chunk_index` of `num_chunks`; there, and in the part with all other
    requests, `frames` are empty for requests that come elsewhere. A decode that passed on wrong frames starts again:
    parts of a later `decode_pass` replace all that came before from the same call.
    """

    clip_index: int
    num_clips: int
    window: Window
    frames: tuple[ClipFrames, ...]
    chunk_index: int = 0
    num_chunks: int = 1
    decode_pass: int = 0
