"""Frames that a model requests of a video: the samplers, the request, and extractors.

Axes: T frames, H rows, W columns, 3 = RGB.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.video import VideoFacts

Offset = Literal["middle", "random"]
Planes = Literal["rgb", "yuv420p", "yuv"]
Resize = Literal["bicubic", "bilinear", "bilinear-antialias", "lanczos"]

ALGORITHMS = {"sampling": 1, "decode": 2, "resize": 1}
"""Increase a number when code changes the pixels that a model gets. All fingerprints change with it."""


@dataclass(frozen=True, slots=True)
class ClipTimes:
    """The frames of one clip before sampling: presentation times in seconds, float64 [n], n >= 1, and the mean rate."""

    times_s: NDArray[np.float64]
    frame_rate: float

    @property
    def num_frames(self) -> int:
        return len(self.times_s)


class Sampler(Protocol):
    """Rule that selects frames of a clip. Implement it as a frozen dataclass: its name and fields identify it."""

    @property
    def num_frames(self) -> int | None:
        """Number of frames of every clip, or None if it depends on the clip."""

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """Return frame indices in [0, clip.num_frames), int64 [T]; an index may be repeated.

        `key` names the clip (video id and clip index) and seeds random draws.

        Raises:
            DecodeError: the clip has too few frames for the model. It fails this model only.
        """


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

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """See `Sampler.select`."""
        return self.indices(clip.num_frames, key)

    def indices(self, num_frames: int, key: str = "", offsets: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return frame indices in [0, num_frames), int64 [num_fragments * frames_per_fragment]; short videos repeat.

        `key` names the clip (video id and clip index). With offset "random" it seeds the draw, so a score does not
        depend on the worker or on the order of the videos. `offsets`, int64 [num_fragments], replaces both rules.
        """
        if num_frames < 1:
            raise ValueError(f"A video needs at least one frame, got {num_frames}.")
        segment = num_frames // self.num_fragments
        span = self.frames_per_fragment * self.stride
        starts = np.arange(self.num_fragments, dtype=np.int64) * segment
        slack = segment - span
        if offsets is not None:
            starts += offsets
        elif slack > 0 and self.offset == "middle":
            starts += slack // 2
        elif slack > 0:
            starts += random_generator(self.seed, key).integers(0, slack, size=self.num_fragments)
        steps = np.arange(self.frames_per_fragment, dtype=np.int64) * self.stride
        return ((starts[:, None] + steps[None, :]) % num_frames).reshape(-1)


@dataclass(frozen=True, slots=True)
class ClipSampling:
    """`num_clips` runs of `clip_length` frames, `stride` apart, each in the middle of an equal share of the starts.

    Sampler of FAST-VQA at test time (`SampleFrames`): with n frames and S = clip_length * stride, the k-th run starts
    at trunc((k + 1/2) (n - S + 1) / num_clips), or at 0 if n < S. Indices past the end continue at 0.
    """

    num_clips: int = 4
    clip_length: int = 32
    stride: int = 2

    @property
    def num_frames(self) -> int:
        return self.num_clips * self.clip_length

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """See `Sampler.select`; `key` is not used."""
        share = (clip.num_frames - self.clip_length * self.stride + 1) / self.num_clips
        starts = np.trunc(np.arange(self.num_clips) * share + share / 2).astype(np.int64) if share > 0 else 0
        steps = np.arange(self.clip_length, dtype=np.int64) * self.stride
        starts = np.broadcast_to(starts, self.num_clips)
        return ((starts[:, None] + steps[None, :]) % clip.num_frames).reshape(-1)


@dataclass(frozen=True, slots=True)
class SegmentSampling:
    """One frame of each of `num_segments` segments: segment i of n frames is [i n // num_segments, (i+1) n // ...).

    `offset` "middle" selects floor((a + b - 1) / 2) of a segment [a, b), "random" a uniform one. An empty segment, of a
    clip with fewer frames than segments, selects frame a.
    """

    num_segments: int = 8
    offset: Offset = "middle"
    seed: int = 0

    @property
    def num_frames(self) -> int:
        return self.num_segments

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """See `Sampler.select`."""
        edges = np.arange(self.num_segments + 1, dtype=np.int64) * clip.num_frames // self.num_segments
        first, end = edges[:-1], np.maximum(edges[1:], edges[:-1] + 1)
        if self.offset == "random":
            return random_generator(self.seed, key).integers(first, end)
        middle: NDArray[np.int64] = (first + end - 1) // 2
        return middle


@dataclass(frozen=True, slots=True)
class RateSampling:
    """`rate` frames per second: those nearest to `first_s` + k / rate seconds after the first frame of the clip.

    Of two that are equally near, the earlier one. The last time is before the end of the clip; a clip has at least one
    frame. A frame is repeated if the rate is higher than the video's.
    """

    rate: float
    first_s: float = 0.0

    @property
    def num_frames(self) -> None:
        return None

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """See `Sampler.select`; `key` is not used."""
        times_s = clip.times_s - clip.times_s[0]
        end_s = times_s[-1] + (1 / clip.frame_rate if clip.frame_rate > 0 else 0.0)
        wanted_s = self.first_s + np.arange(max(1, np.ceil((end_s - self.first_s) * self.rate - 1e-6))) / self.rate
        after = np.clip(np.searchsorted(times_s, wanted_s, side="left"), 0, len(times_s) - 1)
        before = np.maximum(after - 1, 0)
        # Times of containers are rounded, so a tie is one within a microsecond.
        is_before = wanted_s - times_s[before] <= np.abs(times_s[after] - wanted_s) + 1e-6
        indices: NDArray[np.int64] = np.where(is_before, before, after).astype(np.int64)
        return indices


