"""The scale of a model, compared with the `mos` of SQL, and the cells that are called worst."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kvq_batch.analysis.quality_scale import QualityScale, load_scale, worst_cells
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.session import open_session
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, LUMA, make_batch, make_catalog, make_model, make_run


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("scale") / "tables")
    writer = Writer(Tables.create(uri), "run-1")
    writer.write_run(make_run([KVQ, LUMA]))
    calibrated = make_model(KVQ, "people", (91.0, 3.0, 0.3, -0.2), is_default=True)
    writer.write_models(pa.concat_tables([make_model(KVQ), calibrated, make_model(LUMA)]))
    catalog = make_catalog(["a", "b", "c"]).append_column("catalog", pa.array(["nightly"] * 3))
    writer.write_catalog(catalog.append_column("in_catalog", pa.array([True] * 3)))
    writer.commit(make_batch(["a", "b", "c"], KVQ))
    writer.commit(make_batch(["a", "b", "c"], LUMA, seed=7))
    return uri


def test_calibrated_values_are_the_mos_of_sql(tables: str) -> None:
    with open_session(tables) as session:
        scale = load_scale(session, KVQ.model_id)
        rows = session.sql(f"SELECT raw_score, mos FROM scores WHERE model_id = '{KVQ.model_id}'").to_pylist()
    assert (scale.unit, scale.low, scale.high) == ("mos", 0, 100)
    raw = np.array([row["raw_score"] for row in rows])
    assert scale.values(raw) == pytest.approx([row["mos"] for row in rows], rel=1e-12)


def test_bounds_without_calibration_are_those_of_all_maps(tables: str) -> None:
    with open_session(tables) as session:
        scale = load_scale(session, LUMA.model_id)
        cells = session.sql(f"SELECT texture FROM regions WHERE model_id = '{LUMA.model_id}'")["texture"].to_numpy()
    assert scale.unit == "raw score"
    assert scale.values(cells).tolist() == cells.tolist()
    # Quantiles over videos of the least and greatest cell: inside of the range of all cells, and nearly as wide.
    assert cells.min() <= scale.low < np.quantile(cells, 0.1)
    assert np.quantile(cells, 0.9) < scale.high <= cells.max() + 0.01


def test_extreme_raw_values_stay_finite() -> None:
    scale = QualityScale("mos", 0, 100, (90.0, 10.0, 0.3, 0.001))
    assert scale.values(np.array([-1e6, 1e6])) == pytest.approx([10, 90])
    assert scale.shares(np.array([-20, 0, 25, 100, 300])).tolist() == [0, 0, 0.25, 1, 1]


@pytest.mark.parametrize(
    ("low_cells", "expected"),
    [([], 0), ([(0, 0, 60.0)], 1), ([(0, 0, 78.0)], 0), ([(1, 1, 20.0), (4, 3, 10.0), (2, 2, 15.0), (3, 3, 5.0)], 3)],
)
def test_worst_cells_are_few_and_clearly_worse(low_cells: list[tuple[int, int, float]], expected: int) -> None:
    values = np.full((6, 5), 80.0)
    for row, col, value in low_cells:
        values[row, col] = value
    marked = worst_cells(values, QualityScale("mos", 0, 100))
    assert marked.shape == (6, 5)
    assert marked.sum() == expected
    if expected:
        assert values[marked].max() <= np.sort(values.ravel())[expected - 1]


def test_short_opinion_scales_keep_their_bounds(tmp_path: Path) -> None:
    writer = Writer(Tables.create(str(tmp_path / "tables")), "run-1")
    writer.write_models(make_model(KVQ, "konvid", (4.7, 1.2, 0.3, 0.2), is_default=True))
    with open_session(str(tmp_path / "tables")) as session:
        scale = load_scale(session, KVQ.model_id)
    assert (scale.low, scale.high, scale.text(3.14159)) == (1, 5, "3.14")
