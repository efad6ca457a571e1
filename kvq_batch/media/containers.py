"""Which containers are opened, and what the bytes of a file say before a demuxer reads them.

Demuxers answer HTML and images with "invalid data"; the first bytes give the true reason. A demuxer that runs out of
data reports the end of the video, so that a file that was cut, or preallocated and never filled, looks like a shorter
one: `check_completeness` compares the structure that a container declares with the bytes that are there. A length
counts as lost only where it holds media: a size that the writer left unknown (0 or all ones, as in a stream from a
pipe), padding, and an index behind the media do not. Only structure is parsed here, never a picture.
"""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# Containers that hold video (or audio, so that the error can be "no video"). libavformat also opens playlists, which
# fetch other files and addresses, and text, which it renders; a stored video must do neither.
DEMUXERS = (
    "mov,matroska,avi,mpegts,mpegtsraw,mpeg,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,flv,asf,ogg,mxf,nut,dv,rm,gxf,"
    "h261,h263,dirac,vc1,dnxhd,evc,apv,wtv,"
    "yuv4mpegpipe,mjpeg,mjpeg_2000,gif,apng,jpeg_pipe,png_pipe,webp_pipe,webp_anim,mp3,aac,wav,flac,ac3,aiff,amr,w64,"
    "caf,opus"
)
_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
)
_IMAGE_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"}
_TS_PACKET, _TS_SYNC = 188, 0x47
# Scrambling is looked for in this much of a file.
_TS_BYTES = 4 << 20

# A run of zeros of this length at the end of a stream without an outer structure is space that was never written.
# MPEG allows stuffing with zeros, so that a short run says nothing.
_MIN_ZERO_TAIL = 1 << 16
_ZERO_TAIL_SHARE = 0.1

# What an MP4 or a MOV starts with.
_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx", b"styp", b"pnot"}

_EBML_HEADER, _SEGMENT, _CLUSTER, _INFO = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1549A966
_TIMESTAMP_SCALE, _DURATION = 0x2AD7B1, 0x4489
# Children of a Cluster (RFC 9559): a cluster of unknown size ends before anything else.
_CLUSTER_CHILDREN = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, 0xEC, 0xBF}

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")

_MXF_HEADER_PARTITION = bytes.fromhex("060e2b34020501010d01020101")


@dataclass(frozen=True, slots=True)
class Completeness:
    """What the structure of a file says of its own length.

    `loss` describes media that is declared and not there (None: nothing is known to be lost). `has_cut_samples` is
    True where an MP4's media is shorter than its box says, and its sample table decides. `duration_s` is the duration
    in the header, where the format defines it as that of the whole file.
    """

    loss: str | None = None
    has_cut_samples: bool = False
    duration_s: float | None = None


def image_kind(path: Path) -> str | None:
    """Return the name of the image format that the file starts as, None for other files.

    Files of these formats may hold several pictures: only a demuxer counts them.
    """
    head = _head(path)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS:
        return "AVIF or HEIF"
    for magic, name in _IMAGES:
        if head.startswith(magic):
            return name
    return None


def is_animated_webp(path: Path) -> bool:
    """Return whether the extended header of a WebP file says that it is animated."""
    head = _head(path)
    return head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def is_one_photo(first_picture: bytes) -> bool:
    """Return whether a JPEG that is followed by more data is one photo all the same.

    Cameras append previews and gain maps as further pictures, with an index of them ("MPF", CIPA DC-007), or a short
    film behind the end of the picture.
    """
    return b"MPF\x00" in first_picture[: 1 << 16] or not first_picture.rstrip(b"\x00").endswith(b"\xff\xd9")


def is_scrambled(path: Path, pid: int) -> bool:
    """Return whether most packets of an MPEG-TS stream say that they are scrambled (ISO/IEC 13818-1, 2.4.3.3)."""
    with path.open("rb") as file:
        data = file.read(_TS_BYTES)
    # Packets of 188 bytes, with 4 bytes before each on Blu-ray discs, or 16 of parity after each.
    start = data.find(_TS_SYNC)
    size = next((n for n in (_TS_PACKET, 192, 204) if data[start : start + 9 * n : n] == bytes([_TS_SYNC]) * 9), 0)
    if not size:
        return False
    controls = [
        data[at + 3] >> 6
        for at in range(start, len(data) - _TS_PACKET, size)
        if (data[at + 1] & 0x1F) << 8 | data[at + 2] == pid and data[at + 3] & 0x10
    ]
    return sum(control > 1 for control in controls) * 2 > len(controls)


