"""Pristine segments out of what sources there are: frames of a video, a still under a camera, a procedural scene.

All of them become planes of the segment's size once; from then on nothing changes the source. It fetches nothing and
decodes no video: frames come from the decoder as for scoring.

Legend: T frames, H rows, W columns, 3 = RGB.
"""

import io
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kvq_batch.config.segment import Segment
from kvq_batch.domain.errors import LabelError, ProbeError, SpecError
from kvq_batch.labeling.degradations import apply
from kvq_batch.labeling.scenes import ALL_SCENES, make_scene
from kvq_batch.labeling.synthetic_motion import moving_view
from kvq_batch.media.ffmpeg import run_ffmpeg
from kvq_batch.media.planes import Planes, from_raw
from kvq_batch.media.synthesis import ClipShape

STILL_RATE = Fraction(25)
"""Frames per second of what has no rate of its own."""

MAX_STILL_PIXELS = 64 << 20

_FLAGS = "accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"


def segment_of_frames(frames: NDArray[np.uint8], frame_rate: float, segment: Segment) -> Planes:
    """The planes of `frames`, uint8 RGB [T, H, W, 3] of any size, framed and worn as `segment` says.

    Raises:
        LabelError: the frames are smaller than the segment (reference_too_small), or ffmpeg fails.
    """
    height, width = segment.height_px, segment.width_px
    have_height, have_width = frames.shape[1:3]
    if have_height < height or have_width < width:
        raise LabelError(
            "reference_too_small",
            f"its {have_width} x {have_height} pixels would have to be scaled up to {width} x {height}; no source of "
            "labels is; make the segment smaller",
            True,
        )
    shrunk = (have_height, have_width)
    if segment.framing == "cover":
        scale = max(height / have_height, width / have_width)
        shrunk = (max(height, round(have_height * scale)), max(width, round(have_width * scale)))
    elif segment.framing == "whole":
        shrunk = (height, width)
    # Half as many pixels in each direction for chroma: places are even.
    places = segment.rng().random(2)
    top, left = (int(p * (has - want) / 2) * 2 for p, has, want in zip(places, shrunk, (height, width), strict=True))
    if segment.framing == "native":
        frames, top, left = frames[:, top : top + height, left : left + width], 0, 0
        shrunk = (height, width)
    graph = f"scale={shrunk[1]}:{shrunk[0]}:flags=lanczos+{_FLAGS},crop={width}:{height}:{left}:{top},format=yuv420p"
    rate = Fraction(frame_rate).limit_denominator(1001)
    arguments = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", str(rate)]
    raw = run_ffmpeg([*arguments, "-i", "-", "-vf", graph, "-f", "rawvideo", "-"], frames.tobytes())
    made = from_raw(raw, height, width, rate)
    if made.num_frames != len(frames):
        raise LabelError("frames_lost", f"framing it gave {made.num_frames} frames for {len(frames)}")
    # Not the seed of the recipes: noise that is in the source is not the noise of a version.
    return apply(made, segment.pre_degraded, segment.seed + 1)


def segment_of_still(data: bytes, segment: Segment) -> Planes:
    """A camera that moves over the picture in `data`, a PNG or whatever else Pillow reads.

    Raises:
        ProbeError: these bytes are no picture (not_an_image), or too large a one (frame_too_large).
        LabelError: the picture is smaller than the segment.
    """
    try:
        with Image.open(io.BytesIO(data)) as still:
            if still.width * still.height > MAX_STILL_PIXELS:
                raise ProbeError(
                    "frame_too_large", f"{still.width} x {still.height} pixels are more than is read", True
                )
            picture = np.asarray(still.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ProbeError("not_an_image", f"it is no picture that can be read ({error})", True) from error
    view = moving_view(picture, segment.height_px, segment.width_px, segment.num_frames, segment.rng())
    return segment_of_frames(view, float(STILL_RATE), segment)


def segment_of_scene(name: str, seed: int, segment: Segment) -> Planes:
    """A procedural scene, one of `scenes.ALL_SCENES`; each segment of it is another drawing.

    Raises:
        SpecError: there is no such scene.
    """
    if name not in ALL_SCENES:
        raise SpecError(f"there is no scene {name!r}; there are {', '.join(ALL_SCENES)}")
    shape = ClipShape(segment.width_px, segment.height_px, int(STILL_RATE), segment.num_frames)
    # The number of the segment turns the scene's seed into another one.
    frames = make_scene(name, seed + (segment.number << 32), shape)
    return segment_of_frames(frames, float(STILL_RATE), segment)
