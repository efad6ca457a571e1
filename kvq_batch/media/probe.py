"""Everything that is known of a video before a clip of it is decoded, and the index that its frames are found by.

Headers lie about the number of frames, so the packets are walked once, without decoding: one packet is one frame, its
presentation time names it. Where that does not hold (missing or doubled times, fields as packets, frames before the
first keyframe) every frame is decoded once and counted. It never guesses a frame count from duration times rate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError, ProbeError
from kvq_batch.domain.video import Hdr, VideoFacts
from kvq_batch.media import colors
from kvq_batch.media.containers import DEMUXERS, image_kind, is_markup, missing_bytes

Counting = Literal["packets", "decoding"]

# Containers that state when each packet is shown. AVI and elementary streams do not: with reordered frames their
# times are made up by the demuxer (an AVI with B frames gave other frames than asked for, measured).
_TIMED_CONTAINERS = {
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv", "nut", "ivf", "yuv4mpegpipe", "gif", "apng",
}  # fmt: skip
# Below this, a deviation of a frame's duration is the rounding of a container's clock (Matroska: 1 ms), not a rate.
_JITTER_S = 1.05e-3
# Used for a lone frame whose container gives it no duration.
_LONE_FRAME_S = 0.04


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What is refused: frames of more pixels than this, and PQ or HLG unless `hdr` says "as-is"."""

    max_frame_pixels: int = 8192 * 4320
    hdr: Hdr = "refuse"


