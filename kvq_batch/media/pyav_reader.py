"""Frames by number through PyAV, decoding as little as the codec allows.

Each wanted frame is reached from the last keyframe that precedes it both in decoding order and in time (frames that
lead an open group's keyframe need the group before), and between wanted frames those that nothing refers to are left
out. Frames are recognised by presentation time, so that a decoder that drops or conceals one is found out. It keeps
nothing open between calls: a call is one video.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError, shorten_list
from kvq_batch.media.packets import best_stream, open_video
from kvq_batch.media.picture import Orientation, PictureConverter
from kvq_batch.media.probe import Probed

# Reading this many packets without decoding them costs less than a seek and what it re-reads.
_MAX_READ_THROUGH = 32


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Packets [start, stop), decoded in one go for the frames `wanted`: presentation time -> frame number."""

    start: int
    stop: int
    wanted: dict[int, int]


class PyavReader:
    """`FrameReader` over PyAV."""

    def frames(
        self, path: Path, probed: Probed, wanted: NDArray[np.int64], num_threads: int = 1
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See `FrameReader.frames`."""
        facts = probed.facts
        to_rgb = PictureConverter(probed.crop, Orientation(facts.is_mirrored, facts.rotation_deg))
        try:
            with _Session(path, probed, num_threads) as session:
                if probed.counting == "decoding":
                    yield from ((n, to_rgb(frame)) for n, frame in _by_counting(session, wanted))
                else:
                    yield from ((n, to_rgb(frame)) for n, frame in _by_time(session, probed, wanted))
        except av.error.MemoryError as error:
            raise DecodeError("out_of_memory", "its decoder ran into the memory limit of its process", True) from error
        except av.error.FFmpegError as error:
            text = error.strerror or str(error)
            raise DecodeError("undecodable", f"a frame that is needed does not decode ({text})", True) from error


READER = PyavReader()


def _by_time(session: "_Session", probed: Probed, wanted: NDArray[np.int64]) -> Iterator[tuple[int, VideoFrame]]:
    for stretch in _stretches(probed, wanted):
        missing = dict(stretch.wanted)
        session.go_to(stretch.start)
        for frame in session.decode(stretch.stop, missing if probed.can_skip_unreferenced else None):
            if frame.pts in missing:
                yield missing.pop(frame.pts), frame
        if missing:
            # The keyframe was none (gradual refresh): decode from the start of the file, leaving nothing out.
            session.reopen()
            for frame in session.decode(stretch.stop, None):
                if frame.pts in missing:
                    yield missing.pop(frame.pts), frame
        if missing:
            _refuse_missing(list(missing.values()))


def _by_counting(session: "_Session", wanted: NDArray[np.int64]) -> Iterator[tuple[int, VideoFrame]]:
    missing = set(wanted.tolist())
    for number, frame in enumerate(session.decode(None, None)):
        if number in missing:
            missing.remove(number)
            yield number, frame
        if not missing:
            return
    _refuse_missing(list(missing))


def _stretches(probed: Probed, wanted: NDArray[np.int64]) -> Iterator[_Stretch]:
    """The wanted frames grouped by the keyframe that they are decoded from, in decoding order."""
    pts = probed.packet_pts
    keys = np.flatnonzero(probed.packet_is_key)
    packets = probed.frame_packets[wanted]
    start, stop, times = -1, -1, dict[int, int]()
    for position in np.argsort(packets, kind="stable"):
        packet, number = int(packets[position]), int(wanted[position])
        before = keys[: np.searchsorted(keys, packet, side="right")]
        usable = before[pts[before] <= pts[packet]]
        key = int(usable[-1]) if len(usable) else 0
        if key >= stop:
            if times:
                yield _Stretch(start, stop, times)
            start, times = key, {}
        stop = packet + 1
        times[int(pts[packet])] = number
    if times:
        yield _Stretch(start, stop, times)


class _Session:
    """One open file: its packets by position in decoding order, and the decoder fed with them."""

    def __init__(self, path: Path, probed: Probed, num_threads: int) -> None:
        self._path = path
        self._probed = probed
        self._num_threads = num_threads
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.reopen()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reopen(self) -> None:
        """Seek to the first packet."""
        self._stack.close()
        self._container = self._stack.enter_context(open_video(self._path))
        self._stream = best_stream(self._container)
        if self._stream.index != self._probed.stream_index:
            raise DecodeError("file_changed", "it holds other streams than when it was probed; is it being written?")
        self._context = self._stream.codec_context
        self._context.thread_count = self._num_threads
        self._packets = self._read()
        self._position = 0

    def go_to(self, packet: int) -> None:
        """Makes `packet`, a keyframe, the next one to be read, with a fresh decoder."""
        ahead = packet - self._position
        if not 0 <= ahead <= _MAX_READ_THROUGH:
            self._seek(packet)
        if self._position > packet:
            self.reopen()
        while self._position < packet:
            next(self._packets)
            self._position += 1
        if self._context.is_open:
            self._context.flush_buffers()

    def decode(self, stop: int | None, wanted: dict[int, int] | None) -> Iterator[VideoFrame]:
        """Frames of the packets up to `stop` (None: all), all flushed out.

        With `wanted`, frames that are neither wanted nor referred to may be absent.

        Raises:
            DecodeError: a frame came out damaged (corrupt_frame); what refers to it is damaged as well.
        """
        self._context.skip_frame = "DEFAULT"
        while stop is None or self._position < stop:
            packet = next(self._packets, None)
            if packet is None:
                break
            self._position += 1
            if wanted is not None:
                self._context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from map(_undamaged, self._context.decode(packet))
        yield from map(_undamaged, self._context.decode(None))

    def _seek(self, packet: int) -> None:
        pts = self._probed.packet_pts
        self._container.seek(int(pts[packet]), stream=self._stream, backward=True)
        packets = self._read()
        first = next(packets, None)
        places = np.flatnonzero(pts == first.pts) if first is not None else np.empty(0, np.int64)
        if first is None or len(places) != 1 or places[0] > packet:
            self.reopen()  # the container's index leads elsewhere: walk from the start
            return
        self._packets = _chain(first, packets)
        self._position = int(places[0])

    def _read(self) -> Iterator["Packet[VideoStream]"]:
        return (packet for packet in self._container.demux(self._stream) if packet.size)


def _chain(first: "Packet[VideoStream]", rest: Iterator["Packet[VideoStream]"]) -> Iterator["Packet[VideoStream]"]:
    yield first
    yield from rest


def _undamaged(frame: VideoFrame) -> VideoFrame:
    if frame.is_corrupt:
        raise DecodeError(
            "corrupt_frame", f"the frame at {frame.time} s is damaged in the file; upload the video again", True
        )
    return frame


def _refuse_missing(numbers: list[int]) -> None:
    listed = shorten_list((str(n) for n in sorted(numbers)), 8)
    raise DecodeError(
        "frame_missing",
        f"frame {listed} is in the file but does not come out of the decoder; the file is damaged",
        True,
    )