def is_markup(path: Path) -> bool:
    """Return whether the file starts as HTML or XML: most often an error page saved under the name of a video."""
    text = _head(path).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b'{"error'))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def check_completeness(path: Path) -> Completeness:
    """Compare the declared structure of the file at `path` with its bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        for is_format, check in _CHECKS:
            if is_format(head):
                return check(file, size)
        return _check_unstructured(file, size)


def _check_mp4(file: BinaryIO, size: int) -> Completeness:
    offset, has_index, has_media, is_fragmented, is_walked = 0, False, False, False, True
    while offset + 8 <= size:
        header = _read(file, offset, 16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if not all(0x20 <= letter < 0x7F or letter == 0xA9 for letter in kind):
            is_walked = not any(header)  # a preallocated file continues with zeros
            break
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        has_index |= kind in (b"moov", b"meta")  # HEIF and AVIF have the second
        has_media |= kind == b"mdat"
        is_fragmented |= kind == b"moof"
        if length == 0:  # "to the end of the file"
            length = size - offset
        if length < 8:
            is_walked = False
            break
        if kind == b"sidx" and (loss := _sidx_loss(_read(file, offset, min(length, 1 << 20)), offset, size)):
            return Completeness(loss)
        missing = offset + length - size
        if missing > 0 and kind in (b"moov", b"moof"):
            return Completeness(f"its index ({kind.decode()}) lacks {missing} bytes")
        if missing > 0 and kind == b"mdat":
            if is_fragmented or not has_index:
                return Completeness(f"{missing} bytes of its media data are missing")
            return Completeness(has_cut_samples=True)
        offset += length
    if is_walked and has_media and not has_index:
        return Completeness("its index (moov) is missing, which is written last")
    return Completeness(has_cut_samples=has_index and not has_media)


def _sidx_loss(box: bytes, offset: int, size: int) -> str | None:
    """Return the loss that a segment index shows (ISO/IEC 14496-12, 8.16.3): it lists the sizes of what follows it."""
    length = int.from_bytes(box[:4], "big")
    is_wide = len(box) > 8 and box[8] == 1
    start = 12 + 8 + (16 if is_wide else 8)
    if length > len(box) or len(box) < start + 4:
        return None
    first_offset = int.from_bytes(box[start - (8 if is_wide else 4) : start], "big")
    count = int.from_bytes(box[start + 2 : start + 4], "big")
    references = struct.unpack_from(f">{3 * count}I", box, start + 4) if len(box) >= start + 4 + 12 * count else ()
    end = offset + length + first_offset + sum(reference & 0x7FFFFFFF for reference in references[::3])
    return f"its segment index lists {end - size} bytes that are missing" if end > size else None


def _check_matroska(file: BinaryIO, size: int) -> Completeness:
    duration_s, declared_end = None, 0
    for element, start, end in _matroska_elements(file, size):
        if element == _SEGMENT:
            declared_end = end
        elif element == _INFO:
            duration_s = _matroska_duration(file, start, min(end, size)) or duration_s
        elif element == 0:
            return Completeness(f"zeros follow where its structure continues, from byte {start} on")
        elif element == _CLUSTER and end > size:
            return Completeness(f"{end - size} bytes of its last cluster are missing")
    if declared_end > size and duration_s is None:
        return Completeness(f"{declared_end - size} bytes of its segment are missing")
    return Completeness(duration_s=duration_s)


def _matroska_elements(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """Segments and their children as (id, start of the data, end); the id is 0 where the file has zeros instead.

    The end of a segment of unknown size is that of the file, the end of such a cluster that of its last child.
    """
    offset, segment_end = 0, 0
    while offset < size:
        element, start, end = ebml_element(file, offset)
        if element in (_EBML_HEADER, _SEGMENT):
            if element == _SEGMENT:
                segment_end = size if end is None else min(end, size)
                yield element, start, end or size
            offset = start if element == _SEGMENT or end is None else end
            continue
        if element == _CLUSTER and end is None:
            end = _live_cluster_end(file, start, size)
        if element is None or end is None:
            if _zeros_follow(file, offset, segment_end):
                yield 0, offset, offset
            return  # what follows the segment is not part of the video, and other bytes are not elements
        yield element, start, end
        offset = end


def _live_cluster_end(file: BinaryIO, offset: int, size: int) -> int:
    while offset < size:
        element, _, end = ebml_element(file, offset)
        if element not in _CLUSTER_CHILDREN or end is None:
            return offset
        offset = end
    return offset


def ebml_element(file: BinaryIO, offset: int) -> tuple[int | None, int, int | None]:
    """Return (id, start of the data, its end) of the element at `offset`; None for no id and for an unknown size."""
    file.seek(offset)
    first = file.read(1)
    if not first or first[0] < 0x10:
        return None, offset, None
    element = int.from_bytes(first + file.read(8 - first[0].bit_length()), "big")
    length, is_unknown = ebml_size(file)
    start = file.tell()
    return element, start, None if is_unknown else start + length


def ebml_size(file: BinaryIO) -> tuple[int, bool]:
    """Read an EBML size, and whether it says "unknown" (a live recording)."""
    first = file.read(1)
    if not first or first[0] == 0:
        return 0, True
    width = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & ((1 << (8 - width)) - 1)]) + file.read(width - 1), "big")
    return value, value == (1 << (7 * width)) - 1


def _matroska_duration(file: BinaryIO, offset: int, end: int) -> float | None:
    """Return the seconds that the children [offset, end) of an Info element declare."""
    scale, duration = 1_000_000, 0.0
    while offset < end:
        element, start, stop = ebml_element(file, offset)
        if element is None or stop is None:
            break
        data = _read(file, start, min(stop - start, 8))
        if element == _TIMESTAMP_SCALE:
            scale = int.from_bytes(data, "big")
        elif element == _DURATION and len(data) in (4, 8):
            (duration,) = struct.unpack(">f" if len(data) == 4 else ">d", data)
        offset = stop
    return duration * scale * 1e-9 if math.isfinite(duration) and duration > 0 else None


def _check_riff(file: BinaryIO, size: int) -> Completeness:
    """AVI, with the further RIFF chunks of OpenDML, and WebP."""
    form = _read(file, 8, 4)
    declared_end = 8 + int.from_bytes(_read(file, 4, 4), "little")
    if form == b"WEBP":
        return Completeness(f"{declared_end - size} bytes of it are missing" if declared_end > size else None)
    offset, has_media = 0, False
    while offset + 12 <= size:
        header = _read(file, offset, 12)
        kind, length = header[:4], int.from_bytes(header[4:8], "little")
        if kind == b"RIFF" and header[8:12] in (b"AVI ", b"AVIX"):
            offset += 12
            continue
        if kind == b"LIST" and header[8:12] == b"movi":
            has_media = True
            end = size if length in (0, 0xFFFFFFFF) else offset + 8 + length
            if loss := _movi_loss(file, offset + 12, end, size):
                return Completeness(loss)
            length = end - offset - 8
        elif not kind.strip().isalnum():
            break
        offset += 8 + length + length % 2
    if not has_media and declared_end > size:
        return Completeness("it ends before its media data")
    return Completeness()


def _movi_loss(file: BinaryIO, offset: int, end: int, size: int) -> str | None:
    """Return the loss within the chunks [offset, end) of an AVI's frames and sound."""
    while offset + 8 <= min(end, size):
        header = _read(file, offset, 12)
        kind, length = header[:4], int.from_bytes(header[4:8], "little")
        if kind == b"LIST" and header[8:12] == b"rec ":
            offset += 12
            continue
        if not kind.isalnum():
            if _zeros_follow(file, offset, end):
                return f"zeros follow where its frames continue, from byte {offset} on"
            return None  # not a chunk; a demuxer searches for the next one, and so does a player
        if (kind == b"idx1" or kind == b"JUNK") and offset + 8 + length >= size:
            return None
        if offset + 8 + length > size:
            return f"{offset + 8 + length - size} bytes of its last frame are missing"
        offset += 8 + length + length % 2
    return f"{end - size} bytes of its frames are missing" if end > size else None


