"""Decodes the clips of one video: samples frames, decodes each once for all requests, and resizes them.

`decode_task` runs in the child process. `DecodeTask` and `VideoLayout` are small and picklable; pixels are passed in a
scratch file. Equal requests of several models share one array, and a frame that several clips or requests need is
decoded once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.video import ClipFrames, ClipPolicy, DecodedClip, VideoFacts, Window
from kvq_batch.media.decoders import FRAME_ORDER, DecoderChoice, FrameReader, choose_decoder, open_reader
from kvq_batch.media.probe import Probed, VideoLimits, probe
from kvq_batch.media.resize import resize, splice
from kvq_batch.media.scratch import Extent, ScratchWriter

Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


@dataclass(slots=True)
class Timings:
    """Core-seconds per phase of one video. `decode_s` includes the conversion to RGB."""

    probe_s: float = 0.0
    decode_s: float = 0.0
    resize_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Array:
    """An array to fill: row t of `pixels` is frame `indices[t]` as `request` describes it."""

    indices: NDArray[np.int64]
    request: FrameRequest
    pixels: NDArray[np.uint8]


@dataclass(slots=True)
class Decoding:
    """Reader, threads and allocator of a decode, and the time it took."""

    reader: FrameReader
    num_threads: int = 1
    allocate: Allocate = field(default=lambda shape: np.empty(shape, np.uint8))
    timings: Timings = field(default_factory=Timings)


def decode_clips(
    path: Path,
    probed: Probed,
    windows: Sequence[Window],
    requests: Sequence[FrameRequest],
    key: str,
    clip_range: range,
    decoding: Decoding,
) -> Iterator[DecodedClip]:
    """Yield the clips `clip_range` of `windows`, in order, each with frames for every request.

    The sampler selects frames within the window of a clip, seeded by `key` (the video id) and the clip index. All clips
    of a call are decoded in one pass and are in memory together: decode a long video in ranges.

    Raises:
        DecodeError: a window contains no frame (empty_window), a frame does not decode, or frames of native size differ
            in size (frame_size_changes).
    """
    planned = [(i, [_plan(probed, windows[i], i, r, key) for r in requests]) for i in clip_range]
    native = (probed.facts.height_px, probed.facts.width_px)
    arrays: dict[tuple[bytes, tuple[int, int] | None, tuple[int, int] | None], _Array] = {}
    clips: list[tuple[int, list[_Array]]] = []
    for clip_index, plans in planned:
        answers = []
        for indices, request in zip(plans, requests, strict=True):
            shared = (indices.tobytes(), request.size, request.fragments)
            if shared not in arrays:
                shape = (len(indices), *(request.size or native), 3)
                arrays[shared] = _Array(indices, request, decoding.allocate(shape))
            answers.append(arrays[shared])
        clips.append((clip_index, answers))
    _fill(path, probed, list(arrays.values()), decoding)
    for clip_index, answers in clips:
        frames = tuple(ClipFrames(a.pixels, a.indices, probed.times_s[a.indices]) for a in answers)
        yield DecodedClip(clip_index, len(windows), windows[clip_index], frames)


def frames_in(probed: Probed, window: Window) -> tuple[int, int]:
    """Return the frames [first, last) that start within the window; if none does, the frame on screen at its start."""
    first, last = np.searchsorted(probed.times_s, (window.start_s - 1e-9, window.end_s - 1e-9), side="left")
    if first == last and window.start_s < min(window.end_s, probed.facts.duration_s):
        first = max(0, first - 1)
    return int(first), int(last)


def _plan(probed: Probed, window: Window, clip_index: int, request: FrameRequest, key: str) -> NDArray[np.int64]:
    """Return the frame numbers, int64 [T], of one clip."""
    first, last = frames_in(probed, window)
    if last <= first:
        raise DecodeError(
            "empty_window",
            f"The window from {window.start_s:g} s to {window.end_s:g} s contains no frame: the video ends at "
            f"{probed.facts.duration_s:g} s. Correct start_s and end_s of this row in the catalog.",
            True,
        )
    return first + request.sampling.indices(last - first, f"{key}#{clip_index}")


def _fill(path: Path, probed: Probed, arrays: Sequence[_Array], decoding: Decoding) -> None:
    rows_of: dict[int, list[tuple[_Array, NDArray[np.int64]]]] = {}
    for array in arrays:
        for number in np.unique(array.indices).tolist():
            rows_of.setdefault(number, []).append((array, np.flatnonzero(array.indices == number)))
    wanted = np.array(sorted(rows_of), np.int64)
    missing = set(rows_of)
    started = time.process_time()
    resize_s = 0.0
    for number, rgb in decoding.reader.frames(path, probed, wanted, decoding.num_threads):
        resize_started = time.process_time()
        missing.discard(number)
        for array, rows in rows_of[number]:
            write_frame(rgb, number, array.request, array.pixels[rows[0]])
            array.pixels[rows[1:]] = array.pixels[rows[0]]
        resize_s += time.process_time() - resize_started
    if missing:
        raise DecodeError(
            "frame_missing", f"The decoder does not return frame {min(missing)}. Upload the video again.", True
        )
    decoding.timings.resize_s += resize_s
    decoding.timings.decode_s += time.process_time() - started - resize_s


def write_frame(rgb: NDArray[np.uint8], number: int, request: FrameRequest, out: NDArray[np.uint8]) -> None:
    """Write frame `number`, uint8 RGB of any size, to `out` as `request` describes it."""
    height, width = out.shape[:2]
    if request.size is None and rgb.shape[:2] != (height, width):
        raise DecodeError(
            "frame_size_changes",
            f"Frame {number} has {rgb.shape[1]} x {rgb.shape[0]} pixels, the first frame {width} x {height}. Models "
            "that request native frames need one size: encode the video again.",
            True,
        )
    if request.fragments is None:
        resize(rgb, (height, width), out=out)
    else:
        splice(rgb, request.fragments, out)


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """Clips of one local file to decode for all requests of a job.

    `key` (the video id) seeds random samplers. `clips` is the rule that cuts the video, or its windows. `first_clip`
    and `max_clips` select a range of a long video; `probed`, from the result of the first range, avoids another probe.
    """

    path: Path
    key: str
    requests: tuple[FrameRequest, ...]
    clips: ClipPolicy | tuple[Window, ...] = field(default_factory=ClipPolicy)
    first_clip: int = 0
    max_clips: int = 8
    limits: VideoLimits = field(default_factory=VideoLimits)
    decoder: DecoderChoice = "auto"
    num_threads: int = 1
    probed: Probed | None = None


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """Result of a task: facts, decoder with version, the clips of its range in order, and core-seconds.

    `num_clips` counts the clips of the whole video.
    """

    facts: VideoFacts
    decoder: str
    num_clips: int
    clips: tuple[DecodedClip, ...]
    timings: Timings
    probed: Probed


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """A `ClipFrames` without its pixels: `extent` is the index of its array among the extents of the scratch file."""

    extent: int
    indices: NDArray[np.int64]
    times_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ClipLayout:
    """A `DecodedClip` without its pixels."""

    clip_index: int
    window: Window
    frames: tuple[FrameLayout, ...]


@dataclass(frozen=True, slots=True)
class VideoLayout:
    """A `DecodedVideo` without pixels, sent between processes. `probed` is None if the task contains it."""

    facts: VideoFacts
    decoder: str
    num_clips: int
    clips: tuple[ClipLayout, ...]
    extents: tuple[Extent, ...]
    timings: Timings
    probed: Probed | None


def decode_task(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    """Probe and decode the clips of a task into `scratch_file`, which it creates.

    If frames leave the decoder in another order than the container says, the frames are counted by decoding instead.

    Raises:
        ProbeError, DecodeError: as `probe` and `decode_clips`.
        TransientError: the scratch folder is full.
    """
    started = time.process_time()
    probed = task.probed or probe(task.path, task.limits)
    timings = Timings(probe_s=time.process_time() - started)
    try:
        return _decode_probed(task, probed, timings, scratch_file)
    except DecodeError as error:
        if error.code != FRAME_ORDER or task.probed:
            raise
    scratch_file.unlink()
    started = time.process_time()
    probed = probe(task.path, task.limits, "decoding")
    timings.probe_s += time.process_time() - started
    return _decode_probed(task, probed, timings, scratch_file)


def _decode_probed(task: DecodeTask, probed: Probed, timings: Timings, scratch_file: Path) -> VideoLayout:
    reader, decoder = open_reader(choose_decoder(probed, task.decoder))
    clips = task.clips
    windows = clips.windows(probed.facts.duration_s) if isinstance(clips, ClipPolicy) else list(clips)
    clip_range = range(task.first_clip, min(task.first_clip + task.max_clips, len(windows)))
    scratch = ScratchWriter(scratch_file)
    try:
        decoding = Decoding(reader, task.num_threads, scratch.allocate, timings)
        layouts = [
            ClipLayout(
                clip.clip_index,
                clip.window,
                tuple(FrameLayout(scratch.position(f.pixels), f.indices, f.times_s) for f in clip.frames),
            )
            for clip in decode_clips(task.path, probed, windows, task.requests, task.key, clip_range, decoding)
        ]
    finally:
        scratch.close()
    return VideoLayout(
        facts=probed.facts,
        decoder=decoder,
        num_clips=len(windows),
        clips=tuple(layouts),
        extents=tuple(scratch.extents),
        timings=timings,
        probed=None if task.probed else probed,
    )
