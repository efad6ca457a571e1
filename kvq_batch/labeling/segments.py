"""Makes the pristine segments that renditions are made from: of decoded video frames, of a still, or of a scene.

A still gets synthetic camera motion. Each segment is converted once to planes of its final size. Video frames come from
the same decoder as for scoring.

Legend: T frames, H rows, W columns, 3 = RGB.
"""

import io
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kvq_batch.config.recipe import Segment
from kvq_batch.domain.errors import LabelError, ProbeError, SpecError
from kvq_batch.labeling.degradations import apply
from kvq_batch.labeling.scenes import ALL_SCENES, make_scene, moving_view
from kvq_batch.media.ffmpeg import run_ffmpeg
from kvq_batch.media.planes import Planes, from_raw
from kvq_batch.media.synthesis import ClipShape

STILL_RATE = Fraction(25)
"""Frames per second of stills and scenes."""

MAX_STILL_PIXELS = 64 << 20

_FLAGS = "accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"


def segment_of_frames(frames: NDArray[np.uint8], frame_rate: float, segment: Segment) -> Planes:
    """Return the planes of `frames`, uint8 RGB [T, H, W, 3] of any size, framed and pre-degraded as `segment` says.

    Raises:
        LabelError: the frames are smaller than the segment (reference_too_small), or ffmpeg fails.
    """
    height, width = segment.height_px, segment.width_px
    have_height, have_width = frames.shape[1:3]
    if have_height < height or have_width < width:
        raise LabelError(
            "reference_too_small",
            f"its {have_width} x {have_height} pixels are fewer than the segment's {width} x {height}, and "
            "references are never scaled up: make the segment smaller",
            True,
        )
    shrunk = (have_height, have_width)
    if segment.framing == "cover":
        scale = max(height / have_height, width / have_width)
        shrunk = (max(height, round(have_height * scale)), max(width, round(have_width * scale)))
    elif segment.framing == "whole":
        shrunk = (height, width)
    # Offsets are even, because chroma has half as many pixels in each direction.
    positions = segment.rng().random(2)
    top, left = (int(p * (has - want) / 2) * 2 for p, has, want in zip(positions, shrunk, (height, width), strict=True))
    if segment.framing == "native":
        frames, top, left = frames[:, top : top + height, left : left + width], 0, 0
        shrunk = (height, width)
    graph = f"scale={shrunk[1]}:{shrunk[0]}:flags=lanczos+{_FLAGS},crop={width}:{height}:{left}:{top},format=yuv420p"
    rate = Fraction(frame_rate).limit_denominator(1001)
    arguments = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", str(rate)]
    raw = run_ffmpeg([*arguments, "-i", "-", "-vf", graph, "-f", "rawvideo", "-"], frames.tobytes())
    made = from_raw(raw, height, width, rate)
    if made.num_frames != len(frames):
        raise LabelError("frames_lost", f"framing returned {made.num_frames} of {len(frames)} frames")
    # Not the seed of the recipes, so that noise of the reference differs from noise of a rendition.
    return apply(made, segment.pre_degraded, segment.seed + 1)


def segment_of_still(data: bytes, segment: Segment) -> Planes:
    """Return a segment with camera motion over the picture in `data`, in any format that Pillow reads.

    Raises:
        ProbeError: the bytes are not a picture (not_an_image), or it is too large (frame_too_large).
        LabelError: the picture is smaller than the segment.
    """
    try:
        with Image.open(io.BytesIO(data)) as still:
            if still.width * still.height > MAX_STILL_PIXELS:
                raise ProbeError(
                    "frame_too_large",
                    f"{still.width} x {still.height} pixels are more than the limit of {MAX_STILL_PIXELS} pixels",
                    True,
                )
            picture = np.asarray(still.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ProbeError("not_an_image", f"the picture cannot be read ({error})", True) from error
    view = moving_view(picture, segment.height_px, segment.width_px, segment.num_frames, segment.rng(), segment.camera)
    return segment_of_frames(view, float(STILL_RATE), segment)


def segment_of_scene(name: str, seed: int, segment: Segment) -> Planes:
    """Return a segment of a procedural scene, one of `scenes.ALL_SCENES`; each segment is another drawing.

    Raises:
        SpecError: the scene is unknown.
    """
    if name not in ALL_SCENES:
        raise SpecError(f"unknown scene {name!r}: expected one of {', '.join(ALL_SCENES)}")
    shape = ClipShape(segment.width_px, segment.height_px, int(STILL_RATE), segment.num_frames)
    # Each segment number gives another seed.
    frames = make_scene(name, seed + (segment.number << 32), shape)
    return segment_of_frames(frames, float(STILL_RATE), segment)
