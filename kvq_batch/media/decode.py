"""Decodes the clips of one video: samples frames, decodes each once for all requests, resizes them or extracts numbers.

`run_task` runs in the child process. `DecodeTask` and `VideoLayout` are small and picklable; arrays are passed in
scratch files. Equal requests of several models share one array, and a frame that several clips or requests need is
decoded once. Streamed requests are passed on in chunks while the decoder works.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError, ItemError, ScoreError
from kvq_batch.domain.frames import (
    STREAM_CHUNK_BYTES,
    ClipTimes,
    Extraction,
    Frame,
    FrameRequest,
    SampledClip,
    Sampling,
)
from kvq_batch.domain.video import ClipFrames, ClipPolicy, DecodedClip, VideoFacts, Window
from kvq_batch.media.decoders import FRAME_ORDER, DecoderChoice, FrameReader, Picture, choose_decoder, open_reader
from kvq_batch.media.probe import Probed, VideoLimits, probe
from kvq_batch.media.resize import resize, resize_and_crop, splice
from kvq_batch.media.scratch import Extent, ScratchWriter

Allocate = Callable[[tuple[int, ...], str], NDArray[Any]]


@dataclass(slots=True)
class Timings:
    """Core-seconds per phase of one video. `decode_s` includes the conversion to RGB."""

    probe_s: float = 0.0
    decode_s: float = 0.0
    resize_s: float = 0.0


class _Target(Protocol):
    """What collects the frames of one request for one clip, or for several clips with the same frames."""

    request: FrameRequest
    indices: NDArray[np.int64]

    def add(self, number: int, time_s: float, rows: NDArray[np.int64], picture: Picture) -> None: ...

    def finish(self) -> NDArray[Any]: ...


@dataclass(slots=True)
class _Pixels:
    """An array to fill: row t of `pixels` is frame `indices[t]` as `request` describes it."""

    request: FrameRequest
    indices: NDArray[np.int64]
    pixels: NDArray[np.uint8]

    def add(self, number: int, time_s: float, rows: NDArray[np.int64], picture: Picture) -> None:
        write_frame(picture.rgb(), number, self.request, self.pixels[rows[0]])
        self.pixels[rows[1:]] = self.pixels[rows[0]]

    def finish(self) -> NDArray[Any]:
        return self.pixels


@dataclass(slots=True)
class _Extracted:
    """An extraction at work. After an error of its own it ignores the rest of the frames."""

    request: FrameRequest
    indices: NDArray[np.int64]
    clip: SampledClip
    allocate: Allocate
    extraction: Extraction = field(init=False)

    def __post_init__(self) -> None:
        assert self.request.extractor is not None
        module, _, name = self.request.extractor.target.partition(":")
        start = getattr(import_module(module), name)
        self.extraction = start(self.clip, **dict(self.request.extractor.options))

    def add(self, number: int, time_s: float, rows: NDArray[np.int64], picture: Picture) -> None:
        request = self.request
        if request.planes != "rgb":
            planes = picture.yuv(request.planes)
        elif request.size is None:
            planes = (picture.rgb(),)
        else:
            out = np.empty((*request.size, 3), np.uint8)
            write_frame(picture.rgb(), number, request, out)
            planes = (out,)
        self.extraction.add(Frame(number, time_s, rows, planes))

    def finish(self) -> NDArray[Any]:
        result = self.extraction.finish()
        array = self.allocate(result.shape, str(result.dtype))
        array[...] = result
        return array


@dataclass(slots=True)
class _Chunked:
    """Chunks of one request of one clip: `take` returns the newest one when it is full."""

    request: FrameRequest
    indices: NDArray[np.int64]
    clip_index: int
    answer: int
    shape: tuple[int, ...]
    allocate: Allocate
    first: int = 0
    next_row: int = 0
    pixels: NDArray[np.uint8] | None = None

    @property
    def chunk_frames(self) -> int:
        group = self.request.stream_group
        return max(1, STREAM_CHUNK_BYTES // (group * int(np.prod(self.shape)))) * group

    @property
    def num_chunks(self) -> int:
        return -(-len(self.indices) // self.chunk_frames)

    def add(self, number: int, time_s: float, rows: NDArray[np.int64], picture: Picture) -> None:
        # Frames come in rising order, and the sampler of a streamed request selects them in this order.
        for row in rows.tolist():
            if row != self.next_row:
                # A frame is missing. It may come later, when this chunk was passed on.
                raise _RestartError
            self.next_row += 1
            if self.pixels is None:
                self.first = row
                self.pixels = self.allocate((min(self.chunk_frames, len(self.indices) - row), *self.shape), "uint8")
            write_frame(picture.rgb(), number, self.request, self.pixels[row - self.first])

    def is_full(self, rows: NDArray[np.int64]) -> bool:
        return self.pixels is not None and int(rows[-1]) + 1 == self.first + len(self.pixels)

    def take(self) -> tuple[int, slice, NDArray[np.uint8]]:
        """Return the index of the full chunk, its rows, and its pixels."""
        assert self.pixels is not None
        pixels, self.pixels = self.pixels, None
        return self.first // self.chunk_frames, slice(self.first, self.first + len(pixels)), pixels

    def finish(self) -> NDArray[Any]:
        raise AssertionError("chunks are taken one by one")


@dataclass(slots=True)
class Decoding:
    """Reader, threads and allocators of a decode, and the time it took.

    `allocate_chunk` is called for each chunk of a streamed request: its array outlives the call that returns it.
    """

    reader: FrameReader
    num_threads: int = 1
    allocate: Allocate = field(default=lambda shape, dtype="uint8": np.empty(shape, dtype))
    allocate_chunk: Allocate = field(default=lambda shape, dtype="uint8": np.empty(shape, dtype))
    timings: Timings = field(default_factory=Timings)


class _RestartError(Exception):
    """Frames that were passed on were wrong: an extraction cannot take them back."""


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
    of a call are decoded in one pass, which decodes each frame that a request needs once. They are in memory together:
    decode a long video in ranges. Streamed requests come first, in parts of their own, before the pass ends. If the
    frames of such parts turn out to be wrong, all clips come again, with a higher `decode_pass`.

    Raises:
        DecodeError: a window contains no frame (empty_window), a frame does not decode, frames come in another order
            than their times (frame_order), or frames of native size differ in size (frame_size_changes).
    """
    plan = _Plan(probed, windows, requests, key, decoding)
    try:
        yield from plan.run(path, probed, clip_range)
    except _RestartError:
        # With one keyframe, the first packet, everything is decoded in one go.
        is_key = np.zeros_like(probed.packet_is_key)
        is_key[0] = True
        probed = replace(probed, packet_is_key=is_key)
        try:
            for part in plan.run(path, probed, clip_range):
                yield replace(part, decode_pass=1)
        except _RestartError:
            # A frame does not decode, or frames come in another order: a pass without targets reports which.
            for _ in decoding.reader.pictures(path, probed, np.arange(len(probed.times_s)), decoding.num_threads):
                pass
            raise DecodeError(
                FRAME_ORDER, "Its frames come in another order than its times. Encode the video again.", True
            ) from None


