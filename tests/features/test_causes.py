"""Measures of causes: known values of constructed pictures, and CAMBI of libvmaf for banding."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from benchmarks.causes import cambi
from kvq_batch.features.causes import spatial
from kvq_batch.features.causes.banding import banding
from kvq_batch.features.causes.temporal import combing, largest_change
from kvq_batch.media.synthesis import fractal

GRID = (4, 6)
HEIGHT, WIDTH = 192, 288


def bars_picture(period: int = 24) -> NDArray[np.uint8]:
    """Return vertical and horizontal edges of 100 levels, not on multiples of 8."""
    y, x = np.indices((HEIGHT, WIDTH))
    return np.asarray(60 + 100 * (((x + 5) // period + (y + 3) // period) % 2), np.uint8)


def photo(seed: int = 0) -> NDArray[np.float32]:
    """Return a picture with the spectrum of a photograph, levels 40..200, float32."""
    noise = fractal(np.random.default_rng(seed), HEIGHT, WIDTH, 1.3)
    return np.asarray(np.clip(120 + 35 * noise, 40, 200), np.float32)


def levels(picture: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(picture), 0, 255), np.uint8)


@pytest.mark.parametrize(("sigma", "low", "high"), [(0.0, 1.0, 1.0), (1.0, 2.2, 2.8), (2.0, 3.4, 5.2)])
def test_edge_width_follows_the_blur(sigma: float, low: float, high: float) -> None:
    picture = bars_picture().astype(np.float32)
    found = spatial.edge_width(levels(gaussian_filter(picture, sigma)) if sigma else bars_picture(), GRID)
    assert found.shape == GRID
    assert low <= np.nanmedian(found) <= high


def test_flat_picture_has_no_edge_width() -> None:
    assert np.isnan(spatial.edge_width(np.full((HEIGHT, WIDTH), 90, np.uint8), GRID)).all()


def test_blur_is_found_in_its_cells_only() -> None:
    picture = bars_picture().astype(np.float32)
    blurred = gaussian_filter(picture, 2.5)
    picture[:96, :144] = blurred[:96, :144]
    found = spatial.edge_width(levels(picture), GRID)
    assert found[:2, :3].min() > 3
    assert found[2:, 3:].max() < 1.5


@pytest.mark.parametrize("sigma", [2.0, 5.0, 10.0])
def test_noise_deviation_is_the_one_put_in(sigma: float) -> None:
    generator = np.random.default_rng(1)
    flat = np.full((HEIGHT, WIDTH), 120.0)
    found = spatial.noise_deviation(levels(flat + generator.normal(0, sigma, flat.shape)), GRID)
    # The quarter of the blocks with the lowest value is a little below the mean.
    assert np.median(found) == pytest.approx(sigma, rel=0.15)


def test_clean_planes_have_no_noise_and_clipped_ones_are_unknown() -> None:
    ramp = np.broadcast_to(np.linspace(40, 200, WIDTH), (HEIGHT, WIDTH))
    assert spatial.noise_deviation(levels(ramp), GRID).max() < 0.4
    assert np.isnan(spatial.noise_deviation(np.full((HEIGHT, WIDTH), 235, np.uint8), GRID)).all()


def test_blocks_have_steps_at_multiples_of_eight() -> None:
    picture = photo()
    means = picture.reshape(HEIGHT // 8, 8, WIDTH // 8, 8).mean(axis=(1, 3)).repeat(8, 0).repeat(8, 1)
    assert spatial.blockiness(levels(means), GRID).mean() > 0.7
    assert abs(spatial.blockiness(levels(picture), GRID).mean()) < 0.08
    half = picture.copy()
    half[:, :144] = means[:, :144]
    found = spatial.blockiness(levels(half), GRID)
    assert found[:, :3].mean() > 0.7
    assert found[:, 3:].mean() < 0.15


def test_white_pixels_count_where_they_are() -> None:
    picture = levels(photo())
    picture[:48, :48] = 240
    found = spatial.clipped_share(picture, GRID)
    assert found[0, 0] == 1
    assert found.sum() == 1


def test_bars_are_measured_and_a_black_frame_has_none() -> None:
    picture = levels(photo())
    picture[:20], picture[-24:], picture[:, :10] = 16, 17, 16
    assert spatial.bars_of(picture) == spatial.Bars(20, 24, 10, 0)
    assert spatial.bars_of(np.full((HEIGHT, WIDTH), 16, np.uint8)) == spatial.Bars(0, 0, 0, 0)
    assert spatial.Bars(48, 48, 0, 0).share(HEIGHT, WIDTH) == 0.5


def test_full_range_luma_is_scaled() -> None:
    assert spatial.to_limited(np.array([[0, 255, 128]], np.uint8)).tolist() == [[16, 235, 126]]


def moving(step: int) -> NDArray[np.uint8]:
    wide = np.clip(120 + 35 * fractal(np.random.default_rng(2), HEIGHT, WIDTH + 64, 1.6), 16, 235)
    return levels(wide[:, step : step + WIDTH])


def test_fields_of_two_times_comb() -> None:
    before, after = moving(0), moving(6)
    woven = before.copy()
    woven[1::2] = after[1::2]
    combs, moves = combing(before, woven, GRID)
    assert combs.sum() / moves.sum() > 0.2
    combs, moves = combing(before, after, GRID)
    assert combs.sum() / moves.sum() < 0.02
    assert combing(woven, woven, GRID)[0].max() == 0


def test_largest_change_sees_a_small_object() -> None:
    before = moving(0)
    after = before.copy()
    after[100:116, 96:112] = 235 - after[100:116, 96:112]
    assert largest_change(before, before) == 0
    assert largest_change(before, after) > 10


def stepped(step: int, bit_depth: int = 8) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return a slow ramp in steps of `step` levels of 8 bits."""
    y, x = np.indices((HEIGHT, WIDTH))
    smooth = 60 + (x + 0.3 * y) * 0.06
    unit = 1 << (bit_depth - 8)
    banded = np.rint(smooth / step) * step * unit
    return np.asarray(banded, np.uint8) if bit_depth == 8 else np.asarray(banded, np.uint16)


