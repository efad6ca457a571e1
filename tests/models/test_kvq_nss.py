"""Natural scene statistics: noise, edges, correlation of neighbours, colours."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from kvq_batch.models.kvq.nss import NUM_NSS, colour_spread, nss_features
from kvq_batch.models.kvq.pixels import bands_of_tiles

SIDE = 16
# Indices of the statistics.
SHAPE, DEVIATION, RIGHT, BELOW = 1, 2, 3, 4
NOISE, LEAST_NOISE, MOST_DETAIL, LEAST_DETAIL, STEEPNESS = range(12, 17)


def measured(grey: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the statistics [h/side, w/side, NUM_NSS] of one tile [h, w]."""
    luma = torch.from_numpy(np.asarray(grey, np.float32))[..., None]
    finest = next(bands_of_tiles(luma, 1))
    return torch.stack(list(nss_features(luma, finest, SIDE)), dim=-1)[:, :, 0].numpy()


def noise(sigma: float, shape: tuple[int, int] = (64, 96)) -> NDArray[np.float64]:
    return 128 + sigma * np.random.default_rng(0).standard_normal(shape)


def test_every_patch_has_all_statistics() -> None:
    assert measured(noise(5)).shape == (4, 6, NUM_NSS)


@pytest.mark.parametrize("sigma", [2.0, 5.0, 12.0])
def test_noise_is_estimated_in_grey_levels(sigma: float) -> None:
    middle = measured(noise(sigma))[1:-1, 1:-1]
    assert np.exp(2 * middle[..., NOISE]).mean() - 0.1 == pytest.approx(sigma, rel=0.05)
    # A slope is not noise.
    slope = noise(sigma) + 3 * np.arange(96)
    assert measured(slope)[1:-1, 1:-1, NOISE] == pytest.approx(middle[..., NOISE], abs=1e-3)


def test_smoothest_and_busiest_blocks_differ() -> None:
    flat = np.where(np.arange(96) % 16 < 8, noise(10), 128.0)
    assert (measured(flat)[..., LEAST_NOISE] < measured(noise(10))[..., LEAST_NOISE] - 0.5).all()
    found = measured(flat)[1:-1, 1:-1]
    assert (found[..., MOST_DETAIL] > found[..., LEAST_DETAIL] + 0.5).all()


def test_blur_correlates_neighbours_and_noise_does_not() -> None:
    of_noise = measured(noise(10)).mean((0, 1))
    of_blur = measured(128 + 5 * (gaussian_filter(noise(10), 2) - 128)).mean((0, 1))
    assert abs(of_noise[[RIGHT, BELOW]] + 0.1).max() < 0.2
    assert (of_blur[[RIGHT, BELOW]] > 1).all()


def test_shape_depends_on_tails_not_on_contrast() -> None:
    spikes = 128 + 10 * np.random.default_rng(1).standard_t(1.5, (64, 96)).clip(-12, 12)
    assert measured(spikes)[..., SHAPE].mean() < measured(noise(10))[..., SHAPE].mean() - 0.2
    weak, strong = (measured(noise(sigma)).mean((0, 1)) for sigma in (10, 20))
    assert strong[SHAPE] == pytest.approx(weak[SHAPE], abs=0.1)
    assert strong[DEVIATION] == pytest.approx(weak[DEVIATION] + np.log(2) / 2, abs=0.05)


def test_blurred_edge_is_less_steep() -> None:
    edge = np.broadcast_to(np.where(np.arange(96) % 16 < 8, 60.0, 180.0), (64, 96))
    sharp, soft = (measured(frame)[1, 1, STEEPNESS] for frame in (edge, gaussian_filter(edge, (0, 2))))
    # Central differences of a step see half of it.
    assert sharp == pytest.approx(np.log((60 + 0.5) / (120 + 2)) + 1, abs=1e-3)
    assert soft < sharp - 0.4


def test_colour_statistics_measure_difference_from_luma() -> None:
    grey = noise(10)
    colours = np.stack([grey, grey + 8 * np.random.default_rng(2).standard_normal(grey.shape)])
    luma, colour = (torch.from_numpy(np.asarray(planes, np.float32))[:, None] for planes in ((grey, grey), colours))
    same, other = colour_spread(luma, colour, SIDE).numpy()
    assert same == pytest.approx(np.log(0.1) / 4, abs=1e-3)
    assert other.mean() == pytest.approx(np.log(64.1) / 4, abs=0.05)


def test_statistics_of_extreme_frames_are_finite() -> None:
    checked = np.zeros((64, 96))
    checked[::2, ::2] = checked[1::2, 1::2] = 255
    for grey in (np.zeros((64, 96)), np.full((64, 96), 255.0), checked):
        assert np.isfinite(measured(grey)).all()
