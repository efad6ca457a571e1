"""Files whose packets say something else than their pictures: other flags and times, and clocks that start again."""

from collections.abc import Callable
from pathlib import Path

import av
from av.packet import Packet
from av.video.stream import VideoStream

Packets = list["Packet[VideoStream]"]
Change = Callable[[Packets], Packets | None]

_CLOCK = 90_000  # ticks per second of MPEG-TS
_PACKET_BYTES = 188
_VIDEO_PID = 256


def remux(source: Path, path: Path, change: Change) -> Path:
    """Write the first video stream of `source` with packets that `change` edits, or replaces."""
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        stream = given.streams.video[0]
        target = made.add_stream_from_template(stream, opaque=True)
        packets = [packet for packet in given.demux(stream) if packet.size]
        for packet in change(packets) or packets:
            packet.stream = target
            made.mux(packet)
    return path


def mark_all_as_keyframes(packets: Packets) -> None:
    for packet in packets:
        packet.is_keyframe = True


def mark_every_seventh(packets: Packets) -> None:
    for packet in packets[::7]:
        packet.is_keyframe = True


def show_in_coding_order(packets: Packets) -> None:
    """Give each packet its decoding time as its presentation time, as MP4 without `ctts` does."""
    for packet in packets:
        packet.pts = packet.dts


def swap_times(packets: Packets) -> None:
    """Exchange the presentation times of two pictures in each dozen."""
    for first, second in zip(packets[2::12], packets[3::12], strict=False):
        first.pts, second.pts = second.pts, first.pts


def swap_late_times(packets: Packets) -> None:
    """Exchange times as `swap_times` does, in the second half."""
    swap_times(packets[len(packets) // 2 :])


def hold_last(seconds: float) -> Callable[[Packets], None]:
    """Return a change that shows the last frame for `seconds`."""

    def change(packets: Packets) -> None:
        for packet in (packets[-1], max(packets, key=lambda packet: packet.pts or 0)):
            assert packet.time_base is not None
            packet.duration = round(seconds / packet.time_base)

    return change


def move_clock(source: Path, path: Path, share: float, seconds: float) -> Path:
    """Write an MPEG-TS file whose clock and times are `seconds` later in its last part, from `share` of its frames."""
    data = bytearray(source.read_bytes())
    packets = range(0, len(data), _PACKET_BYTES)
    frames = [at for at in packets if data[at + 1] & 64 and (data[at + 1] & 31) << 8 | data[at + 2] == _VIDEO_PID]
    ticks = round(seconds * _CLOCK)
    for at in range(frames[int(len(frames) * share)], len(data), _PACKET_BYTES):
        payload = at + 4
        if data[at + 3] & 32:
            if data[payload] and data[payload + 1] & 16:
                clock = int.from_bytes(data[payload + 2 : payload + 7], "big")
                moved = (clock >> 7) + ticks & (1 << 33) - 1
                data[payload + 2 : payload + 7] = (moved << 7 | clock & 127).to_bytes(5, "big")
            payload += 1 + data[payload]
        if at in frames:
            for number in range({2: 1, 3: 2}[data[payload + 7] >> 6]):
                _move_time(data, payload + 9 + 5 * number, ticks)
    path.write_bytes(data)
    return path


def _move_time(data: bytearray, at: int, ticks: int) -> None:
    """Add `ticks` to a time stamp of a PES header (ISO/IEC 13818-1, 2.4.3.6): 3, 15 and 15 bits, each with a marker."""
    field = int.from_bytes(data[at : at + 5], "big")
    time = (field >> 33 & 7) << 30 | (field >> 17 & 0x7FFF) << 15 | field >> 1 & 0x7FFF
    time = time + ticks & (1 << 33) - 1
    field = field >> 36 << 36 | (time >> 30) << 33 | (time >> 15 & 0x7FFF) << 17 | (time & 0x7FFF) << 1 | 0x100010001
    data[at : at + 5] = field.to_bytes(5, "big")