@dataclass(frozen=True, slots=True)
class Probed:
    """Facts of a video and where its frames are.

    `packet_pts` int64 and `packet_is_key` bool, both [packets], in decoding order; `frame_packets` int64 [frames] maps
    a frame, in presentation order, to its packet; `times_s` float64 [frames] from the first frame. With `counting`
    "decoding" there is no such map (`frame_packets` is empty): frames are found by counting decoded ones.
    """

    facts: VideoFacts
    container: str
    stream_index: int
    counting: Counting
    can_skip_unreferenced: bool
    packet_pts: NDArray[np.int64]
    packet_is_key: NDArray[np.bool_]
    frame_packets: NDArray[np.int64]
    times_s: NDArray[np.float64]

    @property
    def frame_is_key(self) -> NDArray[np.bool_]:
        """bool [frames], True for keyframes; empty where frames are found by counting."""
        return self.packet_is_key[self.frame_packets]


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """The file under libavformat, restricted to local files and to containers.

    Raises:
        ProbeError: the bytes are no container that we know, or the file is gone.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    try:
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.error.FileNotFoundError as error:
        raise ProbeError("file_not_found", "the file is not there; was it removed while the run read it?") from error
    except av.error.PermissionError as error:
        raise ProbeError("file_not_readable", "this process may not read the file; check its permissions") from error
    except (av.error.FFmpegError, ValueError) as error:
        raise ProbeError(
            "not_a_video", f"no container that holds video opens it ({_reason(error)}); check what was uploaded", True
        ) from error
    with container:
        yield container


def probe(path: Path, limits: VideoLimits) -> Probed:
    """The facts and the frame index of the video at `path`.

    Raises:
        ProbeError: the file holds no video that is scored (codes empty_file, not_a_video, truncated, still_image,
            no_video, unknown_codec, frame_too_large, hdr_refused, no_frames).
        DecodeError: the packets cannot be read to their end (truncated), or its first frame does not decode.
    """
    _refuse_by_bytes(path)
    absent = missing_bytes(path)
    try:
        with open_video(path) as container:
            stream = best_stream(container)
            _refuse_size(stream, limits)
            if absent:
                raise DecodeError(
                    "truncated", f"{absent} bytes that its own headers declare are missing; upload it again", True
                )
            index = _PacketIndex(container, stream, path)
    except ProbeError as error:
        if absent and error.code == "not_a_video":
            raise ProbeError(
                "truncated", f"it ends {absent} bytes before its headers say, its index with it; upload it again", True
            ) from error
        raise
    probed = _describe(path, limits, index)
    if probed.container in ("gif", "apng") and probed.facts.num_frames == 1:
        raise ProbeError("still_image", f"a {probed.container.upper()} of one frame; leave it out of the catalog", True)
    return probed


def best_stream(container: InputContainer) -> VideoStream:
    """The video stream that ffmpeg would play, never a cover picture.

    Raises:
        ProbeError: there is none (no_video), or no decoder for it (unknown_codec).
    """
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise ProbeError("no_video", f"it holds {kinds} and no moving picture; leave it out of the catalog", True)
    if stream.codec_context is None:
        raise ProbeError("unknown_codec", "its video stream has a codec that no decoder here knows", True)
    return stream


def is_hidden(codec: str, packet: "Packet[VideoStream]") -> bool:
    """True for a VP8 or VP9 packet that only updates references and shows nothing (RFC 6386 9.1; VP9 spec 6.2)."""
    first = bytes(packet)[:1]
    if codec == "vp8":
        return not first[0] >> 4 & 1
    if codec != "vp9" or first[0] >> 6 != 2 or bytes(packet)[-1] & 0xE0 == 0xC0:
        return False
    shift = 1 if first[0] >> 4 & 3 == 3 else 0
    shows_existing = first[0] >> (3 - shift) & 1
    return not shows_existing and not first[0] >> (1 - shift) & 1


class _PacketIndex:
    """One walk over the packets of a stream: times, flags, sizes; and its first decoded frame."""

    def __init__(self, container: InputContainer, stream: VideoStream, path: Path) -> None:
        self.container_name = container.format.name
        self.stream_index = stream.index
        self.codec = stream.codec_context.codec.canonical_name
        self.time_base_s = float(stream.time_base or 1)
        self.is_intra_only = stream.codec_context.codec.intra_only
        self.average_rate = float(stream.average_rate or stream.guessed_rate or 0)
        self.can_skip_unreferenced = _can_skip_unreferenced(stream)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        pts: list[int | None] = []
        is_key: list[bool] = []
        is_shown: list[bool] = []
        self.last_duration_s = 0.0
        self.first_frame: VideoFrame | None = None
        num_bytes = 0
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_corrupt and self.container_name != "mpegts":
                    raise DecodeError(
                        "truncated", f"its data ends within frame {len(pts)} in coding order; upload it again", True
                    )
                pts.append(packet.pts)
                is_key.append(packet.is_keyframe)
                is_shown.append(not packet.is_discard and not is_hidden(self.codec, packet))
                self.last_duration_s = float((packet.duration or 0) * self.time_base_s)
                num_bytes += packet.size
        except av.error.FFmpegError as error:
            raise DecodeError(
                "truncated", f"reading stops after {len(pts)} packets ({_reason(error)}); upload it again", True
            ) from error
        if not pts:
            raise ProbeError("no_frames", "its video stream holds no packet", True)
        if self.container_name == "yuv4mpegpipe":
            _check_y4m(path, num_bytes // len(pts))
        self.packet_pts = np.array([p if p is not None else -1 for p in pts], np.int64)
        self.packet_is_key = np.array(is_key, np.bool_)
        shown = np.flatnonzero(np.array(is_shown, np.bool_))
        self.frame_packets = shown[np.argsort(self.packet_pts[shown], kind="stable")]
        self.has_reliable_times = (
            (self.container_name in _TIMED_CONTAINERS or self.is_intra_only)
            and None not in pts
            and is_key[0]
            and len(shown) > 0
            and len(np.unique(self.packet_pts[shown])) == len(shown)
            and bool(self.packet_pts[shown].min() >= self.packet_pts[0])
        )


def _describe(path: Path, limits: VideoLimits, index: _PacketIndex) -> Probed:
    """Facts from the first decoded frame and the index; decodes the whole file only where packets do not count."""
    with open_video(path) as container:
        stream = best_stream(container)
        context = stream.codec_context
        context.thread_count = 1
        context.options = {"max_pixels": str(limits.max_frame_pixels)}
        first, decoded_pts = None, []
        field_order = colors.field_order_name(context.field_order)
        is_interlaced = field_order not in ("progressive", "unknown")
        counting: Counting = "packets"
        if not index.has_reliable_times or (is_interlaced and index.codec in ("h264", "hevc", "vc1")):
            counting = "decoding"
        try:
            for frame in container.decode(stream):
                first = first or frame
                decoded_pts.append(frame.pts)
                if counting == "packets":
                    break
        except av.error.FFmpegError as error:
            raise DecodeError("undecodable", f"decoding stops at once ({_reason(error)})", True) from error
        if first is None:
            raise DecodeError("undecodable", "no frame of it decodes", True)
        picture = _picture_facts(first, stream, limits)
    time_base_s = index.time_base_s
    if counting == "packets":
        pts = index.packet_pts[index.frame_packets]
        frame_packets, times_s = index.frame_packets, (pts - pts[0]) * time_base_s
    else:
        frame_packets = np.empty(0, np.int64)
        times_s = _counted_times(decoded_pts, index)
    steps = np.diff(times_s)
    step_s = float(np.median(steps)) if len(steps) else 0.0
    last_s = index.last_duration_s if 0 < index.last_duration_s <= 10 * (step_s or 1.0) else 0.0
    last_s = last_s or step_s or (1 / index.average_rate if index.average_rate else _LONE_FRAME_S)
    duration_s = float(times_s[-1]) + last_s
    facts = replace(
        picture,
        frame_rate=len(times_s) / duration_s,
        is_variable_frame_rate=bool(len(steps) and np.abs(steps - step_s).max() > max(_JITTER_S, 1.05 * time_base_s)),
        duration_s=duration_s,
        num_frames=len(times_s),
        field_order=field_order,
    )
    return Probed(
        facts=facts,
        container=index.container_name,
        stream_index=index.stream_index,
        counting=counting,
        can_skip_unreferenced=index.can_skip_unreferenced and not is_interlaced and counting == "packets",
        packet_pts=index.packet_pts,
        packet_is_key=index.packet_is_key,
        frame_packets=frame_packets,
        times_s=times_s,
    )


def _picture_facts(frame: VideoFrame, stream: VideoStream, limits: VideoLimits) -> VideoFacts:
    """What one decoded frame and its stream say; counts and times are left 0.

    Raises:
        ProbeError: hdr_refused, frame_too_large.
    """
    pixel_format = frame.format.name
    transfer = colors.transfer_name(frame.color_trc)
    if transfer in colors.HDR_TRANSFERS and limits.hdr == "refuse":
        raise ProbeError(
            "hdr_refused",
            f"its transfer is {colors.HDR_TRANSFERS[transfer]} ({transfer}), which no model here was trained on; "
            'say hdr = "as-is" in the job to score it without tone mapping',
            True,
        )
    _refuse_pixels(frame.width, frame.height, limits)
    rotation_deg = -90 * round(frame.rotation / 90) % 360
    is_turned = rotation_deg in (90, 270)
    aspect = stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio
    ratio = float(aspect) if aspect else 1.0
    return VideoFacts(
        width_px=frame.height if is_turned else frame.width,
        height_px=frame.width if is_turned else frame.height,
        rotation_deg=rotation_deg,
        sample_aspect_ratio=1 / ratio if is_turned else ratio,
        frame_rate=0.0,
        is_variable_frame_rate=False,
        duration_s=0.0,
        num_frames=0,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=pixel_format,
        bit_depth=max(component.bits for component in frame.format.components),
        field_order="unknown",
        color_primaries=colors.primaries_name(frame.color_primaries),
        color_transfer=transfer,
        color_matrix=colors.matrix_name(frame.colorspace, pixel_format),
        color_range=colors.range_name(frame.color_range, pixel_format),
    )


def _counted_times(decoded_pts: list[int | None], index: _PacketIndex) -> NDArray[np.float64]:
    """Seconds from the first frame, float64 [frames]: as decoded where they rise, else spaced by the mean rate."""
    known = [p for p in decoded_pts if p is not None]
    if len(known) == len(decoded_pts):
        times_s = (np.array(known, np.float64) - known[0]) * index.time_base_s
        if np.all(np.diff(times_s) > 0):
            return times_s
    return np.arange(len(decoded_pts), dtype=np.float64) / (index.average_rate or 1 / _LONE_FRAME_S)


def _can_skip_unreferenced(stream: VideoStream) -> bool:
    """Whether frames that nothing refers to may be left undecoded without changing any other frame.

    Not for AV1 and VP9 (their decoders here skip otherwise or not at all), and for HEVC only with one temporal layer
    (hvcC: numTemporalLayers = 1), as its "sub-layer non-reference" frames serve higher layers.
    """
    codec = stream.codec_context.codec.canonical_name
    if codec == "hevc":
        extradata = stream.codec_context.extradata or b""
        return len(extradata) > 22 and extradata[0] == 1 and extradata[21] >> 3 & 7 == 1
    return codec in ("h264", "mpeg1video", "mpeg2video", "mpeg4", "vp8")


def _refuse_by_bytes(path: Path) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise ProbeError("file_not_found", "the file is not there; was it removed while the run read it?") from error
    if size == 0:
        raise ProbeError("empty_file", "the file has zero bytes; upload it again", True)
    if is_markup(path):
        raise ProbeError(
            "not_a_video", "the file is HTML or XML, most likely a saved error page; upload it again", True
        )
    if kind := image_kind(path):
        raise ProbeError("still_image", f"the file is a {kind} image; leave it out of the catalog", True)


def _refuse_size(stream: VideoStream, limits: VideoLimits) -> None:
    _refuse_pixels(stream.codec_context.width, stream.codec_context.height, limits)


def _refuse_pixels(width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.max_frame_pixels:
        raise ProbeError(
            "frame_too_large",
            f"a frame has {width} x {height} pixels, the limit is {limits.max_frame_pixels}; raise the job's limit, "
            "and the memory with it, to score it",
            True,
        )


def _check_y4m(path: Path, frame_bytes: int) -> None:
    """A Y4M file is its header line and whole frames (6 bytes of "FRAME\\n" each, where they carry no parameters)."""
    with path.open("rb") as file:
        header_bytes = len(file.readline())
        has_plain_frames = file.read(6) == b"FRAME\n"
    rest = (path.stat().st_size - header_bytes) % (frame_bytes + 6)
    if has_plain_frames and rest:
        raise DecodeError("truncated", f"its last frame has {rest} of {frame_bytes + 6} bytes; upload it again", True)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text[:200]
