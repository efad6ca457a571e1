"""A small pristine segment for tests of what is done to it."""

from functools import cache

from kvq_batch.config.recipe import Segment
from kvq_batch.labeling.segments import segment_of_scene
from kvq_batch.media.planes import Planes

SEGMENT = Segment(num_frames=8, height_px=128, width_px=192)


@cache
def pristine() -> Planes:
    """8 frames of 192 x 128 of a procedural scene."""
    return segment_of_scene("leaves", 3, SEGMENT)