def _check_asf(file: BinaryIO, size: int) -> Completeness:
    header = _read(file, 0, 30)
    offset, end_of_header = 30, int.from_bytes(header[16:24], "little")
    is_broadcast, packet_bytes = False, 0
    while offset + 24 <= min(end_of_header, size):
        item = _read(file, offset, 96)
        if item[:16] == _ASF_FILE_PROPERTIES and len(item) == 96:
            is_broadcast, packet_bytes = bool(item[88] & 1), int.from_bytes(item[92:96], "little")
        length = int.from_bytes(item[16:24], "little")
        if length < 24:
            break
        offset += length
    data = _read(file, end_of_header, 24)
    missing = end_of_header + int.from_bytes(data[16:24], "little") - size
    if missing > 0 and data[:16] == _ASF_DATA and not is_broadcast:
        return Completeness(f"{missing} bytes of its media data are missing")
    return _check_unstructured(file, size, packet_bytes)  # the last packet is padded with zeros


def _check_flv(file: BinaryIO, size: int) -> Completeness:
    """Compare with onMetaData, the first tag; a file whose size is what it says was cut by its writer, on purpose."""
    head = _read(file, 9, 8192)
    metadata = head[15 : 15 + int.from_bytes(head[5:8], "big")] if head[4:5] == b"\x12" else b""
    declared_size = _flv_number(metadata, b"filesize")
    if declared_size is not None and 0 < declared_size <= size:
        return _check_unstructured(file, size)
    tail = _check_unstructured(file, size)
    return Completeness(tail.loss, duration_s=_flv_number(metadata, b"duration") or None)


