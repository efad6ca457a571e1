"""Facts of a video, and the index that finds its frames, before a clip is decoded.

The number of frames in a header can be wrong, so all packets are read once, without decoding: a packet is a frame, and
its presentation time identifies it. Where that does not hold (missing, repeated or contradicted times, fields as
packets, frames before the first keyframe), every frame is decoded once and counted.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import av
import av.error
import numpy as np
from av.sidedata.sidedata import Type
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError, ProbeError
from kvq_batch.domain.video import Hdr, VideoFacts
from kvq_batch.media.containers import check_completeness, image_kind, is_animated_webp, is_markup, is_one_photo
from kvq_batch.media.packets import (
    PacketIndex,
    best_stream,
    encrypted,
    has_cut_samples,
    open_video,
    reason,
    refuse_early_end,
    refuse_encrypted,
)
from kvq_batch.media.picture import orientation_of, side_data
from kvq_batch.media.track_headers import Crop, crop_of, has_encrypted_entry

Counting = Literal["packets", "decoding"]

# Below this, a deviation of a frame's duration is the rounding of a container's clock (Matroska: 1 ms), not a rate.
_JITTER_S = 1.05e-3
# Used for a lone frame whose container gives it no duration.
_LONE_FRAME_S = 0.04
# Where fewer steps between decoded frames go forward, their times are not those of frames.
_MIN_SHARE_OF_STEPS = 0.9

# Names that ffmpeg uses for the colour numbers of ITU-T H.273.
_PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020", 10: "smpte428",
    11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
_TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log100", 10: "log316",
    11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084",
    17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
_MATRICES = {
    0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc",
    10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc", 13: "chroma-derived-c", 14: "ictcp", 15: "ipt-c2",
    16: "ycgco-re", 17: "ycgco-ro",
}  # fmt: skip
# What libswscale knows coefficients of, and 2, "unspecified".
_CONVERTED_MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}
_RANGES = {1: "tv", 2: "pc"}
_IMAGE_CONTAINERS = {"gif": "GIF", "apng": "APNG"}
_FIELD_ORDERS = {1: "progressive", 2: "tt", 3: "bb", 4: "tb", 5: "bt"}

_HDR_TRANSFERS = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
_DOLBY_TAGS = {"dvh1", "dvhe", "dva1", "dvav", "dav1"}
_DOLBY_SIDE_DATA = {Type.DOVI_RPU_BUFFER, Type.DOVI_METADATA}


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Limits of what is scored: the pixels of a frame, and PQ or HLG only with `hdr` "as-is"."""

    max_frame_pixels: int = 8192 * 4320
    hdr: Hdr = "refuse"


@dataclass(frozen=True, slots=True)
class _ContainerColor:
    """Colour numbers of ITU-T H.273 that the container states; frames take over what their codec can state."""

    primaries: int
    transfer: int


@dataclass(frozen=True, slots=True)
class Probed:
    """Facts of a video and the index of its frames.

    `packet_pts` int64 and `packet_is_key` bool, both [packets], are in decoding order. `frame_packets` int64 [frames]
    maps a frame, in presentation order, to its packet; `times_s` float64 [frames] counts from the first frame. With
    `counting` "decoding" there is no such map (`frame_packets` is empty): frames are found by counting decoded ones.
    With `has_time_jumps`, `packet_pts` differs from the times in the file, whose clock starts again; with
    `has_false_keyframes`, `packet_is_key` differs from the flags in the file.
    """

    facts: VideoFacts
    container: str
    stream_index: int
    counting: Counting
    can_skip_unreferenced: bool
    crop: Crop
    has_time_jumps: bool
    has_false_keyframes: bool
    packet_pts: NDArray[np.int64]
    packet_is_key: NDArray[np.bool_]
    frame_packets: NDArray[np.int64]
    times_s: NDArray[np.float64]

    @property
    def frame_is_key(self) -> NDArray[np.bool_]:
        """Return bool [frames], True for keyframes; empty where frames are found by counting."""
        return self.packet_is_key[self.frame_packets]

    @property
    def has_open_groups(self) -> bool:
        """Return whether a frame is shown before the keyframe that precedes it in decoding order."""
        keys = np.flatnonzero(self.packet_is_key)
        group = np.searchsorted(keys, np.arange(len(self.packet_pts)), side="right") - 1
        return bool(len(keys) and np.any((self.packet_pts < self.packet_pts[keys[group]]) & (group >= 0)))


