"""Natural scene statistics (NSS) of patches: MSCN coefficients, noise, edges and colours.

MSCN coefficients are luma, mean-subtracted and contrast-normalised in a Gaussian window (BRISQUE, "No-reference image
quality assessment in the spatial domain", IEEE TIP 21(12), 2012, section III-A). Their statistics agree to a few
hundredths in photographs of any content, and every kind of degradation changes them. There are no weights here. Every
function returns values of the order of 1, one for each patch of every tile.

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
# Of the mean size of the curvature of noise with a deviation of 1 (Immerkaer, CVIU 64(2), 1996).
_CURVATURE_OF_NOISE = 4.79
_EPS = 0.1


def nss_features(grey: Tensor, finest: Tensor, red: Tensor, blue: Tensor, side: int) -> Iterator[Tensor]:
    """Yield the NUM_NSS statistics of luma [n, h, w]; `finest` is its finest band, all in grey levels."""
    yield from _mscn_features(grey, side, _NEIGHBOURS)
    # At half the size, where a codec's blocks are four pixels and its blur is a sharp edge again.
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
    # From 2 / pi of a Gaussian down to 1 / 2 of a Laplacian, and further.
    yield 4 * (torch.log(size.square() / (power + 1e-4) + 0.01) + 0.45)
    yield avg_pool(torch.log(deviation + FLOOR), side) / 2
    for down, right in neighbours:
        yield 2 * avg_pool(products(mscn, down, right), side) / (power + 0.02)


def _noise(grey: Tensor, side: int) -> Iterator[Tensor]:
    """Deviation of noise, as what has neither slope nor curve: of the patch, and where it is calmest."""
    across = F.pad(grey[:, :, 2:] - 2 * grey[:, :, 1:-1] + grey[:, :, :-2], (1, 1))
    curvature = F.pad(across[:, 2:] - 2 * across[:, 1:-1] + across[:, :-2], (0, 0, 1, 1)).abs() / _CURVATURE_OF_NOISE
    yield torch.log(avg_pool(curvature, side) + _EPS) / 2
    yield torch.log(min_pool(avg_pool(curvature, 4), side // 4) + _EPS / 2) / 2


def _evenness(finest: Tensor, side: int) -> Iterator[Tensor]:
    """Detail of the busiest and of the calmest block of 8: a codec leaves some as they were, and empties others."""
    detail = torch.log(avg_pool(finest.square(), 8) + _EPS) / 4
    yield max_pool(detail, side // 8)
    yield min_pool(detail, side // 8)


def _steepness(grey: Tensor, side: int) -> Tensor:
    """The steepest slope of a patch against all that luma moves in it: how narrow its sharpest edge is."""
    across = F.pad((grey[:, :, 2:] - grey[:, :, :-2]).abs(), (1, 1))
    down = F.pad((grey[:, 2:] - grey[:, :-2]).abs(), (0, 0, 1, 1))
    slope = max_pool(torch.maximum(across, down) / 2, side)
    return torch.log((slope + FLOOR) / (max_pool(grey, side) - min_pool(grey, side) + 2)) + 1
