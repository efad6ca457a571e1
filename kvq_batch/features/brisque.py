"""BRISQUE features of a picture: 18 statistics of MSCN coefficients at full and at half size.

"No-reference image quality assessment in the spatial domain", IEEE TIP 21(12), 2012. Two programs compute them, with
different numbers; a regressor must get the features that it was trained on.

    live      the authors' release, on which the published features of video data sets are computed: pixels 0..255,
              the picture is 0 outside its border, shifts are circular, half size as MATLAB's imresize
    opencv    OpenCV's quality module (SWINV2_SPEC section 12): pixels 0..1, edges repeat, shifted pictures are 0 where
              they leave the frame, half size bicubic without antialiasing

Order per size: shape and variance; then shape, mean, left and right variance of the products with the neighbour to the
right, below, below right, and above right.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kvq_batch.features.imresize import imresize
from kvq_batch.features.scene_statistics import SHIFTS, Aggd, fit_aggd, fit_ggd, mscn, shape_grid, shifted

NUM_FEATURES = 36
MIN_SIDE_PX = 16
"""Rows and columns that a picture needs, so that its half is larger than the window."""

Real = NDArray[np.float64]
Floats = NDArray[Any]

_NUM_SCALES = 2
_SHAPES = (0.2, 10.0)


def live_features(luma: NDArray[Any]) -> Real:
    """Return the 36 features of the authors' release for luma [H, W] of 0..255.

    Sides of products without values (a flat picture) are NaN.
    """
    image: Floats = luma.astype(np.float64)
    found: list[float] = []
    for scale in range(_NUM_SCALES):
        if scale:
            image = imresize(image, 0.5)
        coefficients = mscn(image, border="zero").coefficients
        shape, rms = fit_ggd(coefficients, shape_grid(*_SHAPES))
        found += [shape, rms**2]
        for shift in SHIFTS:
            found += _four(fit_aggd(coefficients * shifted(coefficients, *shift), shape_grid(*_SHAPES)))
    return np.array(found)


def opencv_grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the grey picture [H, W] of an RGB frame [H, W, 3], as OpenCV converts it."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY))


def opencv_features(grey: NDArray[np.uint8]) -> Real:
    """Return the 36 features of OpenCV's BRISQUE for a grey picture [H, W]."""
    image: Floats = grey / 255.0
    found: list[float] = []
    for scale in range(_NUM_SCALES):
        if scale:
            height, width = image.shape
            image = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_CUBIC)
        coefficients = mscn(image, constant=1 / 255).coefficients
        fit = fit_aggd(coefficients, shape_grid(*_SHAPES))
        found += [fit.shape, (fit.left**2 + fit.right**2) / 2]
        for product in _products_within(coefficients):
            found += _four(fit_aggd(product, shape_grid(*_SHAPES)))
    return np.array(found)


def _four(fit: Aggd) -> list[float]:
    return [fit.shape, fit.mean, fit.left**2, fit.right**2]


def _products_within(coefficients: Floats) -> Iterator[Floats]:
    """Yield the products with each neighbour, 0 where the neighbour is outside the picture."""
    padded = np.pad(coefficients, 1)
    height, width = coefficients.shape
    for rows, columns in SHIFTS:
        yield coefficients * padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