def probe(path: Path, limits: VideoLimits, counting: Counting = "packets") -> Probed:
    """Return the facts and the frame index of the video at `path`.

    With `counting` "decoding", frames are counted by decoding them, even if the packets seem to tell the frames.

    Raises:
        ProbeError: the file holds no video that is scored (codes empty_file, not_a_video, truncated, still_image,
            no_video, unknown_codec, encrypted, frame_too_large, hdr_refused, unsupported_color, unusual_rotation,
            no_frames).
        DecodeError: the packets cannot be read to their end (truncated), or its first frame does not decode.
    """
    _refuse_by_bytes(path)
    completeness = check_completeness(path)
    try:
        with open_video(path) as container:
            stream = best_stream(container)
            _refuse_size(stream, limits)
            refuse_encrypted(path, container, stream)
            _refuse_animated_webp(path, container.format.name)
            if completeness.loss:
                raise DecodeError("truncated", f"The file is incomplete: {completeness.loss}. Upload it again.", True)
            if completeness.has_cut_samples and has_cut_samples(container, path.stat().st_size):
                raise DecodeError(
                    "truncated",
                    "The file is incomplete: its index lists samples that are missing. Upload it again.",
                    True,
                )
            index = PacketIndex(container, stream, path)
            if completeness.duration_s is not None:
                refuse_early_end(path, completeness.duration_s, index)
            _refuse_still(path, index)
            try:
                return _describe(path, limits, stream, index, counting)
            except DecodeError as error:
                # Without its auxiliary information encrypted data looks like damage.
                if error.code == "undecodable" and has_encrypted_entry(path, stream):
                    raise encrypted("its sample entry says so") from error
                raise
    except ProbeError as error:
        kind = image_kind(path) if error.code == "not_a_video" else None
        if kind:
            raise _still_image(kind) from error
        if completeness.loss and error.code == "not_a_video":
            raise ProbeError(
                "truncated", f"The file is incomplete: {completeness.loss}. Upload it again.", True
            ) from error
        raise


def _describe(path: Path, limits: VideoLimits, stream: VideoStream, index: PacketIndex, counting: Counting) -> Probed:
    """Return facts from one decoded frame and the index; decode the whole file only where packets are not frames."""
    field_order = _field_order_name(stream.codec_context.field_order)
    is_interlaced = field_order not in ("progressive", "unknown")
    are_fields_packets = is_interlaced and index.codec in ("h264", "hevc", "vc1")
    if not index.has_reliable_times or are_fields_packets:
        counting = "decoding"
    color = _ContainerColor(stream.codec_context.color_primaries, stream.codec_context.color_trc)
    decoded_pts: list[int | None] = []
    first = _first_frame(path, limits, stream, index) if counting == "packets" else None
    if first is None:
        counting = "decoding"
        first, decoded_pts = _decode_all(path, limits)
    crop = crop_of(path, stream)
    picture = _picture_facts(first, crop, color, stream, limits)
    time_base_s = index.time_base_s
    if counting == "packets":
        frame_packets = index.frame_packets
        pts = index.packet_pts[frame_packets]
        times_s = (pts - pts[0]) * time_base_s
    else:
        frame_packets = np.empty(0, np.int64)
        times_s = _counted_times(decoded_pts, index)
    packet_is_key = _checked_keyframes(path, limits, stream, index) if counting == "packets" else index.packet_is_key
    steps = np.diff(times_s)
    step_s = float(np.median(steps)) if len(steps) else 0.0
    last_s = index.last_duration_s or step_s or (1 / index.average_rate if index.average_rate else _LONE_FRAME_S)
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
        crop=crop,
        has_time_jumps=index.has_time_jumps and counting == "packets",
        packet_pts=index.packet_pts,
        has_false_keyframes=not np.array_equal(packet_is_key, index.packet_is_key),
        packet_is_key=packet_is_key,
        frame_packets=frame_packets,
        times_s=times_s,
    )


def _first_frame(path: Path, limits: VideoLimits, stream: VideoStream, index: PacketIndex) -> VideoFrame | None:
    """Return the first frame that is shown; None if decoding does not start with it, whatever the packets say.

    The first packet alone is decoded: the rest of its group is not worth the time (0.4 s at 1080p).
    """
    context = _prepare(stream, limits)
    try:
        if not index.first_packet.is_discard:
            frame = next(iter([*context.decode(index.first_packet), *context.decode(None)]), None)
            return frame if frame is not None and frame.key_frame else None
        # An edit list starts after the keyframe, whose picture the decoder does not return.
        with open_video(path) as container:
            stream = best_stream(container)
            _prepare(stream, limits)
            frame = next(container.decode(stream), None)
            return frame if frame is not None and frame.pts == index.packet_pts[index.frame_packets[0]] else None
    except av.error.FFmpegError as error:
        raise _undecodable(error) from error


