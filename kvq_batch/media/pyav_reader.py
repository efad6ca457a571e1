"""Frame reader on PyAV that decodes as little as the codec allows.

Each wanted frame is decoded from the last keyframe that precedes it both in decoding order and in time (frames that
lead an open group's keyframe need the group before). Between wanted frames, those that no frame refers to are skipped.
Frames are recognised by presentation time, so a frame that the decoder drops is noticed.

Containers mark packets as keyframes that are not. So the first picture of each stretch must be a keyframe for the
decoder, too. If it is not, or if anything else is wrong with the stretch, decoding starts again at the first packet.
Frames of the stretch that were yielded are then yielded again.
"""

from collections.abc import Iterable, Iterator
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
from kvq_batch.media.damage import CheckedDecoder, verify_checksums
from kvq_batch.media.decoders import FRAME_ORDER
from kvq_batch.media.packets import best_stream, open_video
from kvq_batch.media.picture import DecodedPicture, Orientation, PictureConverter
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
        for number, picture in self.pictures(path, probed, wanted, num_threads):
            yield number, picture.rgb()

    def pictures(
        self, path: Path, probed: Probed, wanted: NDArray[np.int64], num_threads: int = 1
    ) -> Iterator[tuple[int, DecodedPicture]]:
        """See `FrameReader.pictures`."""
        facts = probed.facts
        converter = PictureConverter(probed.crop, Orientation(facts.is_mirrored, facts.rotation_deg))
        try:
            with _Session(path, probed, num_threads) as session:
                is_counted = probed.counting == "decoding"
                found = _by_counting(session, wanted) if is_counted else _by_time(session, probed, wanted)
                yield from ((number, DecodedPicture(frame, converter)) for number, frame in found)
        except av.error.MemoryError as error:
            raise DecodeError("out_of_memory", "The decoder reached the memory limit of its process.", True) from error
        except av.error.FFmpegError as error:
            text = error.strerror or str(error)
            raise DecodeError(
                "undecodable", f"A frame that is needed does not decode: {text}. Upload the video again.", True
            ) from error


READER = PyavReader()


def _by_time(session: "_Session", probed: Probed, wanted: NDArray[np.int64]) -> Iterator[tuple[int, VideoFrame]]:
    pts = probed.packet_pts
    missing = {int(pts[probed.frame_packets[number]]): int(number) for number in wanted}
    for stretch in _stretches(probed, wanted):
        session.go_to(stretch.start)
        frames = session.decode(stretch.stop, stretch.wanted if probed.can_skip_unreferenced else None)
        try:
            for frame in _rising(frames if stretch.start == 0 else _from_keyframe(frames, int(pts[stretch.start]))):
                if frame.pts in missing:
                    yield missing.pop(frame.pts), frame
        except (_NotAKeyframe, DecodeError, av.error.FFmpegError):
            if stretch.start == 0:
                raise
            missing |= stretch.wanted
        if not missing.keys().isdisjoint(stretch.wanted):
            break
    if missing:
        session.reopen()
        for frame in _rising(session.decode(int(probed.frame_packets[list(missing.values())].max()) + 1, None)):
            if frame.pts in missing:
                yield missing.pop(frame.pts), frame
    if missing:
        _reject_missing(list(missing.values()))


class _NotAKeyframe(Exception):
    """The container marks a packet as a keyframe, but its picture is none."""


def _from_keyframe(frames: Iterator[VideoFrame], key_pts: int) -> Iterator[VideoFrame]:
    """Yield the frames from the one at `key_pts` on; the frames before it lead an open group and lack references."""
    for frame in frames:
        if frame.pts is not None and frame.pts >= key_pts:
            if frame.pts > key_pts or not frame.key_frame:
                raise _NotAKeyframe
            yield frame
            break
    yield from frames


