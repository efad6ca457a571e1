"""The LPVQ protocol, against the same figures computed by scipy directly from the pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from kvq_batch.domain.errors import DecodeError, ScoreError, SpecError
from kvq_batch.domain.frames import FrameRequest, Sampling
from kvq_batch.domain.scorer import ModelCard, Prediction, ScorerSpec
from kvq_batch.evaluation.region_labels import RegionLabels, RegionSet, read_region_set
from kvq_batch.evaluation.regions import groups_of, pooled, rate_regions, region_rows, write_regions
from kvq_batch.metrics.ranks import Real
from tests.support.material import Material
from tests.support.region_set import GRID, NUM, SIZE_PX, make_region_set

CELLS = 14


class Brightness:
    """A scorer whose texture is the brightness of each cell, plus the number of the slot."""

    def __init__(self, is_blind: bool = False, factor: float = 1.0) -> None:
        card = ModelCard("brightness", "1", "0" * 64, "handcrafted", "a scorer of the tests")
        frames = FrameRequest(Sampling(), (SIZE_PX, SIZE_PX))
        self.spec = ScorerSpec(card, frames, maps=() if is_blind else ("texture",))
        self.shapes: set[tuple[int, ...]] = set()
        self._factor = factor

    def score(self, clips: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        found = []
        for clip in clips:
            self.shapes.add(clip.shape)
            side = SIZE_PX // CELLS
            cells = clip.astype(np.float32).mean(axis=3).reshape(-1, 2, CELLS, side, CELLS, side).mean(axis=(1, 3, 5))
            slots = np.arange(len(cells), dtype=np.float32)[:, None, None]
            found.append(Prediction(0.0, texture=(cells + slots) * np.float32(self._factor)))
        return found


def texture_of(path: Path) -> Real:
    """What the protocol makes of a picture: means over time, then 2 x 2 average pooling."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("RGB")).astype(np.float64).mean(axis=2)
    side = SIZE_PX // CELLS
    cells = grey.reshape(CELLS, side, CELLS, side).mean(axis=(1, 3)) + np.arange(8).mean()
    pooled_cells: Real = cells.reshape(GRID, 2, GRID, 2).mean(axis=(1, 3))
    return pooled_cells


def test_figures_are_those_of_the_protocol_by_scipy(tmp_path: Path) -> None:
    labels = make_region_set(tmp_path)
    scorer, heard = Brightness(), list[int]()
    rated = rate_regions(scorer, read_region_set(tmp_path), heard.append)
    assert scorer.shapes == {(16, SIZE_PX, SIZE_PX, 3)}
    assert heard == list(range(1, NUM + 1))
    maps = [texture_of(tmp_path / "LPVQ" / f"{number}.png") for number in range(NUM)]
    inter, intra = region_rows(rated, n_resamples=200)
    pool = np.concatenate([cells.ravel() for cells in maps]), labels.ravel()
    assert inter["srcc"] == pytest.approx(stats.spearmanr(*pool).statistic, abs=1e-6)
    assert inter["plcc"] == pytest.approx(stats.pearsonr(*pool).statistic, abs=1e-6)
    each = [(cells.ravel(), own.ravel()) for cells, own in zip(maps, labels, strict=True)]
    assert intra["srcc"] == pytest.approx(np.mean([stats.spearmanr(*pair).statistic for pair in each]), abs=1e-6)
    assert intra["plcc"] == pytest.approx(np.mean([stats.pearsonr(*pair).statistic for pair in each]), abs=1e-6)
    assert (inter["files"], inter["cells"]) == (NUM, NUM * GRID * GRID)
    # Each picture is lighter than the one before it, for no reason that the labels know.
    assert intra["srcc"] > inter["srcc"] + 0.1
    for row in (inter, intra):
        assert row["srcc_low"] < row["srcc"] < row["srcc_high"]
        assert row["remarks"] == ""


def test_labels_of_two_values_give_the_area_under_the_roc_curve(tmp_path: Path) -> None:
    labels = make_region_set(tmp_path, "ours", is_binary=True, has_clean=True)
    rated = rate_regions(Brightness(), read_region_set(tmp_path))
    rows = {(row["texture"], row["cells_of"]): row for row in region_rows(rated, n_resamples=100)}
    maps = np.array([texture_of(tmp_path / "ours" / f"{number}.png") for number in range(NUM)])
    clean = np.array([texture_of(tmp_path / "ours" / f"clean{number}.png") for number in range(NUM)])

    def area(cells: Real, own: Real) -> float:
        good, bad = cells[own == 1], cells[own == 0]
        return float(stats.mannwhitneyu(good, bad).statistic / (good.size * bad.size))

    # Textures are float32, and a few cells tie there that do not here.
    assert rows["alone", "inter-sample"]["auc"] == pytest.approx(area(maps, labels), abs=1e-3)
    assert rows["alone", "intra-sample"]["auc"] == pytest.approx(
        np.mean([area(cells, own) for cells, own in zip(maps, labels, strict=True)]), abs=1e-3
    )
    assert rows["against the clean file", "inter-sample"]["auc"] == pytest.approx(area(maps - clean, labels), abs=1e-3)
    # The scene is no longer in the way.
    assert rows["against the clean file", "intra-sample"]["auc"] > rows["alone", "intra-sample"]["auc"]