def test_bands_have_the_contrast_of_their_steps() -> None:
    found = {step: float(np.quantile(banding(stepped(step), 8), 0.9)) for step in (1, 2, 4)}
    assert 0.2 < found[1] < found[2] < found[4] <= 1, found
    assert np.allclose(banding(stepped(2, 10), 10), banding(stepped(2), 8))


def test_no_bands_in_noise_in_texture_and_in_flat_areas() -> None:
    generator = np.random.default_rng(3)
    dithered = levels(stepped(1) + generator.normal(0, 1, (HEIGHT, WIDTH)))
    for picture in (dithered, levels(photo()), np.full((HEIGHT, WIDTH), 90, np.uint8), bars_picture()):
        assert banding(picture, 8).mean() < 0.02


def test_bands_are_found_where_they_are() -> None:
    generator = np.random.default_rng(4)
    picture = stepped(2)
    picture[:, 144:] = levels(picture[:, 144:] + generator.normal(0, 2, (HEIGHT, 144)))
    found = spatial.cell_means(banding(picture, 8), GRID)
    assert found[:, :2].min() > 0.2
    assert found[:, 4:].max() < 0.02


@pytest.fixture(scope="module")
def cambi_pictures() -> list[NDArray[np.uint8]]:
    """Return ramps and photographs of 480x270 with more and less banding."""
    generator = np.random.default_rng(5)
    pictures = []
    for number in range(16):
        smooth = fractal(generator, 270, 480, 2.6)
        detail = fractal(generator, 270, 480, 1.0)
        noise = generator.normal(0, 1, smooth.shape)
        amount, grain = generator.uniform(8, 40), [0, 0.3, 1.2, 0][number % 4]
        texture = [0, 0, 2, 12][number % 4]
        pictures.append(levels(110 + amount * smooth + texture * detail + grain * noise))
    return pictures


def test_banding_agrees_with_cambi(cambi_pictures: list[NDArray[np.uint8]]) -> None:
    reference = np.array(cambi(cambi_pictures))
    found = np.array([banding(picture, 8).mean() for picture in cambi_pictures])
    assert len(reference) == len(found)
    assert np.corrcoef(reference, found)[0, 1] > 0.95
    assert spearmanr(reference, found).statistic > 0.95
    # What CAMBI calls slightly annoying (5) is far from what it calls clean.
    assert found[reference > 5].min() > 5 * found[reference < 1].max()
