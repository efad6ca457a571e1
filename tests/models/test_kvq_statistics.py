"""Statistics of patches: flat ones, noise, blur, grids, still frames."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from kvq_batch.domain.errors import SpecError
from kvq_batch.models.kvq.config import KvqConfig
from kvq_batch.models.kvq.network import build_network
from kvq_batch.models.kvq.pixels import normalise
from kvq_batch.models.kvq.statistics import patch_statistics
from kvq_batch.models.kvq.untrained import untrained_tensors
from tests.support.kvq_cases import as_torch

CONFIG = KvqConfig(
    embed_dim=16,
    depths=(1, 1),
    num_heads=(2, 4),
    top_k=(2, 1),
    patch=(2, 16, 16),
    window=(1, 2, 2),
    head_hidden=8,
    num_frames=4,
    input_size=(64, 96),
    num_segments=2,
    num_bands=2,
    statistics=1,
    fragments=(2, 3),
)
OF_FRAME = 51
# Indices of the statistics of a frame. Of a band: mean of logarithm, its deviation, power, tails, and the correlations
# with the pixels on the right and below.
RED, LARGEST, SMALLEST, SPREAD, DARK = 0, 3, 4, 5, 6
STEPS_ALONG_ROWS, GRID_ALONG_ROWS, GRID_ALONG_COLUMNS = 8, 11, 15
FINEST = 16
TAILS, RIGHT, BELOW = 3, 4, 5


def measured(grey: NDArray[np.floating], config: KvqConfig = CONFIG) -> NDArray[np.float32]:
    """Return the statistics [D, rows, columns, S] of grey frames [T, 64, 96]."""
    frames = np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
    return patch_statistics(normalise(torch.from_numpy(frames)[None]), config)[0].numpy()


def noise(seed: int, sigma: float) -> NDArray[np.float64]:
    return 128 + sigma * np.random.default_rng(seed).standard_normal((4, 64, 96))


def test_patches_are_measured_separately() -> None:
    grey = np.full((4, 64, 96), 128.0)
    clean = measured(grey)
    assert clean.shape == (2, 4, 6, CONFIG.num_statistics)
    grey[2, 16:32, 80:] += np.random.default_rng(0).normal(0, 20, (16, 16))
    changed = (measured(grey) != clean).any(-1)
    # The Gaussians of the bands connect patches of one fragment, but not fragments or slots.
    assert changed[1, 1, 5]
    assert not changed[0].any()
    assert not changed[1, 2:].any()
    assert not changed[1, :, :4].any()


def test_luma_statistics_are_exact() -> None:
    grey = np.full((4, 64, 96), 64.0)
    grey[:, :, 48:] = 1
    grey[:, 0, :] = 128
    found = measured(grey)[0]
    assert found[0, 0, [LARGEST, SMALLEST]] == pytest.approx([128 / 64 - 2, 64 / 64 - 2], abs=1e-3)
    assert found[1, 0, SPREAD] == pytest.approx(np.log(0.1) / 4 - 1, abs=1e-2)
    assert found[1, :, DARK].tolist() == [0, 0, 0, 2, 2, 2]
    assert found[1, 0, RED] == pytest.approx((64 - 123.675) / 58.395, abs=1e-4)


def test_noise_has_detail_and_blur_correlation() -> None:
    sharp = noise(0, 20.0)
    soft = 128 + 6 * (gaussian_filter(sharp, (0, 2, 2)) - 128)
    of_noise, of_blur = (measured(grey)[..., FINEST : FINEST + 6].mean((0, 1, 2)) for grey in (sharp, soft))
    assert of_noise[0] > of_blur[0] + 0.5
    assert (of_noise[[RIGHT, BELOW]] < 0.2).all()
    assert (of_blur[[RIGHT, BELOW]] > 0.8).all()
    # The fourth moment of a Gaussian is three times the square of the second.
    assert of_noise[TAILS] == pytest.approx(np.log(3) - 1, abs=0.15)


def test_grid_of_8_is_found_along_its_axis() -> None:
    for first in (0, 3):
        blocks = 128 + 10 * (((np.arange(96) + first) // 8) % 2)
        grey = np.broadcast_to(blocks, (4, 64, 96)) + np.random.default_rng(1).normal(0, 1, (4, 64, 96))
        found = measured(grey).mean((0, 1, 2))
        plain = measured(noise(1, 1.0)).mean((0, 1, 2))
        assert found[GRID_ALONG_ROWS] > plain[GRID_ALONG_ROWS] + 0.5
        assert found[GRID_ALONG_COLUMNS] == pytest.approx(plain[GRID_ALONG_COLUMNS], abs=0.2)


def test_steps_are_mean_differences() -> None:
    ramp = np.broadcast_to(np.arange(96.0) * 2, (4, 64, 96))
    # The last column of a patch inside a fragment has a step to the next patch; that of the fragment has none.
    assert measured(ramp)[0, 0, 0, STEPS_ALONG_ROWS] == pytest.approx(np.log(2.1) / 2, abs=1e-3)
    assert measured(ramp)[0, 0, 1, STEPS_ALONG_ROWS] == pytest.approx(np.log(2 * 15 / 16 + 0.1) / 2, abs=1e-3)


def test_change_is_zero_between_equal_frames() -> None:
    still = noise(2, 10.0)
    still[1] = still[0]
    found = measured(still)[..., 2 * OF_FRAME :]
    assert found.shape[-1] == 6
    assert np.allclose(found[0, ..., 0], np.log(0.5))
    assert (found[1, ..., 0] > 1).all()
    assert (found[1, ..., 2] < 0.5).all()


def test_statistics_of_extreme_frames_are_bounded() -> None:
    checked = np.zeros((4, 64, 96))
    checked[:, ::2, ::2] = checked[:, 1::2, 1::2] = 255
    for grey in (np.zeros((4, 64, 96)), np.full((4, 64, 96), 255.0), checked, noise(3, 200.0)):
        found = measured(grey)
        assert np.isfinite(found).all()
        assert np.abs(found).max() <= 4


def test_network_of_statistics_takes_any_size() -> None:
    network = build_network(CONFIG, {k: v.requires_grad_() for k, v in as_torch(untrained_tensors(CONFIG)).items()})
    clips = normalise(torch.randint(0, 256, (1, 3, 96, 160, 3), dtype=torch.uint8))
    maps = network(clips)
    assert maps.texture.shape == (1, 2, 3, 5)
    maps.scores().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_slots_of_one_frame_have_no_changes() -> None:
    single = dataclasses.replace(CONFIG, patch=(1, 16, 16), num_frames=2)
    assert measured(noise(4, 5.0)[:2], single).shape == (2, 4, 6, single.num_statistics)
    assert single.num_statistics == OF_FRAME


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistics": 2}, "Invalid statistics 2: expected 0 or 1"),
        ({"num_bands": 0}, "num_bands > 0 and stem_width = 0"),
        ({"stem_width": 8, "patch": (2, 4, 4)}, "num_bands > 0 and stem_width = 0"),
        ({"patch": (2, 4, 4)}, "Invalid patch of 4x4 pixels: .* a multiple of 8"),
        ({"patch": (2, 16, 8)}, "must be square"),
        ({"fragments": (8, 12)}, "Invalid patch of 16x16 pixels: .* fragments of 8x8 pixels"),
    ],
)
def test_sizes_that_exclude_statistics_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
