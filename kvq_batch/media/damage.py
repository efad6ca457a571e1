"""Evidence of damage in the log of libav.

Most decoders conceal damage: they return the frame, and only a line of their log says that it is wrong. The lines of
one call are captured, and judged by lists: an editor that cuts a video between keyframes, padding and metadata cause
errors in the log of whole files.

A decoder that runs on several threads logs in those as well; such lines are not captured.
"""

import logging
import math
import re
from collections.abc import Sequence

import av.logging
from av.codec.context import CodecContext
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from kvq_batch.domain.errors import DecodeError

# These decoders mark damaged frames (`VideoFrame.is_corrupt`). Their log adds nothing (no frame of 325 damaged files,
# tests/support/damage.py), and reports what harms nothing: references before a cut, junk behind a picture, SEI.
_MARKING = {
    "h264", "mpeg1video", "mpeg2video", "mpegvideo", "mpeg4", "h261", "h263", "h263p", "h263i", "flv", "msmpeg4v1",
    "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "wmv3", "vc1", "rv10", "rv20", "rv30", "rv40",
}  # fmt: skip
# Errors that leave the pixels alone: parameter sets and messages of HEVC, application data of JPEG.
_HARMLESS = re.compile(
    r"\bSEI\b|\bVUI\b|[VSP]PS (?:id|\d+)|Duplicate POC|APP fields|app: invalid len|violation of frame header"
)
_DAMAGE_WARNINGS = re.compile(r"Skipping invalid undecodable NALU|Error parsing NAL unit|Discarding interframe")
# A demuxer that finds a damaged block leaves it out.
_CONTAINER_DAMAGE = re.compile(
    r"CRC mismatch|Invalid track number|invalid as first byte of an EBML number|exceeds containing master element"
    r"|exceeds max length|filter failed to send output packet|Packet mismatch"
)
# Checksums are verified where the stream has them. The codecs of Microsoft notice an overflow only with "bitstream".
_ERR_DETECT = "crccheck"
_ERR_DETECT_MICROSOFT = "crccheck+bitstream"
_MICROSOFT = {"msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"}

Line = tuple[int, str, str]
"""Level, name of the component, message."""

# PyAV drops all lines by default. Repeated ones are kept: the last line may be of another video.
av.logging.set_level(av.logging.WARNING)
av.logging.set_skip_repeated(False)
_logger = logging.getLogger("libav")
_logger.addHandler(logging.NullHandler())
_logger.propagate = False


def verify_checksums(context: CodecContext) -> None:
    """Make a decoder verify the checksums of its stream; call it before the first packet."""
    is_microsoft = context.codec.canonical_name in _MICROSOFT
    context.options = {**context.options, "err_detect": _ERR_DETECT_MICROSOFT if is_microsoft else _ERR_DETECT}


class CheckedDecoder:
    """Decodes the packets of one pass, and raises an error instead of returning damaged frames.

    Where a pass starts between keyframes, or at an open group, the log reports references that are missing. These
    frames are not returned, or lead the first keyframe and are not wanted.
    """

    def __init__(self, context: VideoCodecContext) -> None:
        self._context = context
        self._start_pts: int | None = None
        self._has_output = False
        self._suspects: dict[int | None, str] = {}

    def decode(self, packet: "Packet[VideoStream] | None") -> list[VideoFrame]:
        """Return the frames that a packet gives; None: the last ones.

        Raises:
            DecodeError: a frame is damaged (corrupt_frame), and with it the frames that refer to it.
        """
        with av.logging.Capture() as lines:
            frames = self._context.decode(packet)
        evidence = decoder_damage(lines)
        pts = packet.pts if packet is not None else None
        if packet is not None and packet.is_keyframe and self._start_pts is None and not evidence:
            self._start_pts = pts
        is_leading = pts is not None and self._start_pts is not None and pts < self._start_pts
        if evidence and not is_leading:
            if self._has_output:
                raise _corrupt_frame(_time_s(packet), evidence)
            self._suspects[pts] = evidence
        for frame in frames:
            self._has_output = True
            if frame.is_corrupt:
                raise _corrupt_frame(frame.time, "its decoder marks it")
            if frame.pts is not None and frame.pts in self._suspects:
                raise _corrupt_frame(frame.time, self._suspects[frame.pts])
        return frames


def decoder_damage(lines: Sequence[Line]) -> str | None:
    """Return the first line of a decoder that says that a picture is damaged."""
    for level, name, message in lines:
        is_error = level <= av.logging.ERROR and name not in _MARKING and not _HARMLESS.search(message)
        if is_error or _DAMAGE_WARNINGS.search(message):
            return message.strip()
    return None


def container_damage(lines: Sequence[Line]) -> str | None:
    """Return the first line of a demuxer that says that it has left out damaged data."""
    return next((message.strip() for _, _, message in lines if _CONTAINER_DAMAGE.search(message)), None)


def _time_s(packet: "Packet[VideoStream] | None") -> float | None:
    return None if packet is None or packet.pts is None else float(packet.pts * packet.time_base)


def _corrupt_frame(time_s: float | None, evidence: str) -> DecodeError:
    where = "A frame" if time_s is None or math.isnan(time_s) else f"The frame at {time_s:.2f} s"
    return DecodeError(
        "corrupt_frame", f"{where} is damaged in the file ({evidence[:200]}). Upload the video again.", True
    )