def _checked_keyframes(path: Path, limits: VideoLimits, stream: VideoStream, index: PacketIndex) -> NDArray[np.bool_]:
    """Return which packets are keyframes, bool [packets].

    A container that does not know keyframes marks all packets (MP4 without `stss`). If the second one is not a
    keyframe for the decoder, all of them are looked up; decoders skip other frames where they can.
    """
    if index.second_packet is None or not index.packet_is_key.all():
        return index.packet_is_key
    context = stream.codec_context if stream.codec_context.is_open else _prepare(stream, limits)
    try:
        if context.is_open:
            context.flush_buffers()
        frames = [*context.decode(index.second_packet), *context.decode(None)]
    except av.error.FFmpegError:
        frames = []
    if frames and frames[0].key_frame:
        return index.packet_is_key
    with open_video(path) as container:
        stream = best_stream(container)
        _prepare(stream, limits).skip_frame = "NONKEY"
        try:
            keys = [frame.pts for frame in container.decode(stream) if frame.key_frame]
        except av.error.FFmpegError as error:
            raise _undecodable(error) from error
    is_key = np.isin(index.container_pts, [pts for pts in keys if pts is not None])
    is_key[0] = True
    return is_key


def _decode_all(path: Path, limits: VideoLimits) -> tuple[VideoFrame, list[int | None]]:
    """Return the first frame, and the times of all frames in the order of the decoder."""
    first, times = None, []
    with open_video(path) as container:
        stream = best_stream(container)
        _prepare(stream, limits)
        try:
            for frame in container.decode(stream):
                first = first or frame
                times.append(frame.pts)
        except av.error.FFmpegError as error:
            raise _undecodable(error) from error
    if first is None:
        raise DecodeError("undecodable", "No frame can be decoded. Upload the file again.", True)
    return first, times


def _prepare(stream: VideoStream, limits: VideoLimits) -> VideoCodecContext:
    context = stream.codec_context
    context.thread_count = 1
    # Refuses sizes that a later header declares, before the picture is allocated.
    context.options = {"max_pixels": str(limits.max_frame_pixels)}
    return context


def _undecodable(error: av.error.FFmpegError) -> DecodeError:
    if isinstance(error, av.error.MemoryError):
        return DecodeError("out_of_memory", "The decoder reached the memory limit of its process.", True)
    return DecodeError("undecodable", f"It cannot be decoded: {reason(error)}. Upload it again.", True)


def _picture_facts(
    frame: VideoFrame, crop: Crop, color: _ContainerColor, stream: VideoStream, limits: VideoLimits
) -> VideoFacts:
    """Return what one decoded frame and its stream say; counts and times are left 0.

    Raises:
        ProbeError: hdr_refused, frame_too_large, unusual_rotation, unsupported_color.
    """
    pixel_format = frame.format.name
    transfer = _name(_TRANSFERS, frame.color_trc, color.transfer)
    _refuse_matrix(frame.colorspace)
    _refuse_hdr(transfer, limits)
    _refuse_dolby_vision(frame, transfer, stream.codec_context.codec_tag)
    _refuse_pixels(frame.width, frame.height, limits)
    orientation = orientation_of(frame)
    is_turned = orientation.rotation_deg in (90, 270)
    width, height = frame.width - crop.left - crop.right, frame.height - crop.top - crop.bottom
    aspect = stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio
    ratio = float(aspect) if aspect else 1.0
    return VideoFacts(
        width_px=height if is_turned else width,
        height_px=width if is_turned else height,
        rotation_deg=orientation.rotation_deg,
        is_mirrored=orientation.is_mirrored,
        sample_aspect_ratio=1 / ratio if is_turned else ratio,
        frame_rate=0.0,
        is_variable_frame_rate=False,
        duration_s=0.0,
        num_frames=0,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=pixel_format,
        bit_depth=max(component.bits for component in frame.format.components),
        field_order="unknown",
        color_primaries=_name(_PRIMARIES, frame.color_primaries, color.primaries),
        color_transfer=transfer,
        color_matrix=_matrix_name(frame.colorspace, pixel_format),
        color_range=_range_name(frame.color_range, pixel_format),
    )


def _counted_times(decoded_pts: list[int | None], index: PacketIndex) -> NDArray[np.float64]:
    """Return seconds from the first frame, float64 [frames].

    The k-th decoded frame has the k-th time of the packets. Where packets and frames differ in number, or times repeat,
    it has the time that the decoder returns. Steps back, and over gaps where the clock starts again,
    become ordinary steps; if there are many, the frames are evenly spaced.
    """
    if index.has_unique_times and len(index.frame_packets) == len(decoded_pts):
        pts = index.packet_pts[index.frame_packets]
        return np.asarray((pts - pts[0]) * index.time_base_s, np.float64)
    step_s = index.step_s or (1 / index.average_rate if index.average_rate else _LONE_FRAME_S)
    steps = np.full(len(decoded_pts) - 1, step_s)
    known = [p for p in decoded_pts if p is not None]
    if len(known) == len(decoded_pts):
        decoded_steps = np.diff(np.array(known, np.float64)) * index.time_base_s
        is_time = (decoded_steps > 0) & (decoded_steps <= index.max_gap_s)
        if np.mean(is_time) > _MIN_SHARE_OF_STEPS:
            steps = np.where(is_time, decoded_steps, np.median(decoded_steps[is_time]))
    return np.concatenate([[0.0], np.cumsum(steps)])


