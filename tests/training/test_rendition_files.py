"""Views of renditions: pixels, labels, reproducible draws, and rejected files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.training.frame_files import RenditionFiles, ViewLayout
from kvq_batch.training.samples import Sample

LAYOUT = ViewLayout(
    input_size=(16, 16), grid=(4, 4), is_cut=True, slot_frames=2, num_slots=4, frame_slots=(0, 1, 2, 3), flip=False
)
LABELS = (90.0, 30.0)
HEIGHT, WIDTH = 40, 60


@pytest.fixture
def files(tmp_path: Path) -> RenditionFiles:
    """Two renditions of one reference. Each pixel encodes its rendition (red), row (green) and column (blue)."""
    frames, cells = [], []
    for rendition, label in enumerate(LABELS):
        pixels = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
        pixels[..., 0] = 100 * rendition + np.arange(4)[:, None, None]
        pixels[..., 1], pixels[..., 2] = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
        frames.append(tmp_path / f"{rendition}.npy")
        np.save(frames[-1], pixels)
        cells.append(tmp_path / f"{rendition}-cells.npy")
        np.save(cells[-1], np.full((4, 5, 7), label, np.float32) + np.arange(4, dtype=np.float32)[:, None, None])
    samples = [Sample(f"v{n}", "scene", label, frames_id="same") for n, label in enumerate(LABELS)]
    return RenditionFiles(samples, frames, cells, LAYOUT)


def test_fixed_view_is_cut_as_for_scoring(files: RenditionFiles) -> None:
    files.check()
    views = files.read([1], None)
    assert views.clips.shape == (1, 4, 16, 16, 3)
    assert views.labels.tolist() == [30.0]
    # Cells have 10 x 15 pixels, the patches in their middle 4 x 4.
    assert views.clips[0, 0, :, 0, 1].tolist() == [3, 4, 5, 6, 13, 14, 15, 16, 23, 24, 25, 26, 33, 34, 35, 36]
    assert views.clips[0, 0, 0, :4, 2].tolist() == [5, 6, 7, 8]


def test_drawn_view_is_one_labelled_slot(files: RenditionFiles) -> None:
    seen = set()
    for draw in range(30):
        views = files.read([0], draw)
        assert views.clips.shape == (1, 2, 16, 16, 3)
        first = int(views.clips[0, 0, 0, 0, 0])
        assert views.clips[0, 1, 0, 0, 0] == first + 1
        assert views.cells is not None
        # Frames 0 and 1 are in slots 0 and 1 of the labels; the label of the view is their mean.
        assert np.all(views.cells == 90 + first + 0.5)
        assert views.labels[0] == 90 + first + 0.5
        rows = views.clips[0, 0, :, 0, 1].reshape(4, 4)
        assert np.all(np.diff(rows.astype(int)) == 1)
        assert np.all((rows[:, 0] >= 10 * np.arange(4)) & (rows[:, 3] < 10 * np.arange(1, 5)))
        seen.add((first, rows[0, 0]))
    assert {first for first, _ in seen} == {0, 2}
    assert len(seen) > 6


def test_mixture_keeps_the_label_of_each_cell(files: RenditionFiles) -> None:
    mixing = dataclasses.replace(files, layout=dataclasses.replace(LAYOUT, mix=1.0))
    kinds = set()
    for draw in range(20):
        views = mixing.read([0], draw)
        rendition = views.clips[0, 0, ::4, ::4, 0] // 100
        assert views.cells is not None
        assert np.array_equal(rendition, views.cells[0, 0] < 60)
        assert views.labels[0] == pytest.approx(views.cells.mean())
        kinds.add(int(rendition.sum()))
    assert 0 in kinds
    assert len(kinds) > 3


def test_flips_move_pixels_and_cells_together(files: RenditionFiles) -> None:
    flipped = dataclasses.replace(files, layout=dataclasses.replace(LAYOUT, mix=1.0, flip=True))
    orientations = set()
    for draw in range(60):
        views = flipped.read([0], draw)
        assert views.cells is not None
        assert np.array_equal(views.clips[0, 0, ::4, ::4, 0] // 100, views.cells[0, 0] < 60)
        # The directions in which green (row) and blue (column) increase identify the orientation.
        frame = views.clips[0, 0].astype(int)
        orientations.add((*np.sign(frame[-1, 0] - frame[0, 0])[1:], *np.sign(frame[0, -1] - frame[0, 0])[1:]))
    assert len(orientations) == 8


def test_contrast_keeps_labels(files: RenditionFiles) -> None:
    for path in files.frames:
        # Values in the middle of the range are not clipped.
        np.save(path, np.load(path) // 2 + 90)
    changed = dataclasses.replace(files, layout=dataclasses.replace(LAYOUT, contrast=1.5))
    gains = []
    for draw in range(40):
        plain, other = files.read([0], draw), changed.read([0], draw)
        assert np.array_equal(plain.labels, other.labels)
        gains.append(np.ptp(other.clips[..., 1].astype(int)) / np.ptp(plain.clips[..., 1].astype(int)))
    assert 0.6 < min(gains) < 0.8
    assert 1.25 < max(gains) < 1.6


def test_view_depends_on_index_and_draw_only(files: RenditionFiles) -> None:
    mixing = dataclasses.replace(files, layout=dataclasses.replace(LAYOUT, mix=0.5, flip=True))
    both, alone = mixing.read([0, 1], 7), mixing.read([1], 7)
    assert np.array_equal(both.clips[1], alone.clips[0])
    assert both.cells is not None
    assert alone.cells is not None
    assert np.array_equal(both.cells[1], alone.cells[0])
    assert not np.array_equal(mixing.read([1], 8).clips, alone.clips)


def test_renditions_share_positions_but_not_mixtures(files: RenditionFiles) -> None:
    layout = dataclasses.replace(LAYOUT, flip=True)
    flipped = dataclasses.replace(files, layout=layout)
    positions = set()
    for draw in range(10):
        views = flipped.read([0, 1], draw)
        # Green and blue encode the position of a pixel.
        assert np.array_equal(views.clips[0, 0, ..., 1:], views.clips[1, 0, ..., 1:])
        positions.add(views.clips[0].tobytes())
    assert len(positions) == 10
    mixing = dataclasses.replace(files, layout=dataclasses.replace(layout, mix=1.0))
    cells = [mixing.read([0, 1], draw).cells for draw in range(10)]
    assert any(found is not None and not np.array_equal(found[0] < 60, found[1] >= 60) for found in cells)


def test_uncut_views_are_whole_frames(files: RenditionFiles, tmp_path: Path) -> None:
    for path in files.frames:
        np.save(path, np.load(path)[:, :16, :16])
    whole = dataclasses.replace(files, layout=dataclasses.replace(LAYOUT, is_cut=False))
    whole.check()
    assert whole.read([0], 3).clips[0, 0, :, 0, 1].tolist() == list(range(16))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("1.npy", (4, 12, 60, 3), "60x12 pixels, the network needs 16x16"),
        ("1.npy", (4, 40, 61, 3), "another rendition of the same frames is"),
        ("1.npy", (2, 40, 60, 3), "expected uint8 with 4 frames"),
        ("1-cells.npy", (3, 5, 7), "expected float32 with 4 slots"),
    ],
)
def test_unsuitable_files_are_named(
    files: RenditionFiles, tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    np.save(tmp_path / name, np.zeros(shape, np.float32 if "cells" in name else np.uint8))
    with pytest.raises(SpecError, match=f"1.npy .*{message}"):
        files.check()


def test_missing_file_is_named(files: RenditionFiles) -> None:
    files.cells[1].unlink()
    with pytest.raises(SpecError, match=r"no such file: .*1-cells\.npy"):
        files.check()
