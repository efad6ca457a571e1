"""NSS features of RAPIQUE: 1836 statistics of a video from decoded Y, U and V planes at native size.

Each second of a video is a chunk. Two frames give 680 spatial statistics each, eight frames of luma give 476 temporal
ones (STUDY_SPEC section 2). A chunk's vector is the mean of both frames (680), their absolute difference (680) and the
temporal part (476); a video's vector is the mean over its chunks.

Sums of the temporal filters run frame by frame in float64, as in the published features: where a picture does not
move, the order decides whether a sum is 0 or rounding noise.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kvq_batch.features.chunks import chunks
from kvq_batch.features.imresize import imresize
from kvq_batch.features.nss_maps import EPS, NUM_FULL_SIZE, ColourVariant, Planes, frame_maps, planes_to_rgb
from kvq_batch.features.pooling import mean_of_defined
from kvq_batch.features.scene_statistics import SHIFTS, fit_aggd, fit_ggd, mscn, shape_grid, shifted

NUM_BASIC = 34
NUM_SPATIAL = 20 * NUM_BASIC
NUM_TEMPORAL = 14 * NUM_BASIC
NUM_NSS = 2 * NUM_SPATIAL + NUM_TEMPORAL
NUM_TEMPORAL_FRAMES = 8

Real = NDArray[np.float64]

_SHAPES = (0.1, 6.0)
# Larger frames are reduced to this smaller side.
_SIDE_PX = 512
# Rows of a Walsh packet over eight frames in time order, without the constant one.
_FILTERS = ("++++----", "++--++--", "++----++", "+-+-+-+-", "+-+--+-+", "+--++--+", "+--+-++-")
_CROSS = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
_DIAGONAL = np.array([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]])
# What a map without any change has in exact arithmetic; filters would return rounding noise.
_CONSTANT = np.array([0.1, 0, EPS, np.inf, *(0.1, np.nan, np.nan, np.nan) * 4, *(0.1, 0) * 7])


def basic_features(image: Real) -> Real:
    """Return 34 statistics of a map [H, W]: of its MSCN coefficients, local deviation, and their neighbours' ratios.

    Order: STUDY_SPEC section 1.4. Undefined ones are NaN or infinite.
    """
    if image.max() == image.min():
        return _CONSTANT.copy()
    grid = shape_grid(*_SHAPES)
    local = mscn(image)
    deviation = local.sigma + EPS
    mean, spread = float(deviation.mean()), float(deviation.std(ddof=1))
    with np.errstate(divide="ignore"):
        found = [*fit_ggd(local.coefficients, grid), mean, float(np.square(np.float64(mean) / spread))]
    for shift in SHIFTS:
        fit = fit_aggd(local.coefficients * shifted(local.coefficients, *shift), grid)
        found += [fit.shape, fit.mean, fit.left, fit.right]
    logarithm = cv2.log(np.abs(local.coefficients) + 0.1)
    for ratio in _log_ratios(logarithm):
        found += fit_ggd(ratio, grid)
    return np.array(found)


def _log_ratios(logarithm: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield seven differences of the logarithm with its neighbours."""
    moved = [shifted(logarithm, *shift) for shift in SHIFTS]
    for neighbour in moved:
        yield logarithm - neighbour
    yield logarithm + moved[2] - moved[0] - moved[1]
    for kernel in (_CROSS, _DIAGONAL):
        yield cv2.filter2D(logarithm, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def spatial_features(rgb: NDArray[np.uint8]) -> Real:
    """Return the 680 spatial statistics of an RGB frame [H, W, 3]."""
    found = []
    for index, image in enumerate(frame_maps(rgb)):
        if index < NUM_FULL_SIZE:
            found.append(basic_features(image))
        found.append(basic_features(imresize(image, 0.5)))
    return np.concatenate(found)


def temporal_features(lumas: Sequence[NDArray[Any]], ratio: float) -> Real:
    """Return the 476 temporal statistics of up to eight luma planes [H, W], in time order; missing ones are zero.

    If `ratio` is below 1, planes and sub-bands are both reduced by it, as in the published features.
    """
    found = []
    for band in sub_bands(lumas, ratio):
        if ratio < 1:
            band = imresize(band, ratio)
        found += [basic_features(band), basic_features(imresize(band, 0.5))]
    return np.concatenate(found)


def sub_bands(lumas: Sequence[NDArray[Any]], ratio: float) -> list[Real]:
    """Return the seven sub-bands over time of luma planes, reduced by `ratio` if it is below 1."""
    reduced = [luma.astype(np.float64) for luma in lumas]
    if ratio < 1:
        reduced = [imresize(luma, ratio) for luma in reduced]
    bands = []
    for signs in _FILTERS:
        band = np.zeros_like(reduced[0])
        for sign, luma in zip(signs, reduced, strict=False):
            np.add(band, luma, out=band) if sign == "+" else np.subtract(band, luma, out=band)
        bands.append(band)
    return bands


def frame_features(planes: Planes, variant: ColourVariant = "rvs") -> Real:
    """Return the 680 spatial statistics of a frame, given as planes; a large frame is reduced first."""
    rgb = planes_to_rgb(planes, variant)
    ratio = reduction(planes[0])
    return spatial_features(imresize(rgb, ratio) if ratio < 1 else rgb)


def reduction(luma: NDArray[Any]) -> float:
    """Return the factor that makes the smaller side 512 pixels; frames are only reduced, so 1 and more means none."""
    return float(_SIDE_PX / min(luma.shape))


def chunk_features(previous: Real, following: Real, lumas: Sequence[NDArray[np.uint8]]) -> Real:
    """Return the 1836 statistics of a chunk: `frame_features` of its two frames, and luma of its temporal frames."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(previous - following)
    mean = mean_of_defined(np.stack([previous, following]))
    return np.concatenate([mean, difference, temporal_features(lumas, reduction(lumas[0]))])


def nss_features(
    planes_of: Callable[[int], Planes],
    num_frames: int,
    frame_rate: Fraction | float,
    variant: ColourVariant = "rvs",
) -> tuple[Real, Real]:
    """Return the 1836 statistics of a video, and those of its chunks [chunks, 1836].

    `planes_of` returns the planes of a frame by its index.

    Raises:
        DecodeError: as `chunks`.
    """
    found = []
    for chunk in chunks(num_frames, frame_rate):
        lumas = [planes_of(index)[0] for index in chunk.temporal]
        previous, following = (frame_features(planes_of(index), variant) for index in (chunk.previous, chunk.following))
        found.append(chunk_features(previous, following, lumas))
    vectors = np.stack(found)
    return mean_of_defined(vectors), vectors