def _refuse_by_bytes(path: Path) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise ProbeError("file_not_found", "The file does not exist. Was it removed during the run?") from error
    if size == 0:
        raise ProbeError("empty_file", "The file has zero bytes. Upload it again.", True)
    if is_markup(path):
        raise ProbeError("not_a_video", "The file is HTML or XML, probably a saved error page. Upload it again.", True)


def _refuse_animated_webp(path: Path, container_name: str) -> None:
    """Refuse an animated WebP that libavformat opens as a still, as FFmpeg does before version 9."""
    if container_name == "webp_pipe" and is_animated_webp(path):
        raise ProbeError(
            "unknown_codec",
            f"It is an animated WebP, which FFmpeg {av.ffmpeg_version_info} does not decode. "
            "Convert it to MP4, WebM, GIF or APNG.",
            True,
        )


def _refuse_still(path: Path, index: PacketIndex) -> None:
    """Refuse an image file that holds one picture."""
    kind = image_kind(path) or _IMAGE_CONTAINERS.get(index.container_name)
    is_jpeg = index.container_name in ("jpeg_pipe", "mjpeg")
    if kind and (len(index.packet_pts) == 1 or (is_jpeg and is_one_photo(bytes(index.first_packet)))):
        raise _still_image(kind)


def _still_image(kind: str) -> ProbeError:
    return ProbeError("still_image", f"The file is a still image ({kind}). Remove it from the catalog.", True)


def _refuse_size(stream: VideoStream, limits: VideoLimits) -> None:
    _refuse_pixels(stream.codec_context.width, stream.codec_context.height, limits)


def _refuse_pixels(width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.max_frame_pixels:
        raise ProbeError(
            "frame_too_large",
            f"A frame has {width} x {height} pixels, the limit is {limits.max_frame_pixels}. Increase "
            "limits.max_frame_pixels and limits.max_memory_bytes in the job to score it.",
            True,
        )


def _refuse_matrix(number: int) -> None:
    if number not in _CONVERTED_MATRICES:
        name = _MATRICES.get(number, f"number {number} of ITU-T H.273")
        raise ProbeError(
            "unsupported_color",
            f"Its matrix is {name}, which FFmpeg does not convert to RGB. Convert the video to BT.709.",
            True,
        )


def _refuse_hdr(transfer: str, limits: VideoLimits) -> None:
    if transfer in _HDR_TRANSFERS and limits.hdr == "refuse":
        raise ProbeError(
            "hdr_refused",
            f"Its transfer is {_HDR_TRANSFERS[transfer]} ({transfer}), which no model here was trained on. "
            'Set hdr = "as-is" in the job to score it without tone mapping.',
            True,
        )


def _refuse_dolby_vision(frame: VideoFrame, transfer: str, codec_tag: str) -> None:
    """Refuse Dolby Vision without a base layer that other players can show: profile 5, and 10.0 in AV1.

    Its frames carry Dolby's metadata (or its tag says so) and state no transfer. Other profiles state PQ, HLG or SDR.
    """
    is_dolby = codec_tag in _DOLBY_TAGS or any(data.type in _DOLBY_SIDE_DATA for data in side_data(frame))
    if is_dolby and transfer == "unknown":
        raise ProbeError(
            "hdr_refused",
            "It is Dolby Vision of profile 5 (or 10.0), whose pixels are not a picture without Dolby's processing. "
            "Supply a rendition in SDR, or in HDR10 or HLG.",
            True,
        )


def _name(names: dict[int, str], in_frame: int, in_container: int) -> str:
    """Return the name of a colour number: that of the frame, or of the container where the frame states none."""
    return names.get(in_frame) or names.get(in_container, "unknown")


def _matrix_name(number: int, pixel_format: str) -> str:
    """Return the name of a matrix. 0 means RGB in RGB formats, and an unset field in others."""
    if number == 0 and "yuv" in pixel_format:
        return "unknown"
    return _MATRICES.get(number, "unknown")


def _range_name(number: int, pixel_format: str) -> str:
    if pixel_format.startswith("yuvj"):
        return "pc"
    return _RANGES.get(number, "unknown")


def _field_order_name(number: int) -> str:
    return _FIELD_ORDERS.get(number, "unknown")