def _flv_number(metadata: bytes, name: bytes) -> float | None:
    key = len(name).to_bytes(2, "big") + name + b"\x00"
    start = metadata.find(key) + len(key)
    if start < len(key) or len(metadata) < start + 8:
        return None
    return float(struct.unpack(">d", metadata[start : start + 8])[0])


def _check_gif(file: BinaryIO, size: int) -> Completeness:
    """GIF89a: blocks up to a trailer, 0x3B."""
    offset = 13 + _gif_palette_bytes(_read(file, 10, 1))
    while offset < size:
        head = _read(file, offset, 10)
        if head[0] == 0x3B:
            return Completeness()
        if head[0] == 0x21:
            offset += 2
        elif head[0] == 0x2C and len(head) == 10:
            offset += 11 + _gif_palette_bytes(head[9:10])
        else:
            break
        while (length := _read(file, offset, 1)) not in (b"", b"\x00"):
            offset += 1 + length[0]
        offset += 1
    return Completeness("the trailer of the GIF is missing")


def _gif_palette_bytes(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _check_png(file: BinaryIO, size: int) -> Completeness:
    offset = 8
    while offset + 12 <= size:
        header = _read(file, offset, 8)
        if header[4:] == b"IEND":
            return Completeness()
        offset += 12 + int.from_bytes(header[:4], "big")
    return Completeness("the last chunk of the PNG (IEND) is missing")


def _check_ogg(file: BinaryIO, size: int) -> Completeness:
    """Check the last page, whose header lists the sizes of its segments (RFC 3533)."""
    start = max(0, size - (1 << 17))
    tail = _read(file, start, size - start)
    page = tail.rfind(b"OggS")
    if page < 0 or page + 27 > len(tail):
        return _check_unstructured(file, size)
    sizes = tail[page + 27 : page + 27 + tail[page + 26]]
    missing = page + 27 + tail[page + 26] + sum(sizes) - len(tail)
    if missing > 0:
        return Completeness(f"{missing} bytes of its last page are missing")
    return _check_unstructured(file, size)


def _check_mxf(file: BinaryIO, size: int) -> Completeness:
    """Check the footer, whose position the header partition gives (SMPTE ST 377-1), 0 where the writer left it open."""
    head = _read(file, 0, 96)
    width = head[16] & 0x7F if head[16] & 0x80 else 0
    start = 17 + width + 24
    footer = int.from_bytes(head[start : start + 8], "big")
    if footer >= size:
        return Completeness(f"it ends {footer - size} bytes before its footer")
    return _check_unstructured(file, size)


def _check_unstructured(file: BinaryIO, size: int, padding_bytes: int = 0) -> Completeness:
    """Look for a tail of zeros, longer than padding: nothing else can be seen in a stream that declares no length."""
    num_zeros = _zero_tail(file, size) - padding_bytes
    if num_zeros >= min(_MIN_ZERO_TAIL, max(4096, _ZERO_TAIL_SHARE * size)):
        return Completeness(f"its last {num_zeros} bytes are zeros; the file was never written to its end")
    return Completeness()


def _zeros_follow(file: BinaryIO, offset: int, end: int) -> bool:
    """Return whether the bytes behind a header at `offset`, which may be written in part, are zeros."""
    data = _read(file, offset + 16, max(0, min(end - offset - 16, 4096)))
    return bool(data) and not any(data)


def _zero_tail(file: BinaryIO, size: int) -> int:
    end = size
    while end:
        start = max(0, end - (1 << 16))
        used = len(_read(file, start, end - start).rstrip(b"\x00"))
        if used:
            return size - start - used
        end = start
    return size


def _read(file: BinaryIO, offset: int, num_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(num_bytes)


_CHECKS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], Completeness]], ...] = (
    (lambda head: head[4:8] in _MP4_BOXES, _check_mp4),
    (lambda head: head[:4] == b"\x1a\x45\xdf\xa3", _check_matroska),
    (lambda head: head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"), _check_riff),
    (lambda head: head == _ASF_HEADER, _check_asf),
    (lambda head: head[:3] == b"FLV", _check_flv),
    (lambda head: head[:3] == b"GIF", _check_gif),
    (lambda head: head[:8] == b"\x89PNG\r\n\x1a\n", _check_png),
    (lambda head: head[:4] == b"OggS", _check_ogg),
    (lambda head: head[:13] == _MXF_HEADER_PARTITION, _check_mxf),
)