def _rising(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield the frames; raise a DecodeError (frame_order) if their times do not rise."""
    last: int | None = None
    for frame in frames:
        if last is not None and frame.pts is not None and frame.pts <= last:
            raise DecodeError(
                FRAME_ORDER,
                f"The frame at {frame.time:g} s is shown after a later one: the container's times are wrong. "
                "Encode the video again.",
                True,
            )
        last = frame.pts
        yield frame


def _by_counting(session: "_Session", wanted: NDArray[np.int64]) -> Iterator[tuple[int, VideoFrame]]:
    missing = set(wanted.tolist())
    for number, frame in enumerate(session.decode(None, None)):
        if number in missing:
            missing.remove(number)
            yield number, frame
        if not missing:
            return
    _reject_missing(list(missing))


def _stretches(probed: Probed, wanted: NDArray[np.int64]) -> Iterator[_Stretch]:
    """Yield the wanted frames grouped by the keyframe that they are decoded from, in decoding order."""
    pts = probed.packet_pts
    keys = np.flatnonzero(probed.packet_is_key)
    packets = probed.frame_packets[wanted]
    start, stop, times = -1, -1, dict[int, int]()
    for index in np.argsort(packets, kind="stable"):
        packet, number = int(packets[index]), int(wanted[index])
        before = keys[: np.searchsorted(keys, packet, side="right")]
        usable = before[pts[before] <= pts[packet]]
        key = int(usable[-1]) if len(usable) else 0
        if key >= stop:
            if times:
                yield _Stretch(start, stop, times)
            start, times = key, {}
        # A frame that leads an open group needs the group before, though its keyframe is wanted as well.
        start, stop = min(start, key), packet + 1
        times[int(pts[packet])] = number
    if times:
        yield _Stretch(start, stop, times)


class _Session:
    """An open file: its packets by index in decoding order, and the decoder that gets them."""

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
        """Open the file again, at its first packet."""
        self._stack.close()
        self._container = self._stack.enter_context(open_video(self._path))
        self._stream = best_stream(self._container)
        if self._stream.index != self._probed.stream_index:
            raise DecodeError(
                "file_changed", "The file has other streams than when it was probed. Is it still being written?"
            )
        self._context = self._stream.codec_context
        self._context.thread_count = self._num_threads
        verify_checksums(self._context)
        self._packets = self._read()
        self._index = 0

    def go_to(self, packet: int) -> None:
        """Make `packet`, a keyframe, the next one to be read, with a fresh decoder."""
        ahead = packet - self._index
        if not 0 <= ahead <= _MAX_READ_THROUGH:
            self._seek(packet)
        if self._index > packet:
            self.reopen()
        while self._index < packet:
            next(self._packets)
            self._index += 1
        if self._context.is_open:
            self._context.flush_buffers()

    def decode(self, stop: int | None, wanted: dict[int, int] | None) -> Iterator[VideoFrame]:
        """Yield the frames of the packets up to `stop` (None: all), and flush the decoder.

        With `wanted`, frames that are neither wanted nor referred to may be absent.

        Raises:
            DecodeError: a frame is damaged (corrupt_frame), and with it the frames that refer to it.
        """
        self._context.skip_frame = "DEFAULT"
        decoder = CheckedDecoder(self._context)
        while stop is None or self._index < stop:
            packet = next(self._packets, None)
            if packet is None:
                break
            self._index += 1
            if wanted is not None:
                self._context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from decoder.decode(packet)
        yield from decoder.decode(None)

    def _seek(self, packet: int) -> None:
        if self._probed.has_time_jumps:
            self.reopen()  # the container's index is by time: read from the start
            return
        pts = self._probed.packet_pts
        try:
            self._container.seek(int(pts[packet]), stream=self._stream, backward=True)
        except av.error.PermissionError:
            self.reopen()  # -1 of libavformat: the container has no index; read from the start
            return
        packets = self._read()
        first = next(packets, None)
        indices = np.flatnonzero(pts == first.pts) if first is not None else np.empty(0, np.int64)
        if first is None or len(indices) != 1 or indices[0] > packet:
            self.reopen()  # the container's index leads elsewhere: read from the start
            return
        self._packets = _chain(first, packets)
        self._index = int(indices[0])

    def _read(self) -> Iterator["Packet[VideoStream]"]:
        packets = (packet for packet in self._container.demux(self._stream) if packet.size)
        return self._retimed(packets) if self._probed.has_time_jumps else packets

    def _retimed(self, packets: Iterator["Packet[VideoStream]"]) -> Iterator["Packet[VideoStream]"]:
        """Yield all packets of the file with the times of the probe, which do not jump."""
        for packet, pts in zip(packets, self._probed.packet_pts.tolist(), strict=False):
            packet.pts = pts
            yield packet


def _chain(first: "Packet[VideoStream]", rest: Iterator["Packet[VideoStream]"]) -> Iterator["Packet[VideoStream]"]:
    yield first
    yield from rest


def _reject_missing(numbers: list[int]) -> None:
    listed = shorten_list((str(n) for n in sorted(numbers)), 8)
    raise DecodeError(
        "frame_missing",
        f"Frame {listed} is in the file, but the decoder does not return it. Upload the video again.",
        True,
    )
