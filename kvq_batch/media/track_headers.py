"""Track headers of MP4, MOV and Matroska that libavformat reads, but PyAV does not pass on: cropping and encryption.

MP4 and MOV have a clean aperture (`clap`, ISO/IEC 14496-12, 12.1.4), Matroska has PixelCrop (RFC 9559, 5.1.4.1.28).
ffmpeg and QuickTime apply both. Encrypted tracks of MP4 have sample entries of their own (8.12).
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from av.video.stream import VideoStream

from kvq_batch.media.containers import ebml_element

_SEGMENT, _TRACKS, _CLUSTER, _TRACK, _TRACK_TYPE, _VIDEO = 0x18538067, 0x1654AE6B, 0x1F43B675, 0xAE, 0x83, 0xE0
_PIXEL_CROPS = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}
_VIDEO_TRACK_TYPE = 1
# A visual sample entry of MP4 has 78 bytes before its boxes; the size in pixels is at byte 24.
_SAMPLE_ENTRY_BYTES, _SAMPLE_ENTRY_SIZE = 78, 24
# Common encryption, and FairPlay.
_ENCRYPTED_ENTRIES = {b"encv", b"drmi"}


@dataclass(frozen=True, slots=True)
class Crop:
    """Rows and columns at each side of a decoded frame that are not shown."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


NO_CROP = Crop()


@dataclass(frozen=True, slots=True)
class _Part:
    """A box of MP4 or an element of Matroska: its payload is the bytes [start, end) of the file."""

    kind: bytes | int
    start: int
    end: int


def crop_of(path: Path, stream: VideoStream) -> Crop:
    """Return the cropping of a video stream; none where the container has none, or one that leaves no picture."""
    size, container = path.stat().st_size, stream.container
    with path.open("rb") as file:
        if container.format.name.startswith("mov"):
            crop = _mp4_crop(file, size, stream.id)
        elif container.format.name.startswith("matroska"):
            crop = _matroska_crop(file, size, container.streams.video.index(stream))
        else:
            return NO_CROP
    width, height = stream.codec_context.width, stream.codec_context.height
    is_usable = min(crop.top, crop.bottom, crop.left, crop.right) >= 0
    return crop if is_usable and crop.left + crop.right < width and crop.top + crop.bottom < height else NO_CROP


def has_encrypted_entry(path: Path, stream: VideoStream) -> bool:
    """Return whether a stream of MP4 or MOV has a sample entry of encrypted video; False in other containers."""
    if not stream.container.format.name.startswith("mov"):
        return False
    with path.open("rb") as file:
        return any(entry.kind in _ENCRYPTED_ENTRIES for entry in _entries(file, path.stat().st_size, stream.id))


def _mp4_crop(file: BinaryIO, size: int, track_id: int) -> Crop:
    for entry in _entries(file, size, track_id):
        width, height = struct.unpack_from(">HH", _read(file, entry), _SAMPLE_ENTRY_SIZE)
        inside = _Part(entry.kind, entry.start + _SAMPLE_ENTRY_BYTES, entry.end)
        for aperture in _find(file, inside, b"clap"):
            return _aperture_crop(_read(file, aperture), width, height)
    return NO_CROP


def _entries(file: BinaryIO, size: int, track_id: int) -> Iterator[_Part]:
    """Yield the sample entries of a track of MP4."""
    for track in _find(file, _Part(b"", 0, size), b"moov", b"trak"):
        header = next(_find(file, track, b"tkhd"), None)
        if header is not None and _track_id(_read(file, header)) == track_id:
            for descriptions in _find(file, track, b"mdia", b"minf", b"stbl", b"stsd"):
                # After version, flags and the number of entries.
                yield from _boxes(file, descriptions.start + 8, descriptions.end)


def _track_id(header: bytes) -> int:
    """Return the track of a `tkhd` box, whose times have 4 or 8 bytes each."""
    return int.from_bytes(header[20:24] if header[0] == 1 else header[12:16], "big")


def _aperture_crop(box: bytes, width: int, height: int) -> Crop:
    """Return the crop of a `clap` box: size and offset of its centre from that of the picture, all fractions."""
    numbers = struct.unpack(">IIIIiIiI", box[:32])
    if not all(numbers[1::2]):
        return NO_CROP
    shown_w, shown_h, offset_x, offset_y = (Fraction(n, d) for n, d in zip(numbers[::2], numbers[1::2], strict=True))
    left, right = _margins(width, shown_w, offset_x)
    top, bottom = _margins(height, shown_h, offset_y)
    return Crop(top, bottom, left, right)


def _margins(extent: int, shown: Fraction, offset: Fraction) -> tuple[int, int]:
    """Return the pixels before and after the shown ones, with fractions of a pixel rounded as in ffmpeg."""
    first = Fraction(extent - 1, 2) + offset - (shown - 1) / 2
    return math.floor(first), extent - math.floor(first + shown)


def _matroska_crop(file: BinaryIO, size: int, number: int) -> Crop:
    """Return the crop of the video track `number`, counted from 0 among the video tracks."""
    for segment in _find_element(file, _Part(0, 0, size), _SEGMENT):
        for tracks in _find_element(file, segment, _TRACKS):
            videos = [track for track in _find_element(file, tracks, _TRACK) if _is_video(file, track)]
            if number >= len(videos):
                return NO_CROP
            crops = {
                _PIXEL_CROPS[part.kind]: int.from_bytes(_read(file, part), "big")
                for video in _find_element(file, videos[number], _VIDEO)
                for part in _elements(file, video)
                if isinstance(part.kind, int) and part.kind in _PIXEL_CROPS
            }
            return Crop(**crops)
    return NO_CROP


def _is_video(file: BinaryIO, track: _Part) -> bool:
    kinds = (int.from_bytes(_read(file, part), "big") for part in _find_element(file, track, _TRACK_TYPE))
    return next(kinds, 0) == _VIDEO_TRACK_TYPE


def _find(file: BinaryIO, parent: _Part, *path: bytes) -> Iterator[_Part]:
    """Yield the boxes at a path of kinds below a box."""
    for box in _boxes(file, parent.start, parent.end):
        if box.kind == path[0]:
            if len(path) == 1:
                yield box
            else:
                yield from _find(file, box, *path[1:])


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[_Part]:
    while start + 8 <= end:
        file.seek(start)
        header = file.read(16)
        length, kind, head = int.from_bytes(header[:4], "big"), header[4:8], 8
        if length == 1:
            length, head = int.from_bytes(header[8:16], "big"), 16
        elif length == 0:
            length = end - start
        if length < head:
            return
        yield _Part(kind, start + head, min(start + length, end))
        start += length


def _find_element(file: BinaryIO, parent: _Part, kind: int) -> Iterator[_Part]:
    return (part for part in _elements(file, parent) if part.kind == kind)


def _elements(file: BinaryIO, parent: _Part) -> Iterator[_Part]:
    """Yield the elements of an element. It stops at the first cluster: tracks are described before it."""
    start = parent.start
    while start < parent.end:
        kind, start, end = ebml_element(file, start)
        if kind is None or kind == _CLUSTER:
            return
        end = parent.end if end is None else min(end, parent.end)
        yield _Part(kind, start, end)
        start = end


def _read(file: BinaryIO, part: _Part) -> bytes:
    file.seek(part.start)
    return file.read(part.end - part.start)
