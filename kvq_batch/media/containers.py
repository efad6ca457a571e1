"""What the bytes of a file say about it before any demuxer is trusted with them.

Demuxers answer a cut-off Matroska file with fewer frames and no error, and HTML with "invalid data": the sizes that
are in the container's own headers, and the first bytes, say it by name. It parses headers only, never a picture.
"""

from pathlib import Path
from typing import BinaryIO

# Only what holds video (or audio, so that "no video" can be said): libavformat also opens playlists, which fetch other
# files and addresses, and text, which it renders. A stored video may do neither.
DEMUXERS = (
    "mov,matroska,avi,mpegts,mpegtsraw,mpeg,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,flv,asf,ogg,mxf,nut,dv,rm,gxf,"
    "yuv4mpegpipe,mjpeg,mjpeg_2000,gif,apng,jpeg_pipe,png_pipe,webp_pipe,webp_anim,mp3,aac,wav,flac,ac3,aiff,amr,w64,"
    "caf,opus"
)
_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx", b"mfra", b"styp"}
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
    """True where the file starts as HTML or XML: most often an error page saved under the name of a video."""
    text = _head(path).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b'{"error'))


def missing_bytes(path: Path) -> int:
    """How many bytes the container's own headers declare beyond the end of the file; 0 where they declare none.

    Known for MP4 and MOV (top-level boxes), Matroska and WebM (the segment), AVI (RIFF).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if head[4:8] in _MP4_BOXES:
            return max(0, _mp4_end(file, size) - size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return max(0, _matroska_end(file, size) - size)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return max(0, int.from_bytes(head[4:8], "little") + 8 - size)
    return 0


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _mp4_end(file: BinaryIO, size: int) -> int:
    offset = 0
    while offset + 8 <= size:
        file.seek(offset)
        header = file.read(16)
        if header[4:8] not in _MP4_BOXES:
            return offset  # trailing bytes of another kind: not ours to judge
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length == 0:
            return size  # "to the end of the file"
        if length < 8:
            return offset
        offset += length
    return offset


def _matroska_end(file: BinaryIO, size: int) -> int:
    file.seek(4)
    header_length, _ = ebml_size(file)
    file.seek(header_length, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return size
    length, is_unknown = ebml_size(file)
    return size if is_unknown else file.tell() + length


def ebml_size(file: BinaryIO) -> tuple[int, bool]:
    """An EBML size and whether it says "unknown" (a live recording)."""
    first = file.read(1)
    if not first or first[0] == 0:
        return 0, True
    width = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & ((1 << (8 - width)) - 1)]) + file.read(width - 1), "big")
    return value, value == (1 << (7 * width)) - 1
