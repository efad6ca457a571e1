"""Sources become segments: the same for the same seed, of the size that was asked for, never scaled up."""

import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kvq_batch.config.recipe import FramingMode, Segment, Step
from kvq_batch.domain.errors import LabelError, ProbeError, SpecError
from kvq_batch.labeling.degradations import apply
from kvq_batch.labeling.scenes import ALL_SCENES, make_scene, moving_view
from kvq_batch.labeling.segments import segment_of_frames, segment_of_scene, segment_of_still
from kvq_batch.media.synthesis import ClipShape

SEGMENT = Segment(num_frames=4, height_px=64, width_px=96, seed=1)
SHAPE = ClipShape(width_px=96, height_px=64, num_frames=4)


def frames(height: int = 150, width: int = 260) -> NDArray[np.uint8]:
    return make_scene("leaves", 1, ClipShape(width_px=width, height_px=height, num_frames=4))


def png(height: int = 150, width: int = 260) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frames(height, width)[0]).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("name", ALL_SCENES)
def test_a_scene_is_of_its_seed_and_moves(name: str) -> None:
    first, again, other = make_scene(name, 1, SHAPE), make_scene(name, 1, SHAPE), make_scene(name, 2, SHAPE)
    assert first.shape == (4, 64, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other) or name == "plate"
    assert all(not np.array_equal(first[t], first[t + 1]) for t in range(3))


@pytest.mark.parametrize("framing", ["native", "cover", "whole"])
def test_frames_get_the_size_of_the_segment(framing: FramingMode) -> None:
    segment = Segment(num_frames=4, height_px=64, width_px=96, framing=framing, seed=3)
    planes = segment_of_frames(frames(), 29.97, segment)
    assert (planes.num_frames, planes.height_px, planes.width_px) == (4, 64, 96)
    assert planes.frame_rate.denominator in (100, 1001)
    assert np.array_equal(planes.data, segment_of_frames(frames(), 29.97, segment).data)


def test_native_pixels_equal_the_source() -> None:
    source = frames()
    rgb = segment_of_frames(source, 25, SEGMENT).to_rgb().astype(int)
    differences = [
        np.abs(rgb[0, :, :, 1] - source[0, top : top + 64, left : left + 96, 1]).mean()
        for top in range(0, 150 - 64 + 1, 2)
        for left in range(0, 260 - 96 + 1, 2)
    ]
    # Coarser chroma changes green somewhat; the wrong place changes it ten times as much.
    assert min(differences) < 0.3 * np.median(differences)


def test_nothing_is_scaled_up() -> None:
    for framing in ("native", "cover", "whole"):
        segment = Segment(num_frames=4, height_px=160, width_px=96, framing=framing)
        with pytest.raises(LabelError, match="scaled up") as caught:
            segment_of_frames(frames(), 25, segment)
        assert caught.value.permanent
    with pytest.raises(LabelError, match="do not hold"):
        segment_of_still(png(60, 90), SEGMENT)


def test_a_still_at_rest_shows_its_own_pixels() -> None:
    source = frames()[0]
    view = moving_view(source, 64, 96, 4, SEGMENT.rng(), "rest")
    assert (view == view[0]).all()
    # Scaled down by a random factor first, unless the picture is as large as the view.
    exact = moving_view(source[:64, :96], 64, 96, 4, SEGMENT.rng(), "rest")
    assert np.array_equal(exact[0], source[:64, :96])


def test_a_slow_camera_moves_less_than_a_pixel_a_frame() -> None:
    source = frames(300, 500)[0]
    for seed in range(4):
        view = moving_view(source, 64, 96, 8, np.random.default_rng(seed), "slow").astype(int)
        change = np.abs(np.diff(view, axis=0)).mean((1, 2, 3))
        # The change over a step of one whole pixel, within a frame.
        assert (change > 0).all()
        assert change.mean() < np.abs(np.diff(view[0], axis=1)).mean()


def test_a_still_moves_and_is_of_its_seed() -> None:
    planes = segment_of_still(png(), SEGMENT)
    assert planes.num_frames == 4
    assert not np.array_equal(planes.data[0], planes.data[3])
    assert np.array_equal(planes.data, segment_of_still(png(), SEGMENT).data)
    other = Segment(num_frames=4, height_px=64, width_px=96, seed=2)
    assert not np.array_equal(planes.data, segment_of_still(png(), other).data)


def test_a_camera_never_looks_beyond_the_picture() -> None:
    for seed in range(40):
        picture = np.full((70, 100, 3), 200, np.uint8)
        view = moving_view(picture, 64, 96, 5, np.random.default_rng(seed))
        assert view.min() >= 199


def test_no_picture_is_refused() -> None:
    for data in (b"", b"<html></html>", png()[:2000]):
        with pytest.raises(ProbeError) as caught:
            segment_of_still(data, SEGMENT)
        assert (caught.value.code, caught.value.permanent) == ("not_an_image", True)


def test_an_unknown_scene_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown scene 'opera'"):
        segment_of_scene("opera", 1, SEGMENT)


def test_segments_of_a_scene_differ() -> None:
    one, two = (segment_of_scene("glow", 1, Segment(k, 2, 4, 64, 96)) for k in range(2))
    assert not np.array_equal(one.data, two.data)


def test_pre_degraded_reference_loses_detail() -> None:
    sharp = Segment(num_frames=4, height_px=64, width_px=96, seed=1)
    soft = replace(sharp, pre_degraded=(Step("blur", 2.0), Step("noise", 3.0)))
    one, two = (segment_of_scene("leaves", 1, segment) for segment in (sharp, soft))
    assert np.array_equal(two.data, apply(one, soft.pre_degraded, 2).data)
    assert not np.array_equal(one.data, two.data)
