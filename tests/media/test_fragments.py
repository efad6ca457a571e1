"""Fragments: native pixels from the middle of every cell, at the same indices in every frame, from one decode."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.video import Window
from kvq_batch.media.decode import Decoding, decode_clips
from kvq_batch.media.decoders import open_reader
from kvq_batch.media.probe import VideoLimits, probe
from kvq_batch.media.resize import patch_offsets, resize, splice
from tests.support.material import Material


def coded(height: int, width: int) -> NDArray[np.uint8]:
    """Return a frame whose first two channels are the row and the column of the pixel, modulo 256."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("num_pixels", "num_wanted", "num_patches"), [(448, 224, 7), (1080, 224, 7), (541, 96, 3)])
def test_patches_are_in_the_middle_of_cells(num_pixels: int, num_wanted: int, num_patches: int) -> None:
    offsets = patch_offsets(num_pixels, num_wanted, num_patches).reshape(num_patches, -1)
    cell = num_pixels / num_patches
    assert (np.diff(offsets, axis=1) == 1).all()
    for i, patch in enumerate(offsets):
        assert i * cell - 1 <= patch[0]
        assert patch[-1] < (i + 1) * cell
        assert abs((patch[0] + patch[-1] + 1) / 2 - (i + 0.5) * cell) <= 1


def test_pixels_are_those_of_the_frame() -> None:
    frame = coded(200, 256)
    out = np.empty((64, 96, 3), np.uint8)
    splice(frame, (2, 3), out)
    rows, columns = patch_offsets(200, 64, 2), patch_offsets(256, 96, 3)
    assert (out[:, :, 0] == (rows % 256)[:, None]).all()
    assert (out[:, :, 1] == (columns % 256)[None, :]).all()


@pytest.mark.parametrize(("height", "width"), [(64, 300), (240, 100), (30, 40)])
def test_small_frame_is_enlarged_in_its_shape(height: int, width: int) -> None:
    frame = coded(height, width)
    out = np.empty((224, 224, 3), np.uint8)
    splice(frame, (7, 7), out)
    factor = max(224 / height, 224 / width)
    size = (max(224, int(np.ceil(height * factor))), max(224, int(np.ceil(width * factor))))
    larger = resize(frame, size)
    expected = larger[patch_offsets(size[0], 224, 7)[:, None], patch_offsets(size[1], 224, 7)[None, :]]
    assert (out == expected).all()


@pytest.mark.parametrize(("size", "grid"), [((224, 224), (7, 6)), (None, (7, 7)), ((224, 224), (0, 7))])
def test_grid_must_divide_the_frame(size: tuple[int, int] | None, grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="fragments"):
        FrameRequest(size=size, fragments=grid)


def test_one_decode_serves_all_requests(material: Material) -> None:
    path = material("h264.mkv")
    probed = probe(path, VideoLimits())
    sampling = Sampling(num_fragments=2, frames_per_fragment=2)
    requests = [
        FrameRequest(sampling, None),
        FrameRequest(sampling, (64, 96), fragments=(2, 3)),
        FrameRequest(sampling, (64, 96)),
    ]
    reader, _ = open_reader("pyav")
    window = Window(0.0, probed.facts.duration_s)
    (clip,) = decode_clips(path, probed, [window], requests, "k", range(1), Decoding(reader))
    native, spliced, resized = (answer.pixels for answer in clip.frames)
    for frame, patches in zip(native, spliced, strict=True):
        expected = np.empty((64, 96, 3), np.uint8)
        splice(frame, (2, 3), expected)
        assert (patches == expected).all()
    assert (resized == resize(native, (64, 96))).all()
    assert (resized != spliced).any()
