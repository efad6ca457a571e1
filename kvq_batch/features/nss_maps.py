"""The 16 maps of a frame whose statistics RAPIQUE measures: luma, its edges, colour opponents and their edges.

"RAPIQUE: rapid and accurate video quality prediction of user generated content", IEEE OJSP 2, 2021; formulae of
STUDY_SPEC sections 1.5 and 1.6. Axes: H rows, W columns. All maps are float64 [H, W].
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from kvq_batch.features.imresize import imresize
from kvq_batch.features.scene_statistics import correlate, gaussian

Real = NDArray[np.float64]
Planes = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]
ColourVariant = Literal["rvs", "vztu"]

NUM_MAPS = 16
NUM_FULL_SIZE = 4
"""Maps that are also measured at full size: luma and its edges."""

EPS = 2.0**-52

# BT.601, video range: rows of luma and chroma differences by red, green and blue of 0..1.
_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
# The first row of the inverse of MATLAB's YIQ matrix.
_GREY = (0.298936021293775, 0.587043074451121, 0.114020904255103)
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9504, 1.0, 1.0888])
# Colour opponents O1 and O2 by red, green and blue.
_OPPONENTS = ((0.30, 0.04, -0.35), (0.34, -0.60, 0.17))
_DERIVATIVE_SIGMA = 1.66
_LOG_SIZE, _LOG_SIGMA = 9, 1.5


def planes_to_rgb(planes: Planes, variant: ColourVariant = "rvs") -> NDArray[np.uint8]:
    """Return the RGB frame [H, W, 3] of decoded 4:2:0 planes, uint8 Y [H, W], U and V [H / 2, W / 2].

    "rvs" is the conversion behind the published features: BT.601, video range. "vztu" is that of RAPIQUE's first
    release, which treats luma as full range and chroma as centred at 127.
    """
    y = planes[0].astype(np.float64)
    u, v = (imresize(plane.astype(np.float64), 2.0)[: y.shape[0], : y.shape[1]] for plane in planes[1:])
    return convert_to_rgb(y, u, v, variant)


def convert_to_rgb(y: Real, u: Real, v: Real, variant: ColourVariant) -> NDArray[np.uint8]:
    """Return the RGB frame [H, W, 3] of planes of the same size (`planes_to_rgb`)."""
    if variant == "vztu":
        u, v = u - 127, v - 127
        channels = [y + 1.4022 * v, y - 0.3456 * u - 0.7145 * v, y + 1.771 * u]
    else:
        luma, blue, red = (_rounded(plane) - offset for plane, offset in ((y, 16), (u, 128), (v, 128)))
        inverse = 255 * np.linalg.inv(_YCBCR)
        channels = [a * luma + b * blue + c * red for a, b, c in inverse]
    return np.stack([_rounded(channel).astype(np.uint8) for channel in channels], axis=-1)


def video_luma(rgb: NDArray[np.uint8]) -> Real:
    """Return the luma of an RGB frame [H, W, 3] as a BT.601 video stores it: 16 for black, 235 for white, rounded."""
    weights = _YCBCR[:1] / 255
    return _rounded(cv2.transform(rgb.astype(np.float64), weights).reshape(rgb.shape[:2]) + 16)


def rounded_grey(rgb: NDArray[np.uint8]) -> Real:
    """Return the grey picture [H, W] of an RGB frame [H, W, 3] of 0..255, as MATLAB's rgb2gray."""
    red, green, blue = (rgb[..., channel].astype(np.float64) for channel in range(3))
    return _grey(red, green, blue)


def _grey(red: Real, green: Real, blue: Real) -> Real:
    return _rounded(_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)


def _rounded(plane: NDArray[Any]) -> Real:
    """Return values rounded and clipped to 0..255; half is rounded up."""
    return np.asarray(np.clip(np.floor(plane + 0.5), 0, 255), np.float64)


