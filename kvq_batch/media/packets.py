"""Packets of a video stream: opens files safely and indexes their packets without decoding them.

The index gives the number of frames, their times and the keyframes. `has_reliable_times` is false where the packets do
not tell these. Packets that are not one shown frame each are recognized: pictures that are only referred to, and
pictures without data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import av
import av.error
import av.logging
import numpy as np
from av.container import InputContainer
from av.format import Flags
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.stream import VideoStream
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError, ProbeError
from kvq_batch.media.containers import DEMUXERS, image_kind, is_scrambled
from kvq_batch.media.damage import container_damage

_VOP = b"\x00\x00\x01\xb6"
# Enough for the start of a VOP up to `vop_coded`, with up to 100 seconds between frames.
_VOP_HEADER_BYTES = 20


def is_hidden(codec: str, packet: "Packet[VideoStream]") -> bool:
    """Return True for a VP8 or VP9 packet that shows nothing and only updates references (RFC 6386 9.1; VP9 6.2)."""
    first = bytes(packet)[:1]
    if codec == "vp8":
        return not first[0] >> 4 & 1
    if codec != "vp9" or first[0] >> 6 != 2 or bytes(packet)[-1] & 0xE0 == 0xC0:
        return False
    shift = 1 if first[0] >> 4 & 3 == 3 else 0
    shows_existing = first[0] >> (3 - shift) & 1
    return not shows_existing and not first[0] >> (1 - shift) & 1


class VopParser:
    """Parser of MPEG-4 part 2 packets (ISO/IEC 14496-2, 6.2.3 and 6.2.5) for one stream.

    Encoders write a picture ("VOP") without data where a frame repeats the one before. A decoder returns nothing for
    it. The packed bitstream of DivX has two pictures in one packet, and an empty one later.
    """

    def __init__(self, extradata: bytes) -> None:
        self._num_time_bits = _num_time_bits(extradata)

    def is_one_frame(self, packet: bytes) -> bool:
        """Return whether the packet has exactly one picture, with data; True if the stream has no header."""
        at = packet.find(_VOP)
        if at < 0 or self._num_time_bits is None:
            return True
        if packet.find(_VOP, at + 4) >= 0:
            return False
        bits = _BitReader(packet[at + 4 : at + 4 + _VOP_HEADER_BYTES])
        bits.read(2)  # vop_coding_type
        while bits.read(1):  # modulo_time_base
            pass
        bits.read(1 + self._num_time_bits + 1)  # marker, vop_time_increment, marker
        return bits.read(1) == 1  # vop_coded


def _num_time_bits(extradata: bytes) -> int | None:
    """Return the length of `vop_time_increment`; None without the header of a video object layer."""
    starts = (at for at in range(len(extradata) - 3) if extradata[at : at + 3] == b"\x00\x00\x01")
    at = next((at for at in starts if extradata[at + 3] >> 4 == 2), None)
    if at is None:
        return None
    bits = _BitReader(extradata[at + 4 :])
    bits.read(1 + 8)  # random_accessible_vol, video_object_type_indication
    if bits.read(1):  # is_object_layer_identifier
        bits.read(4 + 3)
    if bits.read(4) == 15:  # aspect_ratio_info: extended
        bits.read(8 + 8)
    if bits.read(1):  # vol_control_parameters
        bits.read(2 + 1)
        if bits.read(1):  # vbv_parameters
            bits.read(79)
    bits.read(2 + 1)  # video_object_layer_shape, marker
    return max(1, (bits.read(16) - 1).bit_length())  # from vop_time_increment_resolution


class _BitReader:
    """Reads numbers of some bits, most significant first. Zeros follow the end."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def read(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        self._at += count
        return int(self._bits[self._at - count : self._at] or "0", 2)


# As in ffmpeg (`-dts_delta_threshold`): in a container whose clock may start again, a longer gap is such a new start.
_TS_DISCONT = cast(int, Flags.ts_discont.value)
_MAX_GAP_S = 10.0
_MAX_STEP_BACK_S = 0.1

# Frames are drawn over earlier ones. After a seek, the APNG decoder returned wrong frames (measured).
_NEVER_SEEKABLE = {"gif", "apng"}

# Containers that state when each packet is shown. AVI and elementary streams do not: with reordered frames their
# times are made up by the demuxer (an AVI with B frames gave other frames than asked for, measured).
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_TIMED_CONTAINERS = {
    _MP4, "matroska,webm", "mpegts", "flv", "nut", "ivf", "yuv4mpegpipe", "gif", "apng",
}  # fmt: skip