def test_groups_are_what_a_pattern_finds_in_names(tmp_path: Path) -> None:
    make_region_set(tmp_path)
    regions = read_region_set(tmp_path)
    groups = groups_of(regions, r"^([0-4])?")
    assert [group is None for group in groups] == [False] * 5 + [True] * 3
    groups = groups_of(regions, "[0-3]|[4-7]")
    rows = region_rows(rate_regions(Brightness(), regions), ["low" if g < "4" else "high" for g in groups], 100)
    assert [(row["group"], row["files"]) for row in rows] == [
        *[("(all)", 8)] * 2, *[("high", 4)] * 2, *[("low", 4)] * 2
    ]  # fmt: skip
    assert "4 files are too few for an interval" in rows[2]["remarks"]
    with pytest.raises(SpecError, match=r"finds nothing in '4\.png'"):
        groups_of(regions, "[0-3]")
    with pytest.raises(SpecError, match="no regular expression"):
        groups_of(regions, "(")


def test_files_hold_rows_and_cells(tmp_path: Path) -> None:
    labels = make_region_set(tmp_path, has_clean=True)
    rated = rate_regions(Brightness(), read_region_set(tmp_path))
    rows = region_rows(rated, n_resamples=100)
    written = write_regions(rated, rows, tmp_path / "out")
    assert [path.name for path in written] == ["regions.csv", "regions.parquet", "cells.csv", "cells.parquet"]
    assert pq.read_table(tmp_path / "out" / "regions.parquet").to_pylist() == rows
    cells = pq.read_table(tmp_path / "out" / "cells.parquet").to_pylist()
    assert [cell["label"] for cell in cells] == labels.ravel().tolist()
    assert cells[GRID]["row"] == 1
    assert cells[0]["change"] == pytest.approx(
        cells[0]["texture"] - texture_of(tmp_path / "LPVQ" / "clean0.png")[0, 0], abs=1e-4
    )


def test_a_video_gives_the_frames_that_the_model_draws(tmp_path: Path, material: Material) -> None:
    path = material("h264.mp4")
    scorer = Brightness()
    (rated,) = rate_regions(scorer, RegionSet("ours", (RegionLabels(path, np.arange(6.0).reshape(2, 3)),)))
    assert scorer.shapes == {(32, SIZE_PX, SIZE_PX, 3)}
    assert rated.texture.shape == (2, 3)


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (1, 1), (3, 5), (14, 14), (28, 28)])
def test_pooling_to_any_grid_is_the_mean_over_area(rows: int, columns: int) -> None:
    cells = np.random.default_rng(0).normal(size=(14, 14))
    fine = np.kron(cells, np.ones((rows * 2, columns * 2)))
    expected = fine.reshape(rows, fine.shape[0] // rows, columns, fine.shape[1] // columns).mean(axis=(1, 3))
    np.testing.assert_allclose(pooled(cells, rows, columns), expected, atol=1e-12)


def test_a_constant_map_orders_nothing(tmp_path: Path) -> None:
    make_region_set(tmp_path)
    rated = rate_regions(Brightness(factor=0.0), read_region_set(tmp_path))
    inter, intra = region_rows(rated, n_resamples=100)
    assert (inter["srcc"], intra["srcc"]) == (None, None)
    assert (inter["auc"], intra["auc"]) == (0.5, 0.5)
    assert "all equal: no order" in inter["remarks"]


def test_what_cannot_be_rated_is_refused(tmp_path: Path) -> None:
    make_region_set(tmp_path)
    regions = read_region_set(tmp_path)
    with pytest.raises(SpecError, match="makes no texture map"):
        rate_regions(Brightness(is_blind=True), regions)
    with pytest.raises(ScoreError, match=r"0\.png: the model gave no texture, or NaN"):
        rate_regions(Brightness(factor=float("nan")), regions)
    (tmp_path / "LPVQ" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=r"3\.png: cannot be read as a picture"):
        rate_regions(Brightness(), regions)
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "LPVQ" / "3.png")
    with pytest.raises(DecodeError, match="store it as 8 bit RGB"):
        rate_regions(Brightness(), regions)
