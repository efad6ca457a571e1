"""Sizes of VSFA: the features of a frame, and the head."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VsfaConfig:
    """Sizes of the head; field names and values enter the model id.

    `num_features` are the mean and the standard deviation of the 2048 channels of a frame.
    """

    num_features: int = 4096
    reduced: int = 128
    hidden: int = 32
