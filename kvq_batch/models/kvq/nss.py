"""Natural scene statistics (NSS) of patches: MSCN coefficients, noise, edges and colours.

MSCN coefficients are luma, mean-subtracted and contrast-normalised in a Gaussian window (BRISQUE, "No-reference image
quality assessment in the spatial domain", IEEE TIP 21(12), 2012, section III-A). Their statistics agree to a few
hundredths in photographs of any content, and every kind of degradation changes them. All functions return values of
order 1, one per patch of each tile.

Axes: n tiles, h and w pixels of a tile; results are [n, h/side, w/side].
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kvq_batch.models.kvq.pixels import FLOOR, avg_pool, gaussian_blur, max_pool, min_pool, products

NUM_NSS = 19

# BRISQUE, section III-A: a Gaussian of 7/6 pixels; 1 grey level is added to the deviation.
_LOCAL_SIGMA = 7 / 6
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Mean absolute curvature of noise with standard deviation 1 (Immerkaer, CVIU 64(2), 1996).
_CURVATURE_OF_NOISE = 4.79
_EPS = 0.1


def nss_features(grey: Tensor, finest: Tensor, red: Tensor, blue: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the NUM_NSS statistics of luma [n, h, w]; `finest` is its finest band, all in grey levels."""
    yield from _mscn_features(grey, side, _NEIGHBOURS)
    # At half size, the blocks of a codec have four pixels, and moderate blur is gone.
    yield from _mscn_features(avg_pool(grey, 2), side // 2, _NEIGHBOURS[:2])
    yield from _noise(grey, side)
    yield from _evenness(finest, side)
    yield _steepness(grey, side)
    for colour in (red, blue):
        difference = grey - colour
        mean = avg_pool(difference, side)
        yield torch.log((avg_pool(difference.square(), side) - mean.square()).clamp_(min=0) + _EPS) / 4


def _mscn_features(grey: Tensor, side: int, neighbours: tuple[tuple[int, int], ...]) -> Iterator[Tensor]:
    """Yield power and shape of the MSCN coefficients, the local deviation, and the agreement of neighbours."""
    mean = gaussian_blur(grey, _LOCAL_SIGMA)
    deviation = (gaussian_blur(grey.square(), _LOCAL_SIGMA) - mean.square()).abs().sqrt()
    mscn = (grey - mean) / (deviation + 1)
    power, size = avg_pool(mscn.square(), side), avg_pool(mscn.abs(), side)
    yield torch.log(power + 0.01) + 1
    # The ratio is 2 / pi for a Gaussian, 1 / 2 for a Laplacian, and lower for heavier tails.
    yield 4 * (torch.log(size.square() / (power + 1e-4) + 0.01) + 0.45)
    yield avg_pool(torch.log(deviation + FLOOR), side) / 2
    for down, right in neighbours:
        yield 2 * avg_pool(products(mscn, down, right), side) / (power + 0.02)


def _noise(grey: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the standard deviation of noise, estimated from curvature: of the patch, and of its smoothest block."""
    across = F.pad(grey[:, :, 2:] - 2 * grey[:, :, 1:-1] + grey[:, :, :-2], (1, 1))
    curvature = F.pad(across[:, 2:] - 2 * across[:, 1:-1] + across[:, :-2], (0, 0, 1, 1)).abs() / _CURVATURE_OF_NOISE
    yield torch.log(avg_pool(curvature, side) + _EPS) / 2
    yield torch.log(min_pool(avg_pool(curvature, 4), side // 4) + _EPS / 2) / 2


def _evenness(finest: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the detail of the block of 8 pixels with most and of the one with least: codecs remove it unevenly."""
    detail = torch.log(avg_pool(finest.square(), 8) + _EPS) / 4
    yield max_pool(detail, side // 8)
    yield min_pool(detail, side // 8)


def _steepness(grey: Tensor, side: int) -> Tensor:
    """Return the steepest slope of a patch relative to its luma range: how narrow its sharpest edge is."""
    across = F.pad((grey[:, :, 2:] - grey[:, :, :-2]).abs(), (1, 1))
    down = F.pad((grey[:, 2:] - grey[:, :-2]).abs(), (0, 0, 1, 1))
    slope = max_pool(torch.maximum(across, down) / 2, side)
    return torch.log((slope + FLOOR) / (max_pool(grey, side) - min_pool(grey, side) + 2)) + 1
