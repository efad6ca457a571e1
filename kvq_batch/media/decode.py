"""From a probed video to the clips that models see: sample, decode the union once, resize into place.

All requests of all models are answered from one decode; equal requests share one array, and a frame that several clips
or requests need is decoded once. It opens no process and fetches nothing: `isolation` calls it in a child.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError
from kvq_batch.domain.frames import FrameRequest
from kvq_batch.domain.video import ClipFrames, DecodedClip, Window
from kvq_batch.media.decoders import FrameReader
from kvq_batch.media.fragments import splice
from kvq_batch.media.probe import Probed
from kvq_batch.media.resize import resize

Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


@dataclass(slots=True)
class Timings:
    """Core-seconds of one video by phase; `decode_s` includes the conversion to RGB."""

    probe_s: float = 0.0
    decode_s: float = 0.0
    resize_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Array:
    """One array to fill: row t of `pixels` is frame `indices[t]`, made as `request` says."""

    indices: NDArray[np.int64]
    request: FrameRequest
    pixels: NDArray[np.uint8]


@dataclass(slots=True)
class Decoding:
    """How a decode is done, and what it cost: the reader, its threads, where arrays come from."""

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
    """The clips `clip_range` of `windows`, in order, each answering every request.

    A clip's frames are those shown within its window; the sampler draws among them, seeded by `key` (the video id) and
    the clip's index. The clips of one call are decoded in one pass and all held in memory: hand over long videos in
    ranges.

    Raises:
        DecodeError: a window holds no frame (empty_window), a frame does not decode, or native-size frames differ in
            size (frame_size_changes).
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
    """Frames [first, last) that are shown within the window; a frame belongs to the window in which it starts."""
    first, last = np.searchsorted(probed.times_s, (window.start_s - 1e-9, window.end_s - 1e-9), side="left")
    return int(first), int(last)


def _plan(probed: Probed, window: Window, clip_index: int, request: FrameRequest, key: str) -> NDArray[np.int64]:
    """Frame numbers int64 [T] of one clip."""
    first, last = frames_in(probed, window)
    if last <= first:
        raise DecodeError(
            "empty_window",
            f"clip {clip_index} ({window.start_s:g} s to {window.end_s:g} s) holds no frame of a video of "
            f"{probed.facts.duration_s:g} s; correct its start and end in the catalog",
            True,
        )
    return first + request.sampling.indices(last - first, f"{key}#{clip_index}")


def _fill(path: Path, probed: Probed, arrays: Sequence[_Array], decoding: Decoding) -> None:
    places: dict[int, list[tuple[_Array, NDArray[np.int64]]]] = {}
    for array in arrays:
        for number in np.unique(array.indices).tolist():
            places.setdefault(number, []).append((array, np.flatnonzero(array.indices == number)))
    wanted = np.array(sorted(places), np.int64)
    started = time.process_time()
    resize_s = 0.0
    for number, rgb in decoding.reader.frames(path, probed, wanted, decoding.num_threads):
        resize_started = time.process_time()
        for array, rows in places.pop(number):
            place_frame(rgb, number, array.request, array.pixels[rows[0]])
            array.pixels[rows[1:]] = array.pixels[rows[0]]
        resize_s += time.process_time() - resize_started
    if places:
        raise DecodeError("frame_missing", f"frame {min(places)} did not come out of the decoder", True)
    decoding.timings.resize_s += resize_s
    decoding.timings.decode_s += time.process_time() - started - resize_s


def place_frame(rgb: NDArray[np.uint8], number: int, request: FrameRequest, out: NDArray[np.uint8]) -> None:
    """Puts frame `number`, uint8 RGB of any size, into `out` as `request` wants it."""
    height, width = out.shape[:2]
    if request.size is None and rgb.shape[:2] != (height, width):
        raise DecodeError(
            "frame_size_changes",
            f"frame {number} has {rgb.shape[1]} x {rgb.shape[0]} pixels, the first one {width} x {height}; "
            "a model that asks for native frames cannot take it",
            True,
        )
    if request.fragments is None:
        resize(rgb, (height, width), out=out)
    else:
        splice(rgb, request.fragments, out)