class _Plan:
    """The requests of a job for one video, ready to be decoded."""

    def __init__(
        self, probed: Probed, windows: Sequence[Window], requests: Sequence[FrameRequest], key: str, decoding: Decoding
    ) -> None:
        self._probed = probed
        self._windows = windows
        self._requests = requests
        self._key = key
        self._decoding = decoding
        self._native = (probed.facts.height_px, probed.facts.width_px)

    def run(self, path: Path, probed: Probed, clip_range: range) -> Iterator[DecodedClip]:
        """Decode the clips in one pass, with the keyframes of `probed`."""
        shared: dict[tuple[object, ...], _Target] = {}
        errors: dict[int, ItemError] = {}
        clips = [(i, [self._target(i, n, shared, errors) for n in range(len(self._requests))]) for i in clip_range]
        chunked = [t for _, targets in clips for t in targets if isinstance(t, _Chunked)]
        for full in self._fill(path, probed, [*shared.values(), *chunked], errors):
            index, span, pixels = full.take()
            frames = self._empty_frames()
            indices = full.indices[span]
            frames[full.answer] = ClipFrames(pixels, indices, probed.times_s[indices])
            part = self._part(full.clip_index, frames, index, full.num_chunks)
            del pixels, frames
            yield part
            del part
        done: dict[int, NDArray[Any]] = {}
        for target in shared.values():
            if id(target) not in errors:
                with _own_errors(errors, target):
                    done[id(target)] = target.finish()
        for clip_index, targets in clips:
            frames = self._empty_frames()
            for answer, found in enumerate(targets):
                error = found if isinstance(found, ItemError) else errors.get(id(found))
                if error is not None or isinstance(found, ItemError):
                    frames[answer] = ClipFrames.empty(error)
                elif not isinstance(found, _Chunked):
                    frames[answer] = ClipFrames(done[id(found)], found.indices, probed.times_s[found.indices])
            if any(f.error is not None or f.pixels.size for f in frames):
                yield self._part(clip_index, frames, 0, 1)

    def _empty_frames(self) -> list[ClipFrames]:
        return [ClipFrames.empty()] * len(self._requests)

    def _part(self, clip_index: int, frames: list[ClipFrames], chunk_index: int, num_chunks: int) -> DecodedClip:
        window = self._windows[clip_index]
        return DecodedClip(clip_index, len(self._windows), window, tuple(frames), chunk_index, num_chunks)

    def _target(
        self, clip_index: int, answer: int, shared: dict[tuple[object, ...], _Target], errors: dict[int, ItemError]
    ) -> _Target | ItemError:
        """Return what collects the frames of a request, or why the request cannot be answered."""
        request, decoding = self._requests[answer], self._decoding
        first, last = self._range(self._windows[clip_index])
        key = f"{self._key}#{clip_index}"
        times = ClipTimes(self._probed.times_s[first:last], self._probed.facts.frame_rate)
        try:
            indices = first + request.sampling.select(times, key)
        except ItemError as error:
            return error
        if request.is_streamed:
            shape = (*(request.size or self._native), 3)
            return _Chunked(request, indices, clip_index, answer, shape, decoding.allocate_chunk)
        is_extracted = request.extractor is not None
        alike = (indices.tobytes(), replace(request, sampling=Sampling()), clip_index if is_extracted else None)
        if alike in shared:
            return shared[alike]
        try:
            if is_extracted:
                times_s = self._probed.times_s[indices]
                clip = SampledClip(self._probed.facts, indices, times_s, first, last - first, key)
                target: _Target = _Extracted(request, indices, clip, decoding.allocate)
            else:
                pixels = decoding.allocate((len(indices), *(request.size or self._native), 3), "uint8")
                target = _Pixels(request, indices, pixels)
        except ItemError as error:
            return error
        shared[alike] = target
        return target

    def _range(self, window: Window) -> tuple[int, int]:
        first, last = frames_in(self._probed, window)
        if last <= first:
            raise DecodeError(
                "empty_window",
                f"The window from {window.start_s:g} s to {window.end_s:g} s contains no frame: the video ends at "
                f"{self._probed.facts.duration_s:g} s. Correct start_s and end_s of this row in the catalog.",
                True,
            )
        return first, last

    def _fill(
        self, path: Path, probed: Probed, targets: Sequence[_Target], errors: dict[int, ItemError]
    ) -> Iterator[_Chunked]:
        """Decode the union of all frames and give each to the targets that want it; yield chunks that are full."""
        rows_of: dict[int, list[tuple[_Target, NDArray[np.int64]]]] = {}
        for target in targets:
            order = np.argsort(target.indices, kind="stable")
            numbers, starts = np.unique(target.indices[order], return_index=True)
            for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
                rows_of.setdefault(number, []).append((target, rows))
        wanted = np.array(sorted(rows_of), np.int64)
        missing = set(rows_of)
        is_exact = any(not isinstance(target, _Pixels) for target in targets)
        timings, newest = self._decoding.timings, -1
        started = time.process_time()
        for number, picture in self._decoding.reader.pictures(path, probed, wanted, self._decoding.num_threads):
            used = time.process_time()
            timings.decode_s += used - started
            if number <= newest and is_exact:
                raise _RestartError
            newest = number
            missing.discard(number)
            for target, rows in rows_of[number]:
                if id(target) in errors:
                    continue
                with _own_errors(errors, target):
                    target.add(number, float(probed.times_s[number]), rows, picture)
                if isinstance(target, _Chunked) and target.is_full(rows):
                    timings.resize_s += time.process_time() - used
                    yield target
                    used = time.process_time()
            started = time.process_time()
            timings.resize_s += started - used
        timings.decode_s += time.process_time() - started
        if missing:
            raise DecodeError(
                "frame_missing", f"The decoder does not return frame {min(missing)}. Upload the video again.", True
            )


