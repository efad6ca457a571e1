"""Which decoder reads a video, and the one protocol that both implement.

The choice is a rule on what was probed and stands in every row; an error of one decoder never leads to the other, as
the same file would then score differently on two machines. Measured (benchmarks/decode.py): PyAV takes 0.5 to 0.8 of
decord's time for the 32 frames of a standard clip, as it leaves out frames that nothing refers to, and both give equal
pixels wherever decord can read the file; decord (its libavcodec is of 2018) reads neither AV1 nor files whose frames
must be counted. So "auto" is PyAV, and decord is there by name for who must repeat the published pipeline.
This module imports neither library.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError
from kvq_batch.media.probe import Probed

DecoderChoice = Literal["auto", "pyav", "decord"]
DecoderName = Literal["pyav", "decord"]

_READERS = {
    "pyav": ("av", "kvq_batch.media.pyav_reader"),
    "decord": ("decord", "kvq_batch.media.decord_reader"),
}
# Codecs and pixel formats on which decord gave PyAV's pixels, frame by frame (tests/media/test_decoders.py).
_DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg2video", "mpeg4", "mjpeg", "rawvideo"}
_DECORD_FORMATS = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuv420p10le"}


class FrameReader(Protocol):
    """Reads frames of one video by number."""

    def frames(
        self, path: Path, probed: Probed, wanted: NDArray[np.int64], num_threads: int
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Each wanted frame once, as (number, uint8 RGB [H, W, 3], upright); `wanted` is sorted without repeats.

        The array may be a view of the decoder's memory, good until the next frame is asked for. YUV becomes RGB by
        the frame's own matrix and range (BT.601 and limited where unsaid), with swscale's bicubic flags.

        Raises:
            DecodeError: a wanted frame does not come out exactly as coded; never another one in its place.
        """
        ...


def choose_decoder(probed: Probed, choice: DecoderChoice = "auto") -> DecoderName:
    """The decoder of this video, by rule.

    Raises:
        DecodeError: the job names decord, and decord cannot read this video exactly (decoder_unsuitable).
    """
    if choice != "decord":
        return "pyav"
    if reason := _unfit_for_decord(probed):
        raise DecodeError(
            "decoder_unsuitable", f'decord cannot read it exactly: {reason}; say decoder = "auto" in the job', True
        )
    return "decord"


def open_reader(name: DecoderName) -> tuple[FrameReader, str]:
    """The reader and "name version", which is recorded with every score."""
    package, module = _READERS[name]
    reader: FrameReader = import_module(module).READER
    return reader, f"{name} {version(package)}"


def _unfit_for_decord(probed: Probed) -> str | None:
    facts = probed.facts
    if facts.codec not in _DECORD_CODECS:
        return f"its codec is {facts.codec}"
    if facts.pixel_format not in _DECORD_FORMATS:
        return f"its pixels are {facts.pixel_format}"
    if probed.counting != "packets":
        return "its frames can only be found by counting"
    if facts.rotation_deg:
        return f"it is rotated by {facts.rotation_deg} degrees"
    return None
