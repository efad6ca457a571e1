"""What the luma statistics look at: which frames of a clip, and the weights of luma.

Changing a value here changes the model's identity, which is computed from them. There is deliberately no way to set
them in a job: two jobs' numbers of one name must be comparable.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LumaConfig:
    """`num_pairs` pairs of neighbouring frames are measured, evenly spread over the clip: 8 of the 32 standard frames.

    `luma` are the weights of red, green and blue in 256ths: BT.601's (0.299, 0.587, 0.114), rounded to sum to 1.
    """

    num_pairs: int = 4
    luma: tuple[int, int, int] = (77, 150, 29)
