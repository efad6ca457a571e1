"""The LPVQ protocol, compared with scipy on the pictures."""

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
from kvq_batch.evaluation.regions import (
    RegionLabels,
    RegionSet,
    avg_pool,
    groups_of,
    read_region_set,
    region_rows,
    score_regions,
    write_regions,
)
from kvq_batch.metrics.ranks import Real
from tests.support.material import Material
from tests.support.region_set import GRID, NUM, SIZE_PX, make_region_set

CELLS = 14


class Brightness:
    """Scorer whose texture is the brightness of each cell plus the index of the time slot."""

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
    """Return the texture by the protocol: mean over time, then 2 x 2 average pooling."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("RGB")).astype(np.float64).mean(axis=2)
    side = SIZE_PX // CELLS
    cells = grey.reshape(CELLS, side, CELLS, side).mean(axis=(1, 3)) + np.arange(8).mean()
    pooled_cells: Real = cells.reshape(GRID, 2, GRID, 2).mean(axis=(1, 3))
    return pooled_cells


def test_metrics_match_scipy(tmp_path: Path) -> None:
    labels = make_region_set(tmp_path)
    scorer, reported = Brightness(), list[int]()
    rated = score_regions(scorer, read_region_set(tmp_path), reported.append)
    assert scorer.shapes == {(16, SIZE_PX, SIZE_PX, 3)}
    assert reported == list(range(1, NUM + 1))
    maps = [texture_of(tmp_path / "LPVQ" / f"{number}.png") for number in range(NUM)]
    inter, intra = region_rows(rated, n_resamples=200)
    pool = np.concatenate([cells.ravel() for cells in maps]), labels.ravel()
    assert inter["srcc"] == pytest.approx(stats.spearmanr(*pool).statistic, abs=1e-6)
    assert inter["plcc"] == pytest.approx(stats.pearsonr(*pool).statistic, abs=1e-6)
    each = [(cells.ravel(), own.ravel()) for cells, own in zip(maps, labels, strict=True)]
    assert intra["srcc"] == pytest.approx(np.mean([stats.spearmanr(*pair).statistic for pair in each]), abs=1e-6)
    assert intra["plcc"] == pytest.approx(np.mean([stats.pearsonr(*pair).statistic for pair in each]), abs=1e-6)
    assert (inter["files"], inter["cells"]) == (NUM, NUM * GRID * GRID)
    # Each picture is brighter than the one before it, independently of the labels.
    assert intra["srcc"] > inter["srcc"] + 0.1
    for row in (inter, intra):
        assert row["srcc_low"] < row["srcc"] < row["srcc_high"]
        assert row["remarks"] == ""


def test_binary_labels_give_auc(tmp_path: Path) -> None:
    labels = make_region_set(tmp_path, "ours", is_binary=True, has_clean=True)
    rated = score_regions(Brightness(), read_region_set(tmp_path))
    rows = {(row["texture"], row["cells_of"]): row for row in region_rows(rated, n_resamples=100)}
    maps = np.array([texture_of(tmp_path / "ours" / f"{number}.png") for number in range(NUM)])
    clean = np.array([texture_of(tmp_path / "ours" / f"clean{number}.png") for number in range(NUM)])

    def area(cells: Real, own: Real) -> float:
        good, bad = cells[own == 1], cells[own == 0]
        return float(stats.mannwhitneyu(good, bad).statistic / (good.size * bad.size))

    # Textures are float32: a few cells tie that do not tie in float64.
    assert rows["alone", "inter-sample"]["auc"] == pytest.approx(area(maps, labels), abs=1e-3)
    assert rows["alone", "intra-sample"]["auc"] == pytest.approx(
        np.mean([area(cells, own) for cells, own in zip(maps, labels, strict=True)]), abs=1e-3
    )
    assert rows["against the clean file", "inter-sample"]["auc"] == pytest.approx(area(maps - clean, labels), abs=1e-3)
    # The difference from the clean file does not contain the scene.
    assert rows["against the clean file", "intra-sample"]["auc"] > rows["alone", "intra-sample"]["auc"]


def test_without_resamples_there_are_no_intervals(tmp_path: Path) -> None:
    make_region_set(tmp_path)
    rated = score_regions(Brightness(), read_region_set(tmp_path))
    for row, expected in zip(region_rows(rated, n_resamples=0), region_rows(rated, n_resamples=50), strict=True):
        for name in ("srcc", "plcc", "auc"):
            assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (expected[name], None, None)
        assert row["remarks"] == ""


def test_groups_come_from_a_pattern(tmp_path: Path) -> None:
    make_region_set(tmp_path)
    regions = read_region_set(tmp_path)
    groups = groups_of(regions, r"^([0-4])?")
    assert [group is None for group in groups] == [False] * 5 + [True] * 3
    groups = groups_of(regions, "[0-3]|[4-7]")
    rows = region_rows(score_regions(Brightness(), regions), ["low" if g < "4" else "high" for g in groups], 100)
    assert [(row["group"], row["files"]) for row in rows] == [
        *[("(all)", 8)] * 2, *[("high", 4)] * 2, *[("low", 4)] * 2
    ]  # fmt: skip
    assert "4 files are too few for an interval" in rows[2]["remarks"]
    with pytest.raises(SpecError, match=r"does not match '4\.png'"):
        groups_of(regions, "[0-3]")
    with pytest.raises(SpecError, match="not a regular expression"):
        groups_of(regions, "(")


def test_files_hold_rows_and_cells(tmp_path: Path) -> None:
    labels = make_region_set(tmp_path, has_clean=True)
    rated = score_regions(Brightness(), read_region_set(tmp_path))
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


def test_video_uses_the_sampling_of_the_model(tmp_path: Path, material: Material) -> None:
    path = material("h264.mp4")
    scorer = Brightness()
    (rated,) = score_regions(scorer, RegionSet("ours", (RegionLabels(path, np.arange(6.0).reshape(2, 3)),)))
    assert scorer.shapes == {(32, SIZE_PX, SIZE_PX, 3)}
    assert rated.texture.shape == (2, 3)


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (1, 1), (3, 5), (14, 14), (28, 28)])
def test_pooling_is_weighted_by_area(rows: int, columns: int) -> None:
    cells = np.random.default_rng(0).normal(size=(14, 14))
    fine = np.kron(cells, np.ones((rows * 2, columns * 2)))
    expected = fine.reshape(rows, fine.shape[0] // rows, columns, fine.shape[1] // columns).mean(axis=(1, 3))
    np.testing.assert_allclose(avg_pool(cells, rows, columns), expected, atol=1e-12)


def test_constant_map_has_no_order(tmp_path: Path) -> None:
    make_region_set(tmp_path)
    rated = score_regions(Brightness(factor=0.0), read_region_set(tmp_path))
    inter, intra = region_rows(rated, n_resamples=100)
    assert (inter["srcc"], intra["srcc"]) == (None, None)
    assert (inter["auc"], intra["auc"]) == (0.5, 0.5)
    assert "all equal: no order" in inter["remarks"]


def test_invalid_models_and_files_are_rejected(tmp_path: Path) -> None:
    make_region_set(tmp_path)
    regions = read_region_set(tmp_path)
    with pytest.raises(SpecError, match="has no texture map"):
        score_regions(Brightness(is_blind=True), regions)
    with pytest.raises(ScoreError, match=r"0\.png: the model returned no texture map"):
        score_regions(Brightness(factor=float("nan")), regions)
    (tmp_path / "LPVQ" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=r"3\.png cannot be read as a picture"):
        score_regions(Brightness(), regions)
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "LPVQ" / "3.png")
    with pytest.raises(DecodeError, match="Store it as 8-bit RGB"):
        score_regions(Brightness(), regions)
