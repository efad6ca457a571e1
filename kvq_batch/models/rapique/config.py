"""Sizes of RAPIQUE's features and of the pictures that its network sees (STUDY_SPEC sections 2.5 and 2.6)."""

NUM_NSS = 1836
NUM_CNN = 2048
NUM_BEFORE_CNN = 1360
"""Spatial NSS features: those of the network come after them, before the 476 temporal ones."""

SIDE_PX = 224
"""Side of the pictures that the network sees; their aspect ratio is not kept."""