@contextmanager
def _own_errors(errors: dict[int, ItemError], target: _Target) -> Iterator[None]:
    """Note an error that only concerns the models with this request."""
    try:
        yield
    except ScoreError as error:
        errors[id(target)] = error


def frames_in(probed: Probed, window: Window) -> tuple[int, int]:
    """Return the frames [first, last) that start within the window; if none does, the frame on screen at its start."""
    first, last = np.searchsorted(probed.times_s, (window.start_s - 1e-9, window.end_s - 1e-9), side="left")
    if first == last and window.start_s < min(window.end_s, probed.facts.duration_s):
        first = max(0, first - 1)
    return int(first), int(last)


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
    if request.fragments is not None:
        splice(rgb, request.fragments, out)
    elif request.short_side is not None:
        resize_and_crop(rgb, request.short_side, request.resize, out)
    else:
        resize(rgb, (height, width), out=out, kind=request.resize)


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
    """A `ClipFrames` without its pixels: `extent` is the index of its array among the extents of the scratch file.

    It is -1 where there are none.
    """

    extent: int
    indices: NDArray[np.int64]
    times_s: NDArray[np.float64]
    error: ItemError | None = None


@dataclass(frozen=True, slots=True)
class ClipLayout:
    """A `DecodedClip` without its pixels."""

    clip_index: int
    window: Window
    frames: tuple[FrameLayout, ...]
    chunk_index: int = 0
    num_chunks: int = 1
    decode_pass: int = 0


