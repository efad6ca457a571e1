"""Sizes of the frames of UVQ 1.5 and 1.0 (SWINV2_SPEC sections 6 and 7). The module imports without torch."""

SIZE_15 = (1080, 1920)
"""Height and width of a frame of UVQ 1.5; a frame of another shape is stretched."""
GRID_15 = (3, 3)
"""Rows and columns of its distortion patches."""

SIZE_10 = (720, 1280)
"""Height and width of a frame of UVQ 1.0; a frame of another shape gets black borders."""
GRID_10 = (2, 2)
CONTENT_SIZE_10 = (496, 496)
COMPRESSION_GRID_10 = (4, 4)
RATE_10 = 5
"""Frames of one second. Content and distortion see the first of them, compression all."""

CONTENT, DISTORTION, COMPRESSION, AGGREGATION = "content", "distortion", "compression", "aggregation"
"""Names of the networks."""
HEADS_10 = tuple(f"{AGGREGATION}_{number}" for number in range(5))
"""Names of the aggregation networks of UVQ 1.0, whose scores are averaged."""
