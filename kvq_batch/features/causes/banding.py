"""Banding by the algorithm of CAMBI (Tandon et al., PCS 2021; libvmaf's cambi), at a reduced scale.

CAMBI finds flat areas (many neighbours of a pixel are equal), and compares the levels of flat pixels in a window: if
p(v) pixels have level v and p(v + k) have level v + k, the contrast is w_k p(v) p(v + k) / (p(v) + p(v + k)). A band
edge has many pixels of both, noise and texture have no flat pixels, and one flat area has one level only.

Here the flat areas are found at native size. Then pixels are sampled to a width of at most `WIDTH_PX`, and two scales
are measured instead of five. Steps of 1 to 8 levels of 8 bits count, where libvmaf takes 1 to 4 of 10 bits: bands of
a coarse quantiser have larger steps. docs/causes.md compares both.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

WIDTH_PX = 320
"""Largest width that contrasts are measured at; larger frames are sampled."""

# About 2 degrees of vision: 65 * (320 + 180) / (3840 + 2160) pixels are one degree (section 3 of the paper).
_WINDOW = 11
_FLAT_WINDOW = 7
# libvmaf goes down to 3 at 480x270, and has further filters against dithered borders. With 14, the rank correlation
# with its CAMBI is 0.997 on generated pictures; with 7 it is 0.98.
_MIN_FLAT = 14
_NUM_SCALES = 2
# Of larger frames, every second pixel is compared.
_MAX_ROWS = 720
# Steps in levels of 8 bits, and the weights of libvmaf for 4, 8, 12 and 16 levels of 10 bits; larger ones count as 16.
_STEPS = tuple((step, (4.0, 6.0, 7.0, 8.0)[min(step, 4) - 1]) for step in range(1, 9))
# Levels with fewer flat pixels than this share of the window cannot form a band.
_MIN_PIXELS = _WINDOW


def banding(luma: NDArray[Any], bit_depth: int) -> Floats:
    """Return the contrast of bands at each pixel of a reduced frame, float32 [h, w]: 0 without bands.

    `luma` is uint8 or uint16 [H, W] of `bit_depth` bits. A step of one level of 8 bits between two areas of equal size
    has the value 0.5, of two levels 0.75, of four or more 1. Pixels outside of flat areas are 0.
    """
    if luma.shape[0] > _MAX_ROWS:
        luma = np.ascontiguousarray(luma[::2, ::2])
    stride = max(1, -(-luma.shape[1] // WIDTH_PX))
    flat = _flat_pixels(luma, bit_depth)[stride // 2 :: stride, stride // 2 :: stride]
    levels = np.ascontiguousarray(luma[stride // 2 :: stride, stride // 2 :: stride])
    unit = 1 << max(0, bit_depth - 8)
    total = np.zeros(levels.shape, np.float32)
    for scale in range(_NUM_SCALES):
        if min(levels.shape) < _WINDOW:
            break
        levels = cv2.medianBlur(levels, 3)
        found = _contrast(levels, flat, unit)
        if scale:
            found = np.asarray(cv2.resize(found, total.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
        total = np.maximum(total, found)
        levels, flat = np.ascontiguousarray(levels[::2, ::2]), flat[::2, ::2]
    return total


def _flat_pixels(luma: NDArray[Any], bit_depth: int) -> NDArray[np.bool_]:
    """Return where most pixels of a window equal their right and lower neighbours, bool [H, W].

    As in libvmaf, small frames need fewer, and 8 bits are compared as sums of 2x2 pixels: the border of two levels that
    is dithered is then not flat.
    """
    height, width = luma.shape
    if bit_depth == 8:
        pairs = luma[:, :-1].astype(np.uint16) + luma[:, 1:]
        luma = cv2.copyMakeBorder(pairs[:-1] + pairs[1:], 0, 1, 0, 1, cv2.BORDER_REPLICATE)
    is_equal = np.zeros(luma.shape, np.uint8)
    is_equal[:-1, :-1] = (luma[:-1, :-1] == luma[:-1, 1:]) & (luma[:-1, :-1] == luma[1:, :-1])
    count = cv2.boxFilter(is_equal, cv2.CV_16U, (_FLAT_WINDOW, _FLAT_WINDOW), normalize=False)
    ratio = np.sqrt(3840 * 2160 / (width * height))
    return np.asarray(count > max(_MIN_FLAT, _FLAT_WINDOW**2 // 2 - 3 * (ratio - 1)))


def _contrast(levels: NDArray[Any], flat: NDArray[np.bool_], unit: int) -> Floats:
    """Return the contrast at each pixel, float32 [h, w]; `unit` is one level of 8 bits."""
    found = np.zeros(levels.shape, np.float32)
    places = np.flatnonzero(flat)
    if not places.size:
        return found
    order = np.argsort(levels.ravel()[places], kind="stable")
    values, starts = np.unique(levels.ravel()[places[order]], return_index=True)
    pixels_of = dict(zip(values.tolist(), np.split(places[order], starts[1:]), strict=True))
    pixels_of = {value: pixels for value, pixels in pixels_of.items() if len(pixels) >= _MIN_PIXELS}
    counts: dict[int, NDArray[Any]] = {}
    flat_found = found.ravel()
    for value in sorted(pixels_of):
        for step, weight in _STEPS:
            lower = value - step * unit
            if lower not in pixels_of:
                continue
            for level in (lower, value):
                if level not in counts:
                    counts[level] = _count(pixels_of[level], levels.shape)
            for level in (lower, value):
                pixels = pixels_of[level]
                few, many = counts[lower][pixels], counts[value][pixels]
                contrast = weight * few * many / np.maximum(few + many, 1)
                flat_found[pixels] = np.maximum(flat_found[pixels], contrast)
        for old in [level for level in counts if level < value - _STEPS[-1][0] * unit]:
            del counts[old]
    # Two halves of a window have contrast weight / 4 of its area.
    return found * np.float32(1 / (_WINDOW**2 * 2))


def _count(pixels: NDArray[np.int64], shape: tuple[int, ...]) -> Floats:
    """Return how many of `pixels` are in the window around each pixel, flat float32 [h * w]."""
    mask = np.zeros(shape, np.uint8)
    mask.ravel()[pixels] = 1
    count = cv2.boxFilter(mask, cv2.CV_16U, (_WINDOW, _WINDOW), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return count.ravel().astype(np.float32)
