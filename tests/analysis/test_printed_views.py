"""The printed views give the same rows in plain DuckDB, and some of them in Polars."""

from pathlib import Path

import duckdb
import polars as pl
import pytest

from kvq_batch.analysis.printed_views import print_views
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import TABLES
from kvq_batch.tables.session import Session
from kvq_batch.tables.views import RAW_PREFIX, VIEWS
from tests.support.finished_run import fill

IN_POLARS = {
    "models", "runs", "scores", "clips", "maps", "features", "failures", "labels", "opinions",
}  # fmt: skip


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    # A quote in the path must be quoted in SQL.
    folder = tmp_path_factory.mktemp("it's")
    fill(str(folder / "tables"))
    return str(folder / "tables")


def test_plain_duckdb_gives_the_same_rows(uri: str, tmp_path: Path) -> None:
    with Session(Tables.open(uri)) as session, duckdb.connect(str(tmp_path / "quality.duckdb")) as plain:
        plain.execute(print_views(session))
        for name in VIEWS:
            query = f'SELECT * FROM "{name}" ORDER BY ALL'
            expected = session.sql(query)
            found = plain.sql(query).to_arrow_table()
            assert found.column_names == expected.column_names, name
            assert found.to_pylist() == expected.to_pylist(), name
        assert plain.sql("SELECT count(*) FROM scores_latest").fetchall() == [(4,)]


def test_views_that_polars_runs(uri: str) -> None:
    """Polars lacks functions that the others use (arg_max, unnest of lists in step)."""
    tables = Tables.open(uri)
    names = {f"{RAW_PREFIX}{schema.name}": tables.dataset(schema.name).to_table() for schema in TABLES}
    context = pl.SQLContext({name: pl.DataFrame(table).lazy() for name, table in names.items()})
    with Session(tables) as session:
        for name, query in VIEWS.items():
            if name in IN_POLARS:
                frame = context.execute(query).collect()
                context.register(name, frame.lazy())
                assert frame.height == session.sql(f"SELECT * FROM {name}").num_rows, name
