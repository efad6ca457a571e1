"""Edits of container headers that no option of ffmpeg makes: boxes put into MP4, elements into Matroska."""

from collections.abc import Callable
from pathlib import Path

_TRACKS = b"\x16\x54\xae\x6b"


def add_box(source: Path, path: Path, box: bytes) -> Path:
    """Write `source`, an MP4 whose `moov` is at its end, with `box` at the end of its first sample description."""
    data = source.read_bytes()
    start = data.index(b"moov") - 4
    assert data.index(b"mdat") < start

    def grown(part: bytes, kinds: list[bytes]) -> bytes:
        """Return a box with `box` added below the path of `kinds`."""
        if not kinds:
            return (len(part) + len(box)).to_bytes(4, "big") + part[4:] + box
        at = part.index(kinds[0]) - 4
        length = int.from_bytes(part[at : at + 4], "big")
        part = part[:at] + grown(part[at : at + length], kinds[1:]) + part[at + length :]
        return len(part).to_bytes(4, "big") + part[4:]

    entry = data[data.index(b"stsd", start) + 16 :][:4]
    moov = grown(data[start:], [b"trak", b"mdia", b"minf", b"stbl", b"stsd", entry])
    path.write_bytes(data[:start] + moov)
    return path


def box(kind: bytes, payload: bytes) -> bytes:
    """Return a box of MP4."""
    return (8 + len(payload)).to_bytes(4, "big") + kind + payload


def element(kind: int, payload: bytes) -> bytes:
    """Return an element of Matroska, its size in 8 bytes."""
    identity = kind.to_bytes((kind.bit_length() + 7) // 8, "big")
    return identity + (1 << 56 | len(payload)).to_bytes(8, "big") + payload


def edit_track(source: Path, path: Path, edit: Callable[[bytes], bytes]) -> Path:
    """Write `source`, a Matroska stream without an index, with the payload of its first TrackEntry edited."""
    data = source.read_bytes()

    def replaced(whole: bytes, kind: bytes, change: Callable[[bytes], bytes]) -> bytes:
        at = whole.index(kind) + len(kind)
        width = 9 - whole[at].bit_length()
        size = int.from_bytes(whole[at : at + width], "big") & ((1 << 7 * width) - 1)
        payload = change(whole[at + width : at + width + size])
        return whole[:at] + (1 << 56 | len(payload)).to_bytes(8, "big") + payload + whole[at + width + size :]

    # The first place is a reference to the second.
    start = data.index(_TRACKS, data.index(_TRACKS) + 1)
    path.write_bytes(data[:start] + replaced(data[start:], _TRACKS, lambda entries: replaced(entries, b"\xae", edit)))
    return path


def add_to_video(track: bytes, elements: bytes) -> bytes:
    """Return the payload of a TrackEntry with `elements` added to its Video element."""
    # The size of the element that ffmpeg writes has 1 byte, or 8.
    at = next(i for i in range(len(track)) if track[i] == 0xE0 and _fits(track, i + 1))
    width = 9 - track[at + 1].bit_length()
    size = int.from_bytes(track[at + 1 : at + 1 + width], "big") & ((1 << 7 * width) - 1)
    payload = track[at + 1 + width : at + 1 + width + size] + elements
    return track[:at] + element(0xE0, payload) + track[at + 1 + width + size :]


def _fits(track: bytes, at: int) -> bool:
    """Return whether a Video element starts here: its first child is the width, or the interlacing flag."""
    width = 9 - track[at].bit_length()
    return track[at + width : at + width + 1] in (b"\xb0", b"\x9a")