@dataclass(frozen=True, slots=True)
class EveryFrame:
    """Every frame of the clip, in order."""

    @property
    def num_frames(self) -> None:
        return None

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """See `Sampler.select`; `key` is not used."""
        return np.arange(clip.num_frames, dtype=np.int64)


def random_generator(seed: int, key: str) -> np.random.Generator:
    """Return the generator of a clip: the same for the same seed and key on every machine."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame as an extractor gets it: cropped and upright. The next frame may overwrite its arrays.

    `number` is its index in the video, `time_s` its time from the first frame of the video. `rows`, int64, are the
    positions of the frame in the sampling of the request: several if the sampler repeats it. `planes` is one array,
    uint8 RGB [H, W, 3], or three, Y [H, W], U and V, uint8 or uint16 as the request says.
    """

    number: int
    time_s: float
    rows: NDArray[np.int64]
    planes: tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class SampledClip:
    """What an extractor knows before the first frame: facts of the video, and the selected frames of the clip.

    `indices`, int64 [T], and `times_s`, float64 [T], count from the first frame of the video. `first` and `num_frames`
    are the range of the clip in the video. `key` names the clip and seeds random draws (`random_generator`).
    """

    facts: VideoFacts
    indices: NDArray[np.int64]
    times_s: NDArray[np.float64]
    first: int
    num_frames: int
    key: str


class Extraction(Protocol):
    """One extractor at work on one clip, in the decoding process.

    Its methods may raise a ScoreError for a video that the model cannot score, such as one with too small frames. It
    fails the models with this request only. Any other exception ends the decoding process.
    """

    def add(self, frame: Frame) -> None:
        """Take the next frame. Each selected frame comes once, in rising order, also if the sampler repeats it."""

    def finish(self) -> NDArray[Any]:
        """Return the result, uint8 or float32 [N, ...], N >= 1: what the scorer gets as the clip."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """Code that turns the frames of a clip into an array, in the decoding process and frame by frame.

    `target` is "module:object" in `kvq_batch.features` or in another package. The object is called with the
    `SampledClip` and `options` as keywords, and returns an `Extraction`. Only the decoding process imports it. Increase
    `algorithm` when code changes its results; `target` is not part of the fingerprint.
    """

    name: str
    algorithm: int
    target: str
    options: tuple[tuple[str, Any], ...] = ()


NATIVE_SIDE = 1 << 30
"""A `FrameRequest.short_side` that no frame exceeds: the frame keeps its size, and `size` is cut from its middle."""


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """The frames of one clip that a scorer requests: uint8 RGB [T, H, W, 3], or what an extractor makes of them.

    `size` is (height, width) in pixels after the resize, which does not keep the aspect ratio; None requests the native
    size, rotated upright. `resize` names its kernel: "bicubic" of KVQ_SPEC section 2, torch's "bilinear", without and
    with antialiasing, or "lanczos" with three lobes and antialiasing. With `short_side`, a frame with a longer short
    side is first resized to that in its own shape and `size` is cut from its middle (frames that are too small are
    resized). With `fragments` (rows, columns) a frame of `size` is spliced from patches of native resolution, each cut
    from the middle of its cell (fragments of FAST-VQA, ECCV 2022, section 3.1, at a fixed position).

    With `extractor`, the scorer gets its result instead of pixels. Only extractors get `planes` other than RGB, always
    of native size: "yuv420p" is Y, U, V with 8 bits and chroma at half of the size both ways (other formats are
    converted as ffmpeg does), "yuv" the decoded planes in their own depth and subsampling.

    With `is_streamed` a clip comes in chunks of consecutive frames (`STREAM_CHUNK_BYTES`), so that memory does not grow
    with the length of the video. The scorer returns `Prediction.partial`, and its family pools them. Each chunk but the
    last one holds a multiple of `stream_group` frames.

    Raises:
        ValueError: a combination that is not possible.
    """

    sampling: Sampler = Sampling()
    size: tuple[int, int] | None = (448, 448)
    fragments: tuple[int, int] | None = None
    resize: Resize = "bicubic"
    short_side: int | None = None
    planes: Planes = "rgb"
    extractor: Extractor | None = None
    is_streamed: bool = False
    stream_group: int = 1

    def __post_init__(self) -> None:
        if self.planes != "rgb" and (self.extractor is None or self.size is not None):
            raise ValueError(f"Planes {self.planes} need an extractor, and size = None.")
        if self.is_streamed and self.extractor is not None:
            raise ValueError("Frames for an extractor cannot be streamed: an extractor does not hold the clip.")
        if self.short_side is not None and (self.size is None or self.fragments or self.short_side < max(self.size)):
            raise ValueError(f"A short side of {self.short_side} needs a size that is not larger, without fragments.")
        if self.fragments is None:
            return
        if self.size is None or any(n < 1 or extent % n for extent, n in zip(self.size, self.fragments, strict=True)):
            raise ValueError(f"Frame size {self.size} is not a multiple of fragments {self.fragments}.")


def clip_bytes(request: FrameRequest) -> int | None:
    """Return the bytes of a clip of RGB frames of a fixed number and size, None for every other request."""
    count = request.sampling.num_frames
    if count is None or request.size is None or request.extractor is not None or request.is_streamed:
        return None
    return count * request.size[0] * request.size[1] * 3


STREAM_CHUNK_BYTES = 32 * 2**20
"""Most bytes of a chunk of a streamed request; one group of frames if it is larger. Does not change a score."""
