"""NSS features equal those that the authors' MATLAB code wrote (golden_nss.npz)."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kvq_batch.domain.errors import DecodeError
from kvq_batch.features.chunks import chunks
from kvq_batch.features.imresize import imresize
from kvq_batch.features.nss_maps import convert_to_rgb, frame_maps
from kvq_batch.features.rapique import basic_features, nss_features, spatial_features
from kvq_batch.features.scene_statistics import fit_aggd, fit_ggd, mscn, shape_grid
from tests.goldens.study import recipe

GOLDEN = np.load(Path(recipe.__file__).parent / "golden_nss.npz", allow_pickle=False)
Real = NDArray[np.float64]
# Blocks of a grey frame's chroma maps: rounding noise decides their statistics.
GREY_NOISE = np.repeat(np.isin(np.arange(20), range(8, 18)), 34)


def assert_features(found: Real, expected: Real) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(recipe.RESIZES))
def test_resize_equals_matlab(name: str) -> None:
    found = imresize(recipe.resize_input(name), recipe.RESIZES[name][3])
    np.testing.assert_allclose(found.astype(float), GOLDEN[f"resize.{name}"].astype(float), rtol=0, atol=1e-9)


def test_mscn_and_fits_equal_matlab() -> None:
    found = mscn(recipe.statistics_map(*recipe.MAPS["m31x40"]))
    for name, value in (("m", found.coefficients), ("sigma", found.sigma), ("mu", found.mu)):
        np.testing.assert_allclose(value, GOLDEN[f"mscn.{name}"], rtol=1e-8, atol=1e-8)
    values = GOLDEN["fit.vector"][None]
    grid = shape_grid(0.1, 6.0)
    assert_features(np.array(fit_ggd(values, grid)), GOLDEN["fit.ggd"])
    for given, name in ((values, "fit.aggd"), (np.abs(values) + 0.01, "fit.aggd_positive")):
        fit = fit_aggd(given, grid)
        assert_features(np.array([fit.shape, fit.mean, fit.left, fit.right]), GOLDEN[name])


@pytest.mark.parametrize("name", sorted(recipe.MAPS))
def test_basic_features_equal_matlab(name: str) -> None:
    assert_features(basic_features(recipe.statistics_map(*recipe.MAPS[name])), GOLDEN[f"basic.{name}"])


def test_flat_map_has_exact_values() -> None:
    found = basic_features(np.full((20, 30), 7.0))
    assert found[:4].tolist() == [0.1, 0.0, 2.0**-52, np.inf]
    assert np.isnan(found[[5, 6, 7]]).all()


def test_maps_equal_matlab() -> None:
    found = np.stack(list(frame_maps(recipe.rgb(*recipe.FRAMES["f48x64"]))))
    np.testing.assert_allclose(found, GOLDEN["maps.f48x64"], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", sorted(recipe.FRAMES))
def test_spatial_features_equal_matlab(name: str) -> None:
    assert_features(spatial_features(recipe.rgb(*recipe.FRAMES[name])), GOLDEN[f"spatial.{name}"])


def test_grey_frame_equals_matlab_where_defined() -> None:
    found = spatial_features(recipe.grey(211, 48, 64))
    assert_features(found[~GREY_NOISE], GOLDEN["spatial.gray48"][~GREY_NOISE])


@pytest.mark.parametrize("name", sorted(recipe.CLIPS))
def test_chunks_and_video_vectors_equal_matlab(name: str) -> None:
    seed, num, height, width, rate = recipe.CLIPS[name]
    planned = [
        [c.centre, c.previous, c.following, c.temporal[0], c.temporal[-1], len(c.temporal)] for c in chunks(num, rate)
    ]
    assert planned == GOLDEN[f"clip.{name}.chunks"].tolist()
    frames = recipe.clip(seed, num, height, width)
    video, of_chunks = nss_features(frames.__getitem__, num, rate)
    assert_features(of_chunks, GOLDEN[f"nss.{name}.rvs.chunks"])
    assert_features(video, GOLDEN[f"nss.{name}.rvs"])


def test_first_release_converts_colours_otherwise() -> None:
    seed, num, height, width, rate = recipe.CLIPS["c48"]
    frames = recipe.clip(seed, num, height, width)
    _, of_chunks = nss_features(frames.__getitem__, num, rate, "vztu")
    assert_features(of_chunks, GOLDEN["nss.c48.vztu.chunks"])
    y, u, v = (plane.astype(float) for plane in frames[chunks(num, rate)[0].previous])
    assert (convert_to_rgb(y, imresize(u, 2.0), imresize(v, 2.0), "vztu") == GOLDEN["clip.c48.prev_rgb.vztu"]).all()


def test_videos_without_a_chunk_are_rejected() -> None:
    with pytest.raises(DecodeError, match="it needs 17"):
        chunks(16, 30)
    with pytest.raises(DecodeError, match="frame rate is 0"):
        chunks(100, 0)
