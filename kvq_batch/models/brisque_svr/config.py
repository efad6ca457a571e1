"""Configuration of BRISQUE with support vector regression: the frames that are measured.

The model id is computed from these values and the regressor, and a job cannot set them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BrisqueSvrConfig:
    """Settings of the features; field names and values enter the model id.

    `num_frames` frames, evenly spread over the clip, are measured at native size.
    """

    num_frames: int = 10
    weights: str = "brisque-svr.npz"
