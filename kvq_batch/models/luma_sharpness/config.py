"""Configuration of the luma statistics: the measured frames of a clip, and the weights of luma.

The model id is computed from these values, and a job cannot set them: scores under one model id are comparable.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LumaConfig:
    """Settings of the luma statistics; field names and values enter the model id.

    `num_pairs` pairs of neighbouring frames are measured, evenly spread over the clip: 8 of the 32 standard frames.
    `luma` holds the weights of red, green and blue in 256ths: BT.601's (0.299, 0.587, 0.114), rounded to sum to 1.
    """

    num_pairs: int = 4
    luma: tuple[int, int, int] = (77, 150, 29)
