"""Statistics of natural scenes: MSCN coefficients, and fits of generalised Gaussian distributions (GGD, AGGD).

MSCN coefficients are pixels, mean-subtracted and contrast-normalised in a Gaussian window of 7x7 pixels (BRISQUE, IEEE
TIP 21(12), 2012, section III-A). Fits match moments: the shape is the point of a grid whose ratio of moments is the
nearest (STUDY_SPEC section 1.3). Functions take float32 or float64 and accumulate sums in float64.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import gamma

Real = NDArray[np.float64]
Floats = NDArray[Any]
Border = Literal["replicate", "zero"]

_BORDERS = {"replicate": cv2.BORDER_REPLICATE, "zero": cv2.BORDER_CONSTANT}

SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))
"""Rows and columns by which products of neighbours shift a map: horizontal, vertical, both diagonals."""


def gaussian(size: int, sigma: float) -> Real:
    """Return a Gaussian of `size` taps, centred, that sums to 1. Its outer product is MATLAB's fspecial('gaussian')."""
    x = np.arange(size) - (size - 1) / 2
    weights = np.exp(-(x**2) / (2 * sigma**2))
    weights /= weights.sum()
    return np.asarray(weights)


# The published 7x7 window sums to 1 only up to rounding, so that coefficients of a flat area are noise of about 1e-16
# with one sign. It adds nothing to sums, but the fits count it. A sum of exactly 1 would give zeros, which they do not.
_WINDOW = gaussian(7, 7 / 6)
_WINDOW_OF_ROWS = _WINDOW * (1 + 2.0**-51)


def correlate(image: Floats, rows: Real, columns: Real, border: Border = "replicate") -> Floats:
    """Return the correlation of `image` [H, W] with the separable kernel rows[i] * columns[j], at the same size.

    The centre of an even kernel of n taps is tap (n - 1) // 2, as in MATLAB's imfilter.
    """
    anchor = ((len(columns) - 1) // 2, (len(rows) - 1) // 2)
    found: Floats = cv2.sepFilter2D(image, -1, columns, rows, anchor=anchor, borderType=_BORDERS[border])
    return found


@dataclass(frozen=True, slots=True)
class Mscn:
    """MSCN coefficients, local standard deviation and local mean of an image, each [H, W]."""

    coefficients: Floats
    sigma: Floats
    mu: Floats


def mscn(image: Floats, constant: float = 1.0, border: Border = "replicate") -> Mscn:
    """Return MSCN coefficients (x - mu) / (sigma + constant); the constant is 1 for images of 0..255."""
    mu = correlate(image, _WINDOW_OF_ROWS, _WINDOW, border)
    sigma = correlate(image * image, _WINDOW_OF_ROWS, _WINDOW, border)
    sigma -= mu * mu
    np.sqrt(np.abs(sigma, out=sigma), out=sigma)
    coefficients = image - mu
    coefficients /= sigma + image.dtype.type(constant)
    return Mscn(coefficients, sigma, mu)


class ShapeGrid:
    """Grid of shapes from `low` to `high`, 0.001 apart, with the ratios of moments of both distributions."""

    def __init__(self, low: float, high: float) -> None:
        self.shapes = low + 0.001 * np.arange(round((high - low) / 0.001) + 1)
        one, two, three = (gamma(n / self.shapes) for n in (1, 2, 3))
        self._ggd = one * three / two**2
        self._aggd = two**2 / (one * three)
        # Factors of the mean of an AGGD, by shape.
        self.mean_factor = two / one * np.sqrt(one) / np.sqrt(three)
        self.scale_factor = np.sqrt(one / three)

    def of_ggd(self, ratio: float) -> int:
        """Return the index of the shape whose mean(v^2) / mean(|v|)^2 is nearest to `ratio`; 0 for NaN."""
        return int(np.argmin(np.abs(ratio - self._ggd)))

    def of_aggd(self, ratio: float) -> int:
        """Return the index of the shape whose mean(|v|)^2 / mean(v^2) is nearest to `ratio`; 0 for NaN."""
        return int(np.argmin((self._aggd - ratio) ** 2))


@lru_cache(maxsize=4)
def shape_grid(low: float, high: float) -> ShapeGrid:
    """Return the grid of shapes from `low` to `high`."""
    return ShapeGrid(low, high)


@dataclass(frozen=True, slots=True)
class Aggd:
    """An asymmetric GGD: its shape, its mean, and the root mean squares of negative and positive values.

    `left_scale` and `right_scale` are the scale parameters of the distribution.
    """

    shape: float
    mean: float
    left: float
    right: float
    left_scale: float
    right_scale: float


def fit_ggd(values: Floats, grid: ShapeGrid) -> tuple[float, float]:
    """Return the shape of the GGD of `values`, and their root mean square. Zeros alone have the lowest shape."""
    num = values.size
    power = squares(values) / num
    size = cv2.norm(values, cv2.NORM_L1) / num
    ratio = power / size**2 if size > 0 else np.nan
    return float(grid.shapes[grid.of_ggd(ratio)]), float(np.sqrt(power))


def fit_aggd(values: Floats, grid: ShapeGrid) -> Aggd:
    """Return the AGGD of `values`, which need two dimensions. Zeros count for neither side.

    Without negative or without positive values a side is NaN: then the shape is the lowest, and the mean NaN.
    """
    negative = np.minimum(values, 0)
    positive = values - negative
    left_squares, right_squares = squares(negative), squares(positive)
    num_left, num_right = cv2.countNonZero(negative), cv2.countNonZero(positive)
    left = np.sqrt(left_squares / num_left) if num_left else np.nan
    right = np.sqrt(right_squares / num_right) if num_right else np.nan
    total = left_squares + right_squares
    size = cv2.norm(values, cv2.NORM_L1)
    ratio = size**2 / total / values.size if total > 0 else np.nan
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        balance = np.float64(left) / right
        normalised = ratio * (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    index = grid.of_aggd(float(normalised))
    scale = float(grid.scale_factor[index])
    return Aggd(
        shape=float(grid.shapes[index]),
        mean=float((right - left) * grid.mean_factor[index]),
        left=float(left),
        right=float(right),
        left_scale=float(left) * scale,
        right_scale=float(right) * scale,
    )


def squares(values: Floats) -> float:
    """Return the sum of squares, accumulated in float64."""
    return float(cv2.norm(values, cv2.NORM_L2SQR))


def shifted(image: Floats, rows: int, columns: int) -> Floats:
    """Return `image` shifted circularly: out[i, j] = image[i - rows, j - columns]."""
    return np.roll(image, (rows, columns), (0, 1))
