"""Configuration of the causes: which frames are measured, the grid, and the scales of severity.

The model id is computed from these values, and a job cannot set them: severities under one model id are comparable.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.frames import ClipTimes

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class SlotSampling:
    """`num_slots` runs of consecutive frames, in the middle of the segments of `Sampling`: those that KVQ decodes.

    KVQ takes every second of 8 frames in the middle of each of 8 segments. A run covers the same frames and those
    between, so that a repeated frame is seen and no further frame needs decoding. A clip with fewer frames has fewer
    runs, at least one.
    """

    num_slots: int = 8
    frames_per_slot: int = 7

    @property
    def num_frames(self) -> None:
        return None

    def select(self, clip: ClipTimes, key: str) -> NDArray[np.int64]:
        """See `Sampler.select`; `key` is not used."""
        length = min(self.frames_per_slot, clip.num_frames)
        num_slots = max(1, min(self.num_slots, clip.num_frames // self.frames_per_slot))
        segment = clip.num_frames // num_slots
        # KVQ's fragments span 8 frames: 4 frames, 2 apart.
        starts = np.arange(num_slots) * segment + max(0, segment - length - 1) // 2
        return (starts[:, None] + np.arange(length)).reshape(-1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class CausesConfig:
    """Settings of the causes; field names and values enter the model id.

    `sampling` selects the frames, `num_rows` and `num_cols` are the grid of KVQ. Each range is the value of a measure
    with severity 0 and the one with severity 1, linear between (docs/causes.md gives the measured distributions):
    edge width in pixels, noise in levels, excess of steps at multiples of 8 pixels, contrast of bands, share of white
    pixels, share of combing pixels among those that move, share of bars, share of dark pixels, brightest level.
    `frame_*` are the ranges of the statistic of a whole frame, whose severity is averaged over the clip.

    A range starts near the 95% quantile of pristine clips, so that they have a severity near 0, and ends where a strong
    rendition has its median. A pair of frames is still if its largest change is at most `still_levels`, or at most
    `still_ratio` of the clip's median.
    """

    sampling: SlotSampling = SlotSampling()
    num_rows: int = 14
    num_cols: int = 14
    blur: Range = (2.2, 4.0)
    frame_blur: Range = (1.9, 3.1)
    noise: Range = (3.0, 9.0)
    frame_noise: Range = (2.0, 8.0)
    blockiness: Range = (0.12, 0.45)
    frame_blockiness: Range = (0.05, 0.3)
    banding: Range = (0.3, 0.7)
    frame_banding: Range = (0.35, 0.75)
    over_exposure: Range = (0.25, 0.75)
    frame_over_exposure: Range = (0.08, 0.35)
    combing: Range = (0.05, 0.16)
    frame_combing: Range = (0.04, 0.1)
    letterbox: Range = (0.02, 0.25)
    black: Range = (0.9, 0.98)
    under_exposure: Range = (145.0, 85.0)
    min_moving_share: float = 0.02
    still_levels: float = 0.5
    still_ratio: float = 0.05
