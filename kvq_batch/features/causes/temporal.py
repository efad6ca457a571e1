"""Measures of consecutive frames without a reference: pictures that repeat, and combing of interlaced fields.

Luma is uint8 [H, W].
"""

import cv2
import numpy as np

from kvq_batch.features.causes.spatial import Floats, Grid, Luma, cell_means

# A line combs if it differs from both neighbours by more than this, levels.
_COMB = 6
_MOVED = 8


def largest_change(before: Luma, after: Luma, area_px: int = 16) -> float:
    """Return the largest mean change of the areas of `area_px` x `area_px` pixels between two frames, levels."""
    change = cv2.absdiff(before, after)
    height, width = change.shape
    size = (max(1, width // area_px), max(1, height // area_px))
    return float(cv2.resize(change.astype(np.float32), size, interpolation=cv2.INTER_AREA).max())


def combing(before: Luma, after: Luma, grid: Grid) -> tuple[Floats, Floats]:
    """Return the share of pixels of `after` that comb where the picture moves, and the share that move, per cell.

    A pixel combs if it is brighter, or darker, than the lines above and below, while those and the lines two above and
    below agree among themselves: lines of one field belong together, and the other field shows another time. Stripes
    that do not move do not count.
    """
    above, line, below = after[1:-3], after[2:-2], after[3:-1]
    same_field = cv2.max(cv2.absdiff(after[:-4], line), cv2.absdiff(after[4:], line))
    difference = cv2.min(cv2.absdiff(line, above), cv2.absdiff(line, below))
    # If one neighbour were brighter and the other darker, they would differ by more than each from the line.
    is_comb = (cv2.subtract(difference, same_field) > _COMB) & (cv2.absdiff(above, below) < difference)
    moves = cv2.absdiff(before, after)[2:-2] > _MOVED
    return cell_means((is_comb & moves).astype(np.uint8), grid), cell_means(moves.astype(np.uint8), grid)