def frame_maps(rgb: NDArray[np.uint8]) -> Iterator[Real]:
    """Yield the NUM_MAPS maps of an RGB frame [H, W, 3]: the first NUM_FULL_SIZE are luma and its edges."""
    channels = [np.ascontiguousarray(rgb[..., channel]) for channel in range(3)]
    red, green, blue = (channel.astype(np.float64) for channel in channels)
    grey = _grey(red, green, blue)
    yield grey
    yield gradient_magnitude(grey)
    yield np.abs(laplacian_of_gaussian(grey))
    smooth = gaussian(8, 1.0)
    yield grey - correlate(grey, smooth, smooth)
    for pair in (_opponents(red, green, blue), _log_opponents(channels), _lab(rgb)):
        yield from pair
        yield from (derivative_magnitude(colour) for colour in pair)


def gradient_magnitude(image: Real) -> Real:
    """Return the magnitude of the Sobel gradient, not divided."""
    smooth, difference = np.array([1.0, 2.0, 1.0]), np.array([1.0, 0.0, -1.0])
    down, across = correlate(image, difference, smooth), correlate(image, smooth, difference)
    return np.asarray(cv2.magnitude(down, across))


def laplacian_of_gaussian(image: Real) -> Real:
    """Return the correlation with the Laplacian of a Gaussian of 9x9 pixels, scaled to a sum of magnitudes of 1."""
    curved, smooth, mean, divisor = _log_kernels()
    found: Real = correlate(image, curved, smooth) + correlate(image, smooth, curved)
    flat = np.ones(_LOG_SIZE)
    return np.asarray((found - mean * correlate(image, flat, flat)) / divisor)


@cache
def _log_kernels() -> tuple[Real, Real, float, float]:
    """Return the separable parts of the kernel, the mean that it is freed from, and its sum of magnitudes."""
    x = np.arange(_LOG_SIZE) - (_LOG_SIZE - 1) / 2
    smooth = gaussian(_LOG_SIZE, _LOG_SIGMA)
    curved = smooth * (x**2 - _LOG_SIGMA**2) / _LOG_SIGMA**4
    kernel = np.outer(curved, smooth) + np.outer(smooth, curved)
    mean = float(kernel.mean())
    return curved, smooth, mean, float(np.abs(kernel - mean).sum())


def derivative_magnitude(image: Real) -> Real:
    """Return the magnitude of derivatives of a Gaussian; the image is 0 outside its border, as in RAPIQUE."""
    x = np.arange(-5.0, 6.0)
    smooth = np.exp(-(x**2) / (2 * _DERIVATIVE_SIGMA**2))
    # OpenCV subtracts before it multiplies along columns, not along rows: only so is a flat area exactly 0.
    down = correlate(image, x * smooth, smooth, "zero")
    across = cv2.transpose(correlate(cv2.transpose(image), x * smooth, smooth, "zero"))
    return np.asarray(cv2.magnitude(across, down) + EPS)


def _opponents(red: Real, green: Real, blue: Real) -> list[Real]:
    return [a * red + b * green + c * blue for a, b, c in _OPPONENTS]


def _log_opponents(channels: list[NDArray[np.uint8]]) -> list[Real]:
    """Return blue-yellow and red-green opponents of logarithms, each channel freed from its mean."""
    table = np.log(np.arange(256) + 0.1)
    red, green, blue = (logarithm - logarithm.mean() for logarithm in (cv2.LUT(plane, table) for plane in channels))
    return [(red + green - 2 * blue) / np.sqrt(6), (red - green) / np.sqrt(2)]


def _lab(rgb: NDArray[np.uint8]) -> list[Real]:
    """Return A and B of CIE Lab (D65) of the slightly blurred frame, rounded to 0..255."""
    kernel = gaussian(3, 3.0)
    blurred = cv2.sepFilter2D(rgb.astype(np.float64), -1, kernel, kernel, borderType=cv2.BORDER_REFLECT)
    linear = cv2.LUT(_rounded(blurred).astype(np.uint8), _srgb_table())
    ratios = cv2.transform(linear, _XYZ / _WHITE[:, None])
    is_high = ratios > 216 / 24389
    roots = np.where(is_high, cv2.pow(ratios, 1 / 3), (24389 / 27 * ratios + 16) / 116)
    x, y, z = (roots[..., axis] for axis in range(3))
    return [_rounded(500 * (x - y) + 128), _rounded(200 * (y - z) + 128)]


@cache
def _srgb_table() -> NDArray[Any]:
    """Return linear light of 0..1 for each value of an sRGB channel."""
    v = np.arange(256) / 255
    return np.asarray(np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4))