# Stream type 0xDB of MPEG-TS: H.264 with SAMPLE-AES of HLS.
_SAMPLE_AES_TAG = "\xdb\x00\x00\x00"
# What libavformat makes of ContentEncryption in Matroska, and of the protection of ASF and WMV.
_ENCRYPTION_METADATA = {"enc_key_id", "ASF_Key_ID", "ASF_Protection_Type"}
# Codecs of which no packet consists of zeros.
_NEVER_ZERO = {
    "h264", "hevc", "vvc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "h263", "flv1", "mjpeg", "prores",
    "dnxhd", "theora",
}  # fmt: skip
_MIN_ZEROS = 16
# A header may declare this much more than its packets show: rounding, priming of audio, a last frame that is held.
_END_SLACK_S = 0.5
_END_SLACK_SHARE = 0.01


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """Open a file with libavformat, which may read local files and containers only.

    Raises:
        ProbeError: the bytes are not a known container, or the file is gone.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS}
    try:
        # By its name libavformat takes a stream of JPEG pictures for a sequence of files, which is not allowed.
        kind = "jpeg_pipe" if image_kind(path) == "JPEG" else None
        container = av.open(f"file:{path}", format=kind, options=options, metadata_errors="replace")
    except av.error.FileNotFoundError as error:
        raise ProbeError("file_not_found", "The file does not exist. Was it removed during the run?") from error
    except av.error.PermissionError as error:
        raise ProbeError("file_not_readable", "The file cannot be read. Check its permissions.") from error
    except (av.error.FFmpegError, ValueError) as error:
        raise ProbeError(
            "not_a_video", f"It is not a known video file: {reason(error)}. Check what was uploaded.", True
        ) from error
    with container:
        yield container


def best_stream(container: InputContainer) -> VideoStream:
    """Return the video stream that ffmpeg would play, never a cover picture.

    Raises:
        ProbeError: there is none (no_video), or no decoder for it (unknown_codec).
    """
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise ProbeError("no_video", f"It contains {kinds} and no video. Remove it from the catalog.", True)
    if stream.codec_context is None:
        raise ProbeError(
            "unknown_codec", "No decoder knows the codec of its video stream. Convert it to a common codec.", True
        )
    return stream


def refuse_encrypted(path: Path, container: InputContainer, stream: VideoStream) -> None:
    """Raise a ProbeError (encrypted) if the container says that the stream is encrypted.

    Not for MP4, whose tracks may be clear in part or whole: `PacketIndex` finds the first encrypted packet.
    """
    tags = {*container.metadata, *stream.metadata}
    if stream.codec_tag == _SAMPLE_AES_TAG:
        raise encrypted("its stream type is that of SAMPLE-AES")
    if named := tags & _ENCRYPTION_METADATA:
        raise encrypted(f"its header has {min(named)}")
    if container.format.name == "mpegts" and is_scrambled(path, stream.id):
        raise encrypted("its packets are scrambled")


def encrypted(witness: str) -> ProbeError:
    """Return the error for encrypted video; `witness` is what says so."""
    return ProbeError("encrypted", f"It is encrypted ({witness}). Supply a clear copy.", True)


class PacketIndex:
    """Index of the packets of a stream, in decoding order: times, flags, sizes.

    `packet_pts` has no jumps: where the container's clock starts again (`has_time_jumps`), it is the time that players
    show. Longer gaps than `max_gap_s` are such jumps. `last_duration_s` is how long the last frame is shown, 0 if the
    container does not say it plausibly.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, path: Path) -> None:
        self.container_name = container.format.name
        self.stream_index = stream.index
        self.codec = stream.codec_context.codec.canonical_name
        self.time_base_s = float(stream.time_base or 1)
        self.is_intra_only = stream.codec_context.codec.intra_only
        self.average_rate = float(stream.average_rate or stream.guessed_rate or 0)
        self.can_skip_unreferenced = _can_skip_unreferenced(stream)
        end_s = _declared_end_s(container, stream)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        pts: list[int | None] = []
        dts: list[int | None] = []
        durations: list[int] = []
        is_key: list[bool] = []
        is_shown: list[bool] = []
        num_bytes = 0
        end_pts = 0
        self.second_packet: Packet[VideoStream] | None = None
        vops = VopParser(stream.codec_context.extradata or b"") if self.codec == "mpeg4" else None
        are_packets_frames = True
        try:
            with av.logging.Capture() as log:
                for packet in container.demux(stream):
                    if not packet.size:
                        continue
                    self._check_packet(packet, len(pts))
                    if not pts:
                        self.first_packet = packet
                    elif self.second_packet is None:
                        self.second_packet = packet
                    end_pts = max(end_pts, (packet.pts or 0) + (packet.duration or 0))
                    pts.append(packet.pts)
                    dts.append(packet.dts)
                    durations.append(packet.duration or 0)
                    is_key.append(packet.is_keyframe)
                    is_shown.append(not packet.is_discard and not is_hidden(self.codec, packet))
                    num_bytes += packet.size
                    are_packets_frames = are_packets_frames and (vops is None or vops.is_one_frame(bytes(packet)))
        except av.error.FFmpegError as error:
            raise DecodeError(
                "truncated", f"Reading stops after {len(pts)} packets: {reason(error)}. Upload it again.", True
            ) from error
        if damage := container_damage(log):
            raise DecodeError("corrupt_frame", f"The container is damaged ({damage}). Upload the video again.", True)
        if not pts:
            raise ProbeError("no_frames", "Its video stream contains no packet. Upload it again.", True)
        if self.container_name == "yuv4mpegpipe":
            _check_y4m(path, num_bytes // len(pts))
        self.packet_pts = np.array([p if p is not None else -1 for p in pts], np.int64)
        self.container_pts = self.packet_pts
        self.max_gap_s = _MAX_GAP_S if container.format.flags & _TS_DISCONT else float("inf")
        if np.isfinite(self.max_gap_s) and None not in pts and None not in dts:
            self.packet_pts = self.container_pts - _jumps(dts, durations, self.time_base_s)
        self.has_time_jumps = not np.array_equal(self.packet_pts, self.container_pts)
        steps = np.diff(np.unique(self.packet_pts[[p is not None for p in pts]]))
        self.step_s = float(np.median(steps)) * self.time_base_s if len(steps) else 0.0
        self.end_s = end_pts * self.time_base_s
        self.max_step_s = float(steps.max()) * self.time_base_s if len(steps) else 0.0
        self.packet_is_key = np.array(is_key, np.bool_)
        if self.container_name in _NEVER_SEEKABLE:
            self.packet_is_key[1:] = False
        shown = np.flatnonzero(np.array(is_shown, np.bool_))
        self.frame_packets = shown[np.argsort(self.packet_pts[shown], kind="stable")]
        self.has_unique_times = None not in pts and len(np.unique(self.packet_pts[shown])) == len(shown) > 0
        # The decoder says that frames are reordered, yet the packets are in order: their times are decoding times.
        are_decoding_times = stream.codec_context.has_b_frames and len(pts) > 1 and np.all(np.diff(self.packet_pts) > 0)
        self.has_reliable_times = (
            (self.container_name in _TIMED_CONTAINERS or self.is_intra_only)
            and self.has_unique_times
            and are_packets_frames
            and is_key[0]
            and not are_decoding_times
            and bool(self.packet_pts[shown].min() >= self.packet_pts[0])
        )
        self.last_duration_s = self._last_duration_s(dts, durations, end_s) if len(shown) else 0.0

    def _check_packet(self, packet: "Packet[VideoStream]", number: int) -> None:
        """Raise an error if the packet is cut off, encrypted, or was never written; `number` is in coding order."""
        if packet.is_corrupt and self.container_name != "mpegts":
            raise DecodeError(
                "truncated",
                f"The file is incomplete: it ends within frame {number} in coding order. Upload it again.",
                True,
            )
        if packet.has_sidedata("encryption_info"):
            raise encrypted(f"frame {number} in coding order")
        if self.codec in _NEVER_ZERO and _is_zero(packet):
            raise DecodeError(
                "truncated",
                f"Frame {number} in coding order consists of zeros: the file was never written completely. "
                "Upload it again.",
                True,
            )

    def _last_duration_s(self, dts: list[int | None], durations: list[int], end_s: float) -> float:
        last = self.frame_packets[-1]
        duration = durations[last]
        if self.container_name == _MP4 and self.has_reliable_times:
            # Durations are steps in decoding order there: the last step ends as much later as frames are delayed.
            coded_last = self.frame_packets.max()
            delay = int(self.packet_pts.min()) - (dts[0] or 0)
            end = (dts[coded_last] or 0) + durations[coded_last] + delay
            duration = max(duration, end - int(self.packet_pts[last]))
        duration_s = duration * self.time_base_s
        if duration_s < self.step_s / 2:
            return 0.0  # one tick, which some muxers write for the last packet
        is_ordinary = duration_s <= 10 * (self.step_s or 1.0)
        is_declared = float(self.packet_pts[last]) * self.time_base_s + duration_s <= end_s + self.step_s
        return duration_s if is_ordinary or is_declared else 0.0


def _declared_end_s(container: InputContainer, stream: VideoStream) -> float:
    """Return the end of the stream, or else of the file, on the clock of the container; 0 if it declares neither."""
    if stream.duration:
        return float((stream.duration + (stream.start_time or 0)) * (stream.time_base or 1))
    return ((container.duration or 0) + max(container.start_time or 0, 0)) / av.time_base


def _jumps(dts: list[int | None], durations: list[int], time_base_s: float) -> NDArray[np.int64]:
    """Return by how much the container's clock has jumped before each packet, int64 [packets], as ffmpeg finds it."""
    times = np.array(dts, np.int64)
    gaps = np.diff(times) - np.array(durations[:-1], np.int64)
    is_jump = np.abs(gaps) * time_base_s > _MAX_GAP_S
    is_jump |= np.diff(times) * time_base_s < -_MAX_STEP_BACK_S
    return np.concatenate([[0], np.cumsum(np.where(is_jump, gaps, 0))]).astype(np.int64)


def has_cut_samples(container: InputContainer, num_bytes: int) -> bool:
    """Return whether the index of an MP4 lists a sample that ends beyond `num_bytes`, the size of the file."""
    return any(e.pos + e.size > num_bytes for stream in container.streams for e in stream.index_entries)


def refuse_early_end(path: Path, declared_s: float, index: PacketIndex) -> None:
    """Compare the duration in the header with the end of the packets.

    Raises:
        DecodeError: no stream, video or other, comes close to the declared duration (truncated).
    """
    slack_s = max(_END_SLACK_S, _END_SLACK_SHARE * declared_s, 2 * index.max_step_s)
    if index.end_s + slack_s >= declared_s:
        return
    end_s = _last_end_s(path)
    if end_s + slack_s < declared_s:
        raise DecodeError(
            "truncated",
            f"The file is incomplete: its header declares {declared_s:.2f} s, its packets end after {end_s:.2f} s. "
            "Upload it again.",
            True,
        )


def _last_end_s(path: Path) -> float:
    """Return the end of the last packet of all streams: sound may be longer than the pictures."""
    with open_video(path) as container:
        ends = (
            ((packet.pts or 0) + (packet.duration or 0)) * packet.time_base
            for packet in container.demux()
            if packet.size
        )
        return float(max(ends, default=0))


def _is_zero(packet: "Packet[VideoStream]") -> bool:
    data = memoryview(packet)
    return len(data) >= _MIN_ZEROS and not data[0] and not any(data[:_MIN_ZEROS]) and not any(data)


def _can_skip_unreferenced(stream: VideoStream) -> bool:
    """Return whether skipping the frames that no frame refers to changes no other frame.

    Not for AV1 and VP9 (their decoders here skip otherwise or not at all), and for HEVC only with one temporal layer
    (hvcC: numTemporalLayers = 1), as its "sub-layer non-reference" frames serve higher layers.
    """
    codec = stream.codec_context.codec.canonical_name
    if codec == "hevc":
        extradata = stream.codec_context.extradata or b""
        return len(extradata) > 22 and extradata[0] == 1 and extradata[21] >> 3 & 7 == 1
    return codec in ("h264", "mpeg1video", "mpeg2video", "mpeg4", "vp8")


def _check_y4m(path: Path, frame_bytes: int) -> None:
    """Check that a Y4M file is a header line and whole frames ("FRAME\\n" and pixels, if they have no parameters)."""
    with path.open("rb") as file:
        header_bytes = len(file.readline())
        has_plain_frames = file.read(6) == b"FRAME\n"
    rest = (path.stat().st_size - header_bytes) % (frame_bytes + 6)
    if has_plain_frames and rest:
        raise DecodeError("truncated", f"Its last frame has {rest} of {frame_bytes + 6} bytes. Upload it again.", True)


def reason(error: Exception) -> str:
    """Return the message of libav for an error, on one short line."""
    text = getattr(error, "strerror", None) or str(error)
    return text[:200]
