"""Packets of MPEG-4 part 2 that are not one frame each: pictures without data, and two pictures in a packet."""

from pathlib import Path
from typing import cast

import av
import pytest
from av.packet import Packet
from av.video.stream import VideoStream

from kvq_batch.media.packets import VopParser
from kvq_batch.media.probe import VideoLimits, probe
from tests.media.test_keyframes import assert_as_ffmpeg
from tests.support.material import encode
from tests.support.remux import Change, Packets, remux

_RATE = 25


def empty_vop(number: int) -> bytes:
    """Return the VOP without data of frame `number` (ISO/IEC 14496-2, 6.2.5)."""
    time_bits = f"{number % _RATE:05b}"
    bits = "01" + "0" + "1" + time_bits + "1" + "0"  # P, no modulo_time_base, marker, time, marker, vop_coded = 0
    bits += "0" + "1" * ((-len(bits) - 1) % 8)
    return b"\x00\x00\x01\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big")


def with_data(packet: "Packet[VideoStream]", data: bytes) -> "Packet[VideoStream]":
    made = cast("Packet[VideoStream]", Packet(data))
    made.pts, made.dts, made.duration, made.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
    made.is_keyframe = packet.is_keyframe
    return made


def repeat_some_frames(packets: Packets) -> Packets:
    return [with_data(p, empty_vop(n)) if n % 9 == 4 and not p.is_keyframe else p for n, p in enumerate(packets)]


def pack_in_pairs(packets: Packets) -> Packets:
    """Put each second picture into the packet of the one before, and an empty one into its own."""
    pairs = zip(packets[::2], packets[1::2], strict=True)
    return [
        made
        for n, (first, second) in enumerate(pairs)
        for made in (with_data(first, bytes(first) + bytes(second)), with_data(second, empty_vop(2 * n + 1)))
    ]


@pytest.mark.parametrize("change", [repeat_some_frames, pack_in_pairs])
@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_frames_are_those_of_ffmpeg(tmp_path: Path, change: Change, extension: str) -> None:
    source = encode(tmp_path / "source.mp4", "-c:v", "mpeg4", "-g", "24", size="160x96")
    path = remux(source, tmp_path / f"changed.{extension}", change)
    assert probe(path, VideoLimits()).counting == "decoding"
    assert_as_ffmpeg(path)


@pytest.mark.parametrize("rate", ["25", "30000/1001", "1"])
def test_ordinary_packets_are_one_frame(tmp_path: Path, rate: str) -> None:
    path = encode(tmp_path / "ordinary.mp4", "-c:v", "mpeg4", "-bf", "2", size="160x96", rate=rate, seconds=20)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        parser = VopParser(stream.codec_context.extradata or b"")
        assert all(parser.is_one_frame(bytes(packet)) for packet in container.demux(stream))
    assert probe(path, VideoLimits()).counting == "packets"
