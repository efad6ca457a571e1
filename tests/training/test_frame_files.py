"""Clips from frame files: what a batch reads, which views are drawn, and which files are rejected."""

from pathlib import Path

import numpy as np
import pytest

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.training.frame_files import FrameFiles
from kvq_batch.training.samples import Sample, seed_of

SHAPE, MAPS = (2, 8, 8, 3), (1, 2, 2)


@pytest.fixture
def files(tmp_path: Path) -> FrameFiles:
    views, cells = [], []
    for sample in range(3):
        paths = tuple(tmp_path / f"{sample}-{view}.npy" for view in range(2))
        for view, path in enumerate(paths):
            np.save(path, np.full(SHAPE, 10 * sample + view, np.uint8))
        views.append(paths)
        cells.append(tmp_path / f"{sample}-cells.npy" if sample else None)
    np.save(tmp_path / "1-cells.npy", np.full(MAPS, 0.5, np.float32))
    np.save(tmp_path / "2-cells.npy", np.full(MAPS, 0.7, np.float32))
    return FrameFiles([Sample(f"s{n}", f"s{n}", float(n)) for n in range(3)], views, cells)


def test_fixed_view_is_the_first(files: FrameFiles) -> None:
    files.check(SHAPE, MAPS)
    views = files.read([2, 0], None)
    assert views.clips[:, 0, 0, 0, 0].tolist() == [20, 0]
    assert views.labels.tolist() == [2.0, 0.0]
    assert views.cells is not None
    assert views.cells[0].tolist() == np.full(MAPS, np.float32(0.7)).tolist()
    assert np.isnan(views.cells[1]).all()
    assert files.read([0], None).cells is None


def test_view_depends_on_sample_and_draw_only(files: FrameFiles) -> None:
    drawn = {draw: files.read([0, 1, 2], draw).clips[:, 0, 0, 0, 0] % 10 for draw in range(20)}
    assert {view for views in drawn.values() for view in views.tolist()} == {0, 1}
    for draw, views in drawn.items():
        assert files.read([2], draw).clips[0, 0, 0, 0, 0] % 10 == views[2]


def test_missing_file_is_named_and_never_replaced(files: FrameFiles) -> None:
    files.views[1][1].unlink()
    with pytest.raises(SpecError, match=r"1-1\.npy \(no such file\)"):
        files.check(SHAPE, MAPS)
    draw = next(draw for draw in range(20) if seed_of(draw, "place", 1) % 2)
    with pytest.raises(FatalError, match=r"1-1\.npy can no longer be read"):
        files.read([1], draw)


def test_frames_of_another_shape_are_named(files: FrameFiles) -> None:
    np.save(files.views[2][0], np.zeros((2, 8, 9, 3), np.uint8))
    with pytest.raises(SpecError, match=r"2-0\.npy \(uint8 \[2, 8, 9, 3\], the network needs uint8 \[2, 8, 8, 3\]\)"):
        files.check(SHAPE, MAPS)


def test_damaged_file_is_named(files: FrameFiles) -> None:
    files.views[0][0].write_bytes(b"")
    with pytest.raises(SpecError, match=r"0-0\.npy"):
        files.check(SHAPE, MAPS)