@dataclass(frozen=True, slots=True)
class VideoLayout:
    """A `DecodedVideo` without pixels, sent between processes. `probed` is None if the task contains it.

    `file` is the scratch file with its extents; None is the one that the task named.
    """

    facts: VideoFacts
    decoder: str
    num_clips: int
    clips: tuple[ClipLayout, ...]
    extents: tuple[Extent, ...]
    timings: Timings
    probed: Probed | None
    file: Path | None = None


_COUNTED_PASS = 2
"""First `decode_pass` of a decode that counts frames; the one before it has at most 1."""


def run_task(task: DecodeTask, scratch_file: Path) -> VideoLayout | Iterator[VideoLayout]:
    """Return `decode_task`, or with streamed requests the parts: chunks in files beside `scratch_file`, the rest last.

    Raises: see `decode_task`.
    """
    if any(request.is_streamed for request in task.requests):
        return _decode_parts(task, scratch_file)
    return decode_task(task, scratch_file)


def decode_task(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    """Probe and decode the clips of a task into `scratch_file`, which it creates.

    If frames leave the decoder in another order than the container says, the frames are counted by decoding instead.

    Raises:
        ProbeError, DecodeError: as `probe` and `decode_clips`.
        TransientError: the scratch folder is full.
    """
    (layout,) = _decode_parts(task, scratch_file)
    return layout


def _decode_parts(task: DecodeTask, scratch_file: Path) -> Iterator[VideoLayout]:
    started = time.process_time()
    probed = task.probed or probe(task.path, task.limits)
    timings = Timings(probe_s=time.process_time() - started)
    # The receiver may still read the files of earlier parts, so a decode that starts again writes other files.
    files = (scratch_file.with_suffix(f".{number}") for number in count())
    try:
        yield from _decode_probed(task, probed, timings, scratch_file, files)
        return
    except DecodeError as error:
        # Clips before this range were passed on, and cannot come again.
        if error.code != FRAME_ORDER or task.probed:
            raise
    scratch_file.unlink()
    started = time.process_time()
    probed = probe(task.path, task.limits, "decoding")
    timings.probe_s += time.process_time() - started
    for part in _decode_probed(task, probed, timings, scratch_file, files):
        yield replace(part, clips=tuple(replace(c, decode_pass=c.decode_pass + _COUNTED_PASS) for c in part.clips))


def _decode_probed(
    task: DecodeTask, probed: Probed, timings: Timings, scratch_file: Path, files: Iterator[Path]
) -> Iterator[VideoLayout]:
    reader, decoder = open_reader(choose_decoder(probed, task.decoder))
    clips = task.clips
    windows = clips.windows(probed.facts.duration_s) if isinstance(clips, ClipPolicy) else list(clips)
    clip_range = range(task.first_clip, min(task.first_clip + task.max_clips, len(windows)))

    def layout(clips: Sequence[ClipLayout], scratch: ScratchWriter, file: Path | None) -> VideoLayout:
        sent = None if task.probed else probed
        extents = tuple(scratch.extents)
        return VideoLayout(probed.facts, decoder, len(windows), tuple(clips), extents, timings, sent, file)

    chunks: list[ScratchWriter] = []

    def allocate_chunk(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        chunks.append(ScratchWriter(next(files)))
        return chunks[-1].allocate(shape, dtype)

    scratch = ScratchWriter(scratch_file)
    try:
        decoding = Decoding(reader, task.num_threads, scratch.allocate, allocate_chunk, timings)
        whole: list[ClipLayout] = []
        for clip in decode_clips(task.path, probed, windows, task.requests, task.key, clip_range, decoding):
            chunk = next((c for c in chunks if any(f.pixels is c.arrays[0] for f in clip.frames)), None)
            if chunk is None:
                whole.append(_clip_layout(clip, scratch))
                continue
            chunks.remove(chunk)
            part = layout([_clip_layout(clip, chunk)], chunk, chunk.path)
            chunk.close()
            # The pixels must be free when the decoder continues.
            del clip, chunk
            yield part
    finally:
        for writer in (scratch, *chunks):
            writer.close()
    yield layout(whole, scratch, None)


def _clip_layout(clip: DecodedClip, scratch: ScratchWriter) -> ClipLayout:
    frames = tuple(
        FrameLayout(scratch.position(f.pixels) if f.pixels.size else -1, f.indices, f.times_s, f.error)
        for f in clip.frames
    )
    return ClipLayout(clip.clip_index, clip.window, frames, clip.chunk_index, clip.num_chunks, clip.decode_pass)
