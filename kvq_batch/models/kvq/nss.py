"""Natural scene statistics (NSS) of patches: MSCN coefficients, noise, edges and colours.

MSCN coefficients are luma, mean-subtracted and contrast-normalised in a Gaussian window (BRISQUE, "No-reference image
quality assessment in the spatial domain", IEEE TIP 21(12), 2012, section III-A). Their statistics agree to a few
hundredths in photographs of any content, and every kind of degradation changes them. All functions return values of
order 1, one per patch of each tile.

Axes: n tiles, h and w pixels of a tile; results are [h/side, w/side, n].
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kvq_batch.models.kvq.pixels import FLOOR, avg_pool, gaussian_blur, max_pool, min_pool, products, zero_edged

NUM_NSS = 17

# BRISQUE, section III-A: a Gaussian of 7/6 pixels; 1 grey level is added to the deviation.
_LOCAL_SIGMA = 7 / 6
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Mean absolute curvature of noise with standard deviation 1 (Immerkaer, CVIU 64(2), 1996).
_CURVATURE_OF_NOISE = 4.79
_EPS = 0.1


def nss_features(grey: Tensor, finest: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the NUM_NSS statistics of luma [h, w, n]; `finest` is its finest band, both in grey levels."""
    yield from _mscn_features(grey, side, _NEIGHBOURS)
    # At half size, the blocks of a codec have four pixels, and moderate blur is gone.
    yield from _mscn_features(avg_pool(grey, 2), side // 2, _NEIGHBOURS[:2])
    yield from _noise(grey, side)
    yield from _evenness(finest, side)
    yield _steepness(grey, side)


def colour_spread(grey: Tensor, colour: Tensor, side: int) -> Tensor:
    """Return the spread of the difference between luma and a colour: planes [B, T, H, W] to [B, T, H/side, W/side]."""
    difference = grey - colour
    mean = avg_pool(difference, side, 2)
    return torch.log((avg_pool(difference.square_(), side, 2) - mean.square()).clamp_(min=0) + _EPS) / 4


def _mscn_features(grey: Tensor, side: int, neighbours: tuple[tuple[int, int], ...]) -> Iterator[Tensor]:
    """Yield power and shape of the MSCN coefficients, the local deviation, and the agreement of neighbours."""
    mean = gaussian_blur(grey, _LOCAL_SIGMA)
    deviation = gaussian_blur(grey.square(), _LOCAL_SIGMA).sub_(mean.square()).abs_().sqrt_()
    mscn = torch.sub(grey, mean, out=mean).div_(deviation + 1)
    power, size = avg_pool(mscn.square(), side), avg_pool(mscn.abs(), side)
    yield torch.log(power + 0.01) + 1
    # The ratio is 2 / pi for a Gaussian, 1 / 2 for a Laplacian, and lower for heavier tails.
    yield 4 * (torch.log(size.square() / (power + 1e-4) + 0.01) + 0.45)
    yield avg_pool(deviation.add_(FLOOR).log_(), side) / 2
    for down, right in neighbours:
        yield 2 * avg_pool(products(mscn, down, right), side) / (power + 0.02)


def _noise(grey: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the standard deviation of noise, estimated from curvature: of the patch, and of its smoothest block."""
    across = _second_difference(grey, 1)
    curvature, inner = zero_edged(grey, (1, 1), (1, 1))
    inner.copy_(_second_difference(across, 0)).abs_()
    of_blocks = avg_pool(curvature, 4) / _CURVATURE_OF_NOISE
    yield torch.log(avg_pool(of_blocks, side // 4) + _EPS) / 2
    yield torch.log(min_pool(of_blocks, side // 4) + _EPS / 2) / 2


def _second_difference(values: Tensor, axis: int) -> Tensor:
    length = values.shape[axis] - 2
    before, middle, after = (values.narrow(axis, first, length) for first in range(3))
    return torch.sub(before, middle, alpha=2).add_(after)


def _evenness(finest: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the detail of the block of 8 pixels with most and of the one with least: codecs remove it unevenly."""
    detail = torch.log(avg_pool(finest.square(), 8) + _EPS) / 4
    yield max_pool(detail, side // 8)
    yield min_pool(detail, side // 8)


def _steepness(grey: Tensor, side: int) -> Tensor:
    """Return the steepest slope of a patch relative to its luma range: how narrow its sharpest edge is."""
    slopes = []
    for axis, edges in ((0, ((1, 1), (0, 0))), (1, ((0, 0), (1, 1)))):
        length = grey.shape[axis] - 2
        slope, inner = zero_edged(grey, *edges)
        torch.sub(grey.narrow(axis, 2, length), grey.narrow(axis, 0, length), out=inner)
        slopes.append(max_pool(slope.abs_(), side))
    steepest = torch.maximum(*slopes) / 2
    return torch.log((steepest + FLOOR) / (max_pool(grey, side) - min_pool(grey, side) + 2)) + 1
