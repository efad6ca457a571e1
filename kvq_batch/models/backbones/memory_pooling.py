"""Quality over time with the memory of a viewer (VSFA, ACM MM 2019): shared by VSFA, MDTVSFA and BVQA-2022.

The quality of a frame is pooled with the worst of the frames before it, because viewers remember drops, and with a soft
minimum of those after it (STUDY_SPEC section 3).

Axes: T frames, R reduced features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY = 12
"""Frames that a viewer remembers, the current one included (tau)."""
_SHARE_OF_PAST = 0.5
_FAR = 1e4
"""Quality of the frames after the end: its weight exp(-10^4) is 0, so the last windows are shorter."""


def frame_qualities(reduced_TR: Tensor, memory: nn.GRU, regression: nn.Linear) -> Tensor:
    """Return the quality of each frame [T] of its reduced features: a GRU that starts at 0, then a regression."""
    hidden, _ = memory(reduced_TR[None])
    quality: Tensor = regression(hidden)
    return quality[0, :, 0]


def pool_frames(quality_T: Tensor) -> Tensor:
    """Return the pooled quality of each frame, [T]: half the minimum of the past, half a soft minimum of the next.

    m_t = sum q e^-q / sum e^-q over t .. t + 11; l_t = min over t - 11 .. t.
    """
    # Pooling layers, because sums in another order differ in the last bit from the authors' results.
    past = F.pad(-quality_T, (MEMORY - 1, 0), value=float("-inf"))
    lowest = -F.max_pool1d(past[None, None], MEMORY, 1)[0, 0]
    following = F.pad(quality_T, (0, MEMORY - 1), value=_FAR)
    weights = torch.exp(-following)
    sums = [F.avg_pool1d(values[None, None], MEMORY, 1)[0, 0] for values in (following * weights, weights)]
    return (1 - _SHARE_OF_PAST) * (sums[0] / sums[1]) + _SHARE_OF_PAST * lowest
