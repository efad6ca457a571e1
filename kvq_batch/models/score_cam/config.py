"""Sizes of the saliency systems (STUDY_SPEC section 4). The module imports without torch."""

SIDE_PX = 224
"""Side of a frame, whose aspect ratio is not kept."""

NUM_SALIENCY = SIDE_PX
"""Features of SALIENCY: the mean of each column of the mean map."""

CELL_PX = 16
"""Pixels per cell of a stored map: the grid of VGG-16's last convolution."""
