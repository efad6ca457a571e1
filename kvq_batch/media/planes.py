"""Clips as encoders and VMAF use them: 8-bit Y, U and V planes, with chroma at half of the size both ways.

Labels are made of clips in this form, so a rendition is compared with its reference without a second conversion of
colour. Colour is BT.601 in limited range: what libswscale assumes where a file states none, in scoring, too.

Legend: T frames, H rows, W columns, 3 = RGB.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from kvq_batch.config.recipe import CELL_PX, Cells
from kvq_batch.domain.errors import LabelError
from kvq_batch.media.ffmpeg import run_ffmpeg

LOSSLESS_EXTENSION = "mkv"


@dataclass(frozen=True, slots=True)
class Planes:
    """Frames of one size: `data` uint8 [T, H * W * 3 / 2], the planes of a frame one after the other.

    Height and width are even; `frame_rate` in frames per second.
    """

    data: NDArray[np.uint8]
    height_px: int
    width_px: int
    frame_rate: Fraction

    @property
    def num_frames(self) -> int:
        return len(self.data)

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT, as ffmpeg takes it."""
        return f"{self.width_px}x{self.height_px}"

    @property
    def raw_arguments(self) -> list[str]:
        """Arguments of ffmpeg that describe these frames as its standard input."""
        return ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", self.size, "-r", str(self.frame_rate), "-i", "-"]

    def planes(self) -> list[NDArray[np.uint8]]:
        """Return views of `data`: Y [T, H, W], U and V [T, H / 2, W / 2]."""
        height, width = self.height_px, self.width_px
        luma, half = height * width, (height // 2, width // 2)
        chroma = half[0] * half[1]
        u, v = self.data[:, luma : luma + chroma], self.data[:, luma + chroma :]
        return [
            self.data[:, :luma].reshape(-1, height, width),
            u.reshape(-1, *half),
            v.reshape(-1, *half),
        ]

    def with_planes(self, planes: list[NDArray[np.uint8]]) -> "Planes":
        """Return the same clip with other pixels, or with fewer frames."""
        return replace(self, data=np.concatenate([plane.reshape(len(plane), -1) for plane in planes], axis=1))

    def with_raw(self, raw: bytes, what: str) -> "Planes":
        """Return the same clip with the frames that ffmpeg returned.

        Raises:
            LabelError: their number differs (frames_lost); `what` names what was done.
        """
        if len(raw) != self.data.nbytes:
            given = len(raw) / (self.data.nbytes / self.num_frames)
            raise LabelError("frames_lost", f"{what} gave {given:g} frames for {self.num_frames}")
        return replace(self, data=np.frombuffer(raw, np.uint8).reshape(self.data.shape))

    def pasted(self, other: "Planes", cells: Cells) -> "Planes":
        """Return this clip with the rectangle `cells` of `other`.

        Raises:
            LabelError: the rectangle is not within the frame (cells_outside).
        """
        rows, columns = cell_grid(self.height_px, self.width_px)
        if cells.top + cells.rows > rows or cells.left + cells.columns > columns:
            raise LabelError(
                "cells_outside", f"{cells} does not lie on the {rows} x {columns} cells of the frame", True
            )
        made = []
        for plane, mine, theirs in zip(range(3), self.planes(), other.planes(), strict=True):
            side = CELL_PX if plane == 0 else CELL_PX // 2
            where = np.s_[
                :,
                cells.top * side : (cells.top + cells.rows) * side,
                cells.left * side : (cells.left + cells.columns) * side,
            ]
            mixed = mine.copy()
            mixed[where] = theirs[where]
            made.append(mixed)
        return self.with_planes(made)

    def to_rgb(self) -> NDArray[np.uint8]:
        """Return uint8 RGB [T, H, W, 3], converted as decoded frames are converted for scoring."""
        rgb = np.empty((self.num_frames, self.height_px, self.width_px, 3), np.uint8)
        reformatter = VideoReformatter()
        for t, flat in enumerate(self.data):
            frame = VideoFrame.from_ndarray(flat.reshape(-1, self.width_px), format="yuv420p")
            made = reformatter.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
            rgb[t] = made.to_ndarray()
        return rgb


def cell_grid(height_px: int, width_px: int) -> tuple[int, int]:
    """Return the rows and columns of whole cells in a frame."""
    return height_px // CELL_PX, width_px // CELL_PX


def from_raw(raw: bytes, height_px: int, width_px: int, frame_rate: Fraction) -> Planes:
    """Return the clip whose frames are in `raw`, a whole number of them."""
    data = np.frombuffer(raw, np.uint8).reshape(-1, height_px * width_px * 3 // 2)
    return Planes(data, height_px, width_px, frame_rate)


def stacked(upper: Planes, lower: Planes) -> Planes:
    """Return a clip of twice the height with one clip above the other, so that their frames stay together."""
    both = [np.concatenate(pair, axis=1) for pair in zip(upper.planes(), lower.planes(), strict=True)]
    return replace(upper.with_planes(both), height_px=2 * upper.height_px)


def encode_lossless(clip: Planes) -> bytes:
    """Return a Matroska file with exactly the frames of `clip`. Raises LabelError where ffmpeg fails."""
    options = ["-c:v", "libx264", "-preset", "veryfast", "-qp", "0", "-colorspace", "smpte170m", "-color_range", "tv"]
    return run_ffmpeg([*clip.raw_arguments, *options, "-bitexact", "-f", "matroska", "-"], clip.data.tobytes())


def decode_lossless(data: bytes, height_px: int, width_px: int, frame_rate: Fraction) -> Planes:
    """Return the clip that `encode_lossless` got. Raises LabelError where ffmpeg fails."""
    reading = ["-i", "-", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
    return from_raw(run_ffmpeg(reading, data), height_px, width_px, frame_rate)
