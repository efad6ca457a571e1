"""Measures a clip slot by slot while it is decoded: an extractor over native luma (`FrameRequest.extractor`).

A time slot is a run of consecutive frames. Its middle frame is measured cell by cell; all of them are compared with
the frame before. The result has one row per slot: the cell measures of `CELL_MEASURES`, flat [measure, row, column],
then the frame measures of `FRAME_MEASURES`, then the changes between frames.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import ScoreError
from kvq_batch.domain.frames import Frame, SampledClip
from kvq_batch.features.causes import spatial
from kvq_batch.features.causes.banding import banding
from kvq_batch.features.causes.temporal import combing, largest_change

Floats = NDArray[np.float32]

CELL_MEASURES = ("width", "noise", "blocks", "bands", "white", "combs", "moves")
FRAME_MEASURES = ("dark", "highlight", "bars")

# Frames with more rows are halved for blur, noise and exposure, and for changes: detail of 4K is not seen on a screen.
_MAX_ROWS, _MAX_CHANGE_ROWS = 720, 360
# Two blocks of 8 pixels each way.
_MIN_SIDE = 16
# Luma of limited range that counts as dark, as ffmpeg's blackdetect does (pixel_black_th = 0.1 of the range).
_DARK = 38


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of S slots: `cells` float32 [S, measure, row, column], `frames` [S, measure], `changes` [S, pairs].

    NaN where a measure does not apply.
    """

    cells: Floats
    frames: Floats
    changes: Floats

    def cell(self, name: str) -> Floats:
        """Return one cell measure, float32 [S, row, column]."""
        return self.cells[:, CELL_MEASURES.index(name)]

    def frame(self, name: str) -> Floats:
        """Return one frame measure, float32 [S]."""
        return self.frames[:, FRAME_MEASURES.index(name)]


def unpack(rows: Floats, grid: tuple[int, int]) -> Measures:
    """Return the measures in the result of an extraction, float32 [S, n]."""
    num_cells = len(CELL_MEASURES) * grid[0] * grid[1]
    cells = rows[:, :num_cells].reshape(len(rows), len(CELL_MEASURES), *grid)
    return Measures(
        cells, rows[:, num_cells : num_cells + len(FRAME_MEASURES)], rows[:, num_cells + len(FRAME_MEASURES) :]
    )


class CauseExtraction:
    """An `Extraction` that measures the slots of a clip: planes "yuv", of which it reads luma.

    `frames_per_slot` is that of the sampler (fewer if the clip is shorter), `num_rows` and `num_cols` the grid.
    """

    def __init__(self, clip: SampledClip, frames_per_slot: int, num_rows: int, num_cols: int) -> None:
        self._grid = (num_rows, num_cols)
        self._bit_depth = max(8, clip.facts.bit_depth)
        self._is_full_range = clip.facts.color_range == "pc"
        self._length = min(frames_per_slot, len(clip.indices))
        num_slots = len(clip.indices) // self._length
        shape = (num_slots, len(CELL_MEASURES), *self._grid)
        self._cells = np.full(shape, np.nan, np.float32)
        self._frames = np.full((num_slots, len(FRAME_MEASURES)), np.nan, np.float32)
        self._changes = np.full((num_slots, frames_per_slot - 1), np.nan, np.float32)
        self._before: spatial.Luma | None = None
        self._before_tiny: spatial.Luma | None = None

    def add(self, frame: Frame) -> None:
        """See `Extraction.add`.

        Raises:
            ScoreError: the frame has fewer than 16 rows or columns (frame_too_small).
        """
        slot, position = divmod(int(frame.rows[0]), self._length)
        # A copy: the decoder may overwrite its planes.
        decoded = np.array(frame.planes[0], order="C")
        if min(decoded.shape) < _MIN_SIDE:
            height, width = decoded.shape
            raise ScoreError(
                "frame_too_small",
                f"Causes need frames of at least {_MIN_SIDE} pixels a side, got {width}x{height}.",
                True,
            )
        luma = self._eight_bits(decoded)
        small = _halved(luma, _MAX_ROWS)
        tiny = _halved(small, _MAX_CHANGE_ROWS)
        before, before_tiny = (None, None) if position == 0 else (self._before, self._before_tiny)
        if before is not None and before_tiny is not None and before.shape == luma.shape:
            # Areas of 16 pixels of a frame of 480 or 720 rows.
            area_px = 16 if tiny is luma else 8
            self._changes[slot, position - 1] = largest_change(before_tiny, tiny, area_px)
        else:
            before = None
        if position == self._length // 2:
            self._measure(slot, decoded, luma, small, before)
        self._before, self._before_tiny = luma, tiny

    def finish(self) -> NDArray[Any]:
        """See `Extraction.finish`: float32 [slot, n], for `unpack`."""
        num_slots = len(self._cells)
        return np.concatenate([self._cells.reshape(num_slots, -1), self._frames, self._changes], axis=1)

    def _measure(
        self, slot: int, decoded: NDArray[Any], luma: spatial.Luma, small: spatial.Luma, before: spatial.Luma | None
    ) -> None:
        grid = self._grid
        found = dict.fromkeys(CELL_MEASURES, np.full(grid, np.nan, np.float32))
        found["width"] = spatial.edge_width(small, grid)
        found["noise"] = spatial.noise_deviation(small, grid)
        found["blocks"] = spatial.blockiness(luma, grid)
        found["bands"] = spatial.cell_means(banding(decoded, self._bit_depth), grid)
        found["white"] = spatial.clipped_share(small, grid)
        if before is not None:
            found["combs"], found["moves"] = combing(before, luma, grid)
        self._cells[slot] = np.stack([found[name] for name in CELL_MEASURES])
        height, width = small.shape
        bars = spatial.bars_of(small)
        picture = small[bars.top : height - bars.bottom, bars.left : width - bars.right]
        # Bars are symmetric. A dark ground below a bright sky is not a bar.
        paired = spatial.Bars(*[min(bars.top, bars.bottom)] * 2, *[min(bars.left, bars.right)] * 2)
        counts = np.bincount(picture.ravel(), minlength=256)
        self._frames[slot] = (
            1 - counts[_DARK + 1 :].sum() / small.size,
            int(np.searchsorted(counts.cumsum(), 0.98 * picture.size)),
            paired.share(height, width),
        )

    def _eight_bits(self, decoded: NDArray[Any]) -> spatial.Luma:
        """Return luma with 8 bits in limited range."""
        luma = decoded if decoded.dtype == np.uint8 else (decoded >> (self._bit_depth - 8)).astype(np.uint8)
        return spatial.to_limited(luma) if self._is_full_range else luma


def _halved(luma: spatial.Luma, max_rows: int) -> spatial.Luma:
    """Return luma at half of the size, by area, until it has at most `max_rows` rows; at first the same array."""
    while luma.shape[0] > max_rows:
        luma = np.asarray(
            cv2.resize(luma, (luma.shape[1] // 2, luma.shape[0] // 2), interpolation=cv2.INTER_AREA), np.uint8
        )
    return luma
