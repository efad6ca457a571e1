"""From a decoded frame to the picture that players show: cropped, in RGB, mirrored and turned upright.

Colour follows the frame: its matrix and range, BT.601 and limited range where it states none. It is what the command
line of ffmpeg makes with `-pix_fmt rgb24`, bit for bit.

Chroma is taken to lie in the middle of the luma samples that share it, whatever the file says. Files disagree about it
for no visible reason: H.264 and HEVC mean "left" where they are silent (H.264 E.2.1), JPEG means the centre, FFV1 and
raw video say nothing. For 8 bits the published pipeline of KVQ repeats each chroma sample over its luma samples, which
is the centre. With one rule, equal samples give equal scores in every codec and container, and 8 and 10 bits differ
least: by 1.1 levels of a test pattern on average, 2.5 with "left". For the same reason interlaced frames are converted
as whole frames.
"""

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData, Type
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from kvq_batch.domain.errors import ProbeError
from kvq_batch.domain.frames import Planes
from kvq_batch.media.track_headers import Crop

# Formats whose conversion repeats chroma samples, where the height is even (ff_get_unscaled_swscale in libswscale).
_REPEATED_CHROMA = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuva420p"}
# ffmpeg takes an angle this close to a quarter turn for it.
_MAX_TILT_DEG = 1.0
# More than FFmpeg has kinds of side data of a frame (33 in version 8).
_MAX_SIDE_DATA = 48
# A size that every subsampling divides.
_LARGE = 1024


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a decoded frame is shown: mirrored left to right if `is_mirrored`, then turned clockwise."""

    is_mirrored: bool
    rotation_deg: int


def orientation_of(frame: VideoFrame) -> Orientation:
    """Return what the display matrix of a frame says: of the container, of an SEI message, or of EXIF.

    The matrix (a b u; c d v; x y w) of ISO/IEC 14496-12 moves a pixel (p, q) to (a p + c q, b p + d q); q points
    downwards. A negative determinant is a mirror. The image of the vertical axis, (c, d), gives the angle either way.

    Raises:
        ProbeError: the angle is not a multiple of 90 degrees (unusual_rotation).
    """
    matrix = next((bytes(data) for data in side_data(frame) if data.type is Type.DISPLAYMATRIX), None)
    if matrix is None:
        return Orientation(False, 0)
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    if not a * d - b * c:
        return Orientation(False, 0)
    angle_deg = math.degrees(math.atan2(-c, d))
    quarters = round(angle_deg / 90)
    if abs(angle_deg - 90 * quarters) > _MAX_TILT_DEG:
        raise ProbeError(
            "unusual_rotation",
            f"Its display matrix turns the picture by {angle_deg % 360:.0f} degrees. Store it upright, or turned by "
            "90, 180 or 270 degrees.",
            True,
        )
    return Orientation(a * d - b * c < 0, 90 * quarters % 360)


def side_data(frame: VideoFrame) -> list[SideData]:
    """Return the side data of a frame of the kinds that PyAV has names for."""
    try:
        return list(cast(Iterable[SideData], frame.side_data))
    except ValueError:
        # PyAV lists all or none, and FFmpeg has kinds without a name in PyAV, EXIF among them.
        named = {cast(int, kind.value) for kind in Type}
        graph = Graph()
        nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))]
        nodes += [graph.add("sidedata", f"mode=delete:type={n}") for n in range(_MAX_SIDE_DATA) if n not in named]
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        graph.push(frame)
        return list(cast(Iterable[SideData], graph.vpull().side_data))


class PictureConverter:
    """Makes RGB pictures, or planes, of the frames of one video."""

    def __init__(self, crop: Crop, orientation: Orientation) -> None:
        self._reformatter = VideoReformatter()
        self._plane_reformatter = VideoReformatter()
        self._plain: VideoFrame | None = None
        self._crop = crop
        self._orientation = orientation

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return uint8 RGB [H, W, 3], cropped and upright. It may be a view of memory that the next call reuses."""
        if _repeats_chroma(frame):
            return self._oriented(self._cropped(self._to_rgb(frame)))
        if self._can_orient_planes(frame):
            # As in ffmpeg, before the conversion: libswscale interpolates chroma from row to row, but not within a row.
            return self._to_rgb(self._plain_frame(frame, is_oriented=True))
        return self._oriented(self._cropped(self._to_rgb(self._plain_frame(frame, is_oriented=False))))

    def planes(self, frame: VideoFrame, kind: Planes) -> tuple[NDArray[Any], ...]:
        """Return Y, U and V, cropped and upright: "yuv420p" or "yuv" (`FrameRequest`). They may be views of the frame.

        Of a crop that divides chroma samples, chroma keeps the sample.
        """
        name = "yuv420p" if kind == "yuv420p" else _planar_format(frame.format)
        if frame.format.name != name:
            # As `ffmpeg -pix_fmt`: the range of the source is kept, except that yuvj420p is full range by its name.
            frame = self._plane_reformatter.reformat(frame, format=name, interpolation=Interpolation.BICUBIC, threads=1)
        dtype = np.dtype(np.uint16 if frame.format.components[0].bits > 8 else np.uint8)
        shifts = _chroma_shifts(frame)
        return tuple(
            self._oriented(self._cropped(_rows(plane).view(dtype)[:, : plane.width], shifts if index else (0, 0)))
            for index, plane in enumerate(frame.planes[:3])
        )

    def _to_rgb(self, frame: VideoFrame) -> NDArray[np.uint8]:
        rgb = self._reformatter.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        return _rows(rgb.planes[0])[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)

    def _cropped(self, samples: NDArray[Any], shifts: tuple[int, int] = (0, 0)) -> NDArray[Any]:
        """Return a view of samples [H, W, ...] without what is not shown; `shifts` are those of the plane."""
        height, width = samples.shape[:2]
        crop, (down, across) = self._crop, shifts
        rows = slice(crop.top >> down, height - (crop.bottom >> down))
        return samples[rows, crop.left >> across : width - (crop.right >> across)]

    def _oriented(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return a view of samples [H, W, ...], upright."""
        mirrored = samples[:, ::-1] if self._orientation.is_mirrored else samples
        return np.rot90(mirrored, -(self._orientation.rotation_deg // 90))

    def _can_orient_planes(self, frame: VideoFrame) -> bool:
        """Return whether the crop respects subsampling, each plane has one component, and the format stays the same."""
        crop, (down, across) = self._crop, _chroma_shifts(frame)
        is_aligned = not (crop.top | crop.bottom) % (1 << down) and not (crop.left | crop.right) % (1 << across)
        components = frame.format.components
        is_planar = len({component.plane for component in components}) == len(components)
        return is_aligned and is_planar and (down == across or self._orientation.rotation_deg in (0, 180))

    def _plain_frame(self, frame: VideoFrame, is_oriented: bool) -> VideoFrame:
        """Return a copy that states no chroma location and no fields, which libswscale would use.

        With `is_oriented` the copy is cropped and upright.
        """
        width, height = frame.width, frame.height
        if is_oriented:
            width -= self._crop.left + self._crop.right
            height -= self._crop.top + self._crop.bottom
            if self._orientation.rotation_deg in (90, 270):
                width, height = height, width
        copy = self._plain
        # One copy for all frames: a new one costs as much as the conversion.
        if copy is None or (copy.width, copy.height, copy.format.name) != (width, height, frame.format.name):
            copy = self._plain = VideoFrame(width, height, frame.format.name)
        copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
        dtype = np.dtype(np.uint16 if frame.format.components[0].bits > 8 else np.uint8)
        for source, target in zip(frame.planes, copy.planes, strict=True):
            if is_oriented:
                is_full = (source.height, source.width) == (frame.height, frame.width)
                shifts = (0, 0) if is_full else _chroma_shifts(frame)
                shown = self._oriented(self._cropped(_rows(source).view(dtype)[:, : source.width], shifts))
                _rows(target).view(dtype)[:, : target.width] = shown
            else:
                num_bytes = min(source.line_size, target.line_size)
                _rows(target)[:, :num_bytes] = _rows(source)[:, :num_bytes]
        return copy


class DecodedPicture:
    """Implements `decoders.Picture`; converts on demand, each form once."""

    def __init__(self, frame: VideoFrame, converter: PictureConverter) -> None:
        self._frame = frame
        self._converter = converter
        self._rgb: NDArray[np.uint8] | None = None
        self._planes: dict[Planes, tuple[NDArray[Any], ...]] = {}

    def rgb(self) -> NDArray[np.uint8]:
        """See `Picture.rgb`."""
        if self._rgb is None:
            self._rgb = self._converter(self._frame)
        return self._rgb

    def yuv(self, kind: Planes) -> tuple[NDArray[Any], ...]:
        """See `Picture.yuv`."""
        if kind not in self._planes:
            self._planes[kind] = self._converter.planes(self._frame, kind)
        return self._planes[kind]


def _planar_format(kind: VideoFormat) -> str:
    """Return the name of the planar YUV format with the depth and the subsampling of `kind`; 4:4:4 for RGB."""
    components = kind.components
    is_planar = len({component.plane for component in components}) == len(components) >= 3
    if is_planar and not kind.is_rgb and not kind.is_big_endian:
        return kind.name
    ratio = {(1, 1): "420", (0, 1): "422"}.get(_shifts(kind), "444")
    depth = max(component.bits for component in components)
    return f"yuv{ratio}p" if depth <= 8 else f"yuv{ratio}p{depth}le"


def _repeats_chroma(frame: VideoFrame) -> bool:
    """Return whether the conversion ignores chroma locations and fields: without subsampling, or for most 8 bits."""
    kind = frame.format
    if (kind.chroma_width(frame.width), kind.chroma_height(frame.height)) == (frame.width, frame.height):
        return True
    return kind.name in _REPEATED_CHROMA and frame.height % 2 == 0 and not frame.interlaced_frame


def _chroma_shifts(frame: VideoFrame) -> tuple[int, int]:
    """Return the logarithms of the rows and of the columns that share a chroma sample."""
    return _shifts(frame.format)


def _shifts(kind: VideoFormat) -> tuple[int, int]:
    rows, columns = _LARGE // kind.chroma_height(_LARGE), _LARGE // kind.chroma_width(_LARGE)
    return rows.bit_length() - 1, columns.bit_length() - 1


def _rows(plane: VideoPlane) -> NDArray[np.uint8]:
    """Return uint8 [H, bytes of a row with its padding], a view."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
