"""The choice of the decoder of a video, and the protocol of decoders.

The choice depends on the probed facts only and is stored in every row. If a decoder fails, the other is not tried: the
same file would then get different scores on two machines.

"auto" is PyAV. It needs less time for a standard clip (benchmarks/decode.py), as it does not decode frames that no
other refers to, and returned every frame exactly. decord contains libavcodec of 2018. Without an error it returns wrong
frames for open groups, MPEG-TS, MPEG-4 part 2, 10 bits and odd sizes in 4:2:0; it conceals damage and reads neither AV1
nor rotation. It is an extra (kvq-batch[decord]) to repeat the published pipeline on files for which it returns
the same pixels as PyAV.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError, SpecError
from kvq_batch.domain.frames import Planes
from kvq_batch.media.probe import Probed
from kvq_batch.media.track_headers import NO_CROP

DecoderChoice = Literal["auto", "pyav", "decord"]
DecoderName = Literal["pyav", "decord"]

FRAME_ORDER = "frame_order"
"""Code of the error that packets do not tell the order of the frames; counting decoded frames does."""

_READERS = {
    "pyav": ("av", "kvq_batch.media.pyav_reader"),
    "decord": ("decord", "kvq_batch.media.decord_reader"),
}
# Files for which decord returns the pixels of PyAV (tests/media/test_decoders.py).
_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mjpeg", "rawvideo"}
_DECORD_FORMATS = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p"}
_DECORD_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv", "avi", "yuv4mpegpipe"}
_DECORD_MIN_WIDTH = 64  # it returned 6 channels for a width of 16


class Picture(Protocol):
    """A decoded frame, cropped and upright, before its conversion. Arrays may be overwritten by the next frame."""

    def rgb(self) -> NDArray[np.uint8]:
        """Return uint8 RGB [H, W, 3]."""

    def yuv(self, kind: Planes) -> tuple[NDArray[Any], ...]:
        """Return Y, U and V: "yuv420p" or "yuv" (`FrameRequest`).

        Raises:
            DecodeError: the decoder has no planes (decoder_unsuitable).
        """


class FrameReader(Protocol):
    """Reads frames of one video by number."""

    def frames(
        self, path: Path, probed: Probed, wanted: NDArray[np.int64], num_threads: int
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield each wanted frame as (number, uint8 RGB [H, W, 3]); otherwise as `pictures`."""
        ...

    def pictures(
        self, path: Path, probed: Probed, wanted: NDArray[np.int64], num_threads: int
    ) -> Iterator[tuple[int, Picture]]:
        """Yield each wanted frame as (number, picture); `wanted` is sorted and unique.

        Numbers rise. If a number comes again, the frames before from that number on were wrong.

        Raises:
            DecodeError: a wanted frame cannot be decoded exactly. No other frame is returned instead. Damage that no
                decoder notices is not an error (docs/decoding.md): HEVC without picture hashes, VP8, VP9, raw and most
                lossless video, and a part of the damage of MPEG-2, H.263, WMV, MJPEG, ProRes, DNxHD, AV1 and GIF.
        """
        ...


def choose_decoder(probed: Probed, choice: DecoderChoice = "auto") -> DecoderName:
    """Return the decoder of this video.

    Raises:
        DecodeError: the job names decord, and decord cannot read this video exactly (decoder_unsuitable).
    """
    if choice != "decord":
        return "pyav"
    if reason := _unfit_for_decord(probed):
        raise DecodeError(
            "decoder_unsuitable", f'decord cannot read it exactly: {reason}; set decoder = "auto" in the job', True
        )
    return "decord"


def check_installed(choice: DecoderChoice) -> None:
    """Check that the decoder of a job is installed.

    Raises:
        SpecError: decord is not installed.
    """
    if choice == "decord" and find_spec("decord") is None:
        raise SpecError(
            'decode.decoder is "decord", which is not installed. Install it here and on every worker with pip install '
            '"kvq-batch[decord]", or set decoder = "auto".'
        )


def open_reader(name: DecoderName) -> tuple[FrameReader, str]:
    """Return the reader and "name version", which is stored with every score.

    Raises:
        SpecError: as `check_installed`.
    """
    check_installed(name)
    package, module = _READERS[name]
    reader: FrameReader = import_module(module).READER
    return reader, f"{name} {version(package)}"


def _unfit_for_decord(probed: Probed) -> str | None:
    facts = probed.facts
    if facts.codec not in _DECORD_CODECS:
        return f"its codec is {facts.codec}"
    if facts.pixel_format not in _DECORD_FORMATS:
        return f"its pixels are {facts.pixel_format}"
    if probed.container not in _DECORD_CONTAINERS:
        return f"its container is {probed.container}"
    if probed.counting != "packets":
        return "its frames can only be found by counting"
    if probed.has_time_jumps:
        return "its clock starts again in the middle"
    if probed.has_false_keyframes:
        return "its container marks frames as keyframes that are not"
    if probed.has_open_groups:
        return "frames are shown before the keyframe that precedes them in the file (open groups)"
    if facts.rotation_deg or facts.is_mirrored:
        return "it is rotated or mirrored"
    if probed.crop != NO_CROP:
        return "its container crops the picture"
    is_odd = facts.width_px % 2 or facts.height_px % 2
    if facts.width_px < _DECORD_MIN_WIDTH or (is_odd and "444" not in facts.pixel_format):
        return f"its size is {facts.width_px} x {facts.height_px}"
    return None
