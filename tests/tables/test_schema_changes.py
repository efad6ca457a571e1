"""Changes of columns in the table `catalog`, next to other writers; and removal of columns that harm it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.shard import Shard
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.check import check_tables
from kvq_batch.tables.compaction import compact
from kvq_batch.tables.delta import FORMAT_KEY, Tables
from kvq_batch.tables.history import read_history
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.schema_changes import change_catalog_schema, drop_catalog_column, plan_drop
from kvq_batch.tables.schemas import CATALOG
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Writer
from tests.support.finished_run import fill
from tests.support.results import make_catalog

HARMFUL = [
    ("", pa.array([1, 2])),
    ("__filename", pa.array([1, 2])),
    ("x", pa.array([[], None], pa.list_(pa.null()))),
    ("x", pa.array([{"a": None}, None], pa.struct([("a", pa.null())]))),
]


def store_as_before(tables: Tables, name: str, values: pa.Array) -> None:
    """Store a column as releases did that did not check it: under this name and in this type."""
    rows = catalog_changes(None, make_catalog(["a", "b"]), "nightly").append_column(name, values)
    Writer(tables, "run-old").write_catalog(rows)


def view(tables: Tables, columns: str) -> list[dict[str, Any]]:
    with Session(Tables.open(tables.uri, tables.options)) as session:
        rows: list[dict[str, Any]] = session.sql(f"SELECT {columns} FROM catalog ORDER BY video_id").to_pylist()
    return rows


@pytest.mark.parametrize(("name", "values"), HARMFUL)
def test_harmful_column_is_found_and_dropped(tmp_path: Path, name: str, values: pa.Array) -> None:
    tables = Tables.create(str(tmp_path))
    store_as_before(tables, name, values)
    (found,) = [f for f in check_tables(Tables.open(tables.uri)) if f.kind in ("unusable_column", "untyped_column")]
    assert (found.severity, found.subject) == ("warning" if name == "x" else "error", name)
    assert "tables drop-column" in found.message

    # Such tables can be used meanwhile.
    assert len(view(tables, "video_id")) == 2
    changed = catalog_changes(Tables.open(tables.uri), make_catalog(["a", "c"], other=[1, 2]), "nightly")
    Writer(Tables.open(tables.uri), "run-2").write_catalog(changed)
    assert view(tables, "video_id, other") == [{"video_id": "a", "other": 1}, {"video_id": "c", "other": 2}]

    dropped = drop_catalog_column(tables.uri, StorageOptions(), name)
    assert (dropped.column, dropped.files, dropped.rows) == (name, 2, 5)
    opened = Tables.open(tables.uri)
    assert opened.arrow_schema("catalog").names == [*CATALOG.names, "other"]
    assert {f.severity for f in check_tables(opened, deep=True)} <= {"info", "warning"}
    assert view(tables, "video_id, other") == [{"video_id": "a", "other": 1}, {"video_id": "c", "other": 2}]


def test_null_type_of_earlier_release_gets_a_type(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    store_as_before(tables, "x", HARMFUL[2][1])
    catalog = make_catalog(["a", "b"], x=[[1], [2]])
    Writer(tables, "run-2").write_catalog(catalog_changes(tables, catalog, "nightly"))
    assert [row["x"] for row in view(tables, "x")] == [[1], [2]]
    assert not [f for f in check_tables(Tables.open(tables.uri), deep=True) if f.kind == "untyped_column"]


def test_drop_keeps_everything_else(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = fill(uri, options).tables
    catalog = make_catalog(["a", "b"], keep=["x", None], drop=[1, 2])
    Writer(tables, "run-2").write_catalog(catalog_changes(tables, catalog, "more"))
    before = view(tables, "* EXCLUDE (drop)")
    versions = {schema.name: tables.delta(schema.name).version() for schema in tables.schemas}
    drop_catalog_column(uri, options, "drop")
    opened = Tables.open(uri, options)
    assert view(opened, "*") == before
    metadata = opened.delta("catalog").metadata()
    assert (metadata.name, metadata.configuration[FORMAT_KEY]) == ("catalog", "2")
    comments = {field.name: (field.metadata or {}).get(b"comment") for field in opened.arrow_schema("catalog")}
    assert comments["uri"] == b"address of the video when this row was written, without credentials"
    changed = {name for name, version in versions.items() if opened.delta(name).version() != version}
    assert changed == {"catalog"}
    # Fencing is still in the log, and writers and compaction go on.
    Writer(opened, "run-3").write_catalog(catalog_changes(opened, make_catalog(["a"], keep=["y"]), "more"))
    list(compact(opened))
    assert not [f for f in check_tables(Tables.open(uri, options), deep=True) if f.severity == "error"]


def test_only_columns_of_users_can_be_dropped(tmp_path: Path) -> None:
    tables = fill(str(tmp_path)).tables
    with pytest.raises(SpecError, match=r"'uri' .* is a column of kvq-batch"):
        plan_drop(tables, "uri")
    with pytest.raises(SpecError, match="has no column 'nope'; the columns of your catalogs are: "):
        plan_drop(tables, "nope")


def test_tables_with_other_types_are_rejected_when_opened(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    change_catalog_schema(tables, pa.schema([("size_bytes", pa.string())]))
    for make in (Tables.open, Tables.open_if_any, Tables.create):
        with pytest.raises(SpecError, match="column 'size_bytes' of table 'catalog' has type string, expected int64"):
            make(str(tmp_path))


def test_history_names_changed_columns(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    store_as_before(tables, "x", pa.array([1, 2]))
    drop_catalog_column(tables.uri, StorageOptions(), "x")
    newest = read_history(Tables.open(tables.uri), "catalog", 1)[0]
    assert (newest.operation, newest.rows_added, newest.rows_removed) == ("columns", 2, 2)


def test_drop_waits_for_no_run(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    store_as_before(tables, "x", pa.array([1, 2]))
    holder = Holder.this_process("run-9", "nightly")
    with hold(tables.uri, StorageOptions(), holder), pytest.raises(SpecError, match="run-9"):
        drop_catalog_column(tables.uri, StorageOptions(), "x")
    assert "x" in Tables.open(tables.uri).arrow_schema("catalog").names


def test_rows_of_other_shards_are_converted_too(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    catalog = make_catalog(["a", "b"], n=[1, 2])
    one = Writer(Tables.open(tables.uri), "run-1", shard=Shard(1, 2))
    two = Writer(Tables.open(tables.uri), "run-2", shard=Shard(2, 2))
    one.write_catalog(catalog_changes(one.tables, catalog.slice(0, 1), "nightly"))
    # Made before the other shard changes the type, committed after it.
    rows = catalog_changes(two.tables, catalog.slice(1, 1), "nightly")
    wide = make_catalog(["a"], n=["A7"])
    one.write_catalog(catalog_changes(one.tables, wide, "nightly", Shard(1, 2)).filter(pa.array([True])))
    two.tables.refresh()
    two.write_catalog(rows)
    assert [row["n"] for row in view(tables, "n")] == ["A7", "2"]


def test_type_changed_under_a_writer_stops_it(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    store_as_before(tables, "n", pa.array([1, 2]))
    writer = Writer(Tables.open(tables.uri), "run-1")
    rows = catalog_changes(writer.tables, make_catalog(["a"], n=[5]), "nightly")
    store, written = writer._store, []

    def store_and_change(name: str, files: Any) -> None:
        store(name, files)
        written.append(name)
        change_catalog_schema(Tables.open(tables.uri), pa.schema([("n", pa.string())]))

    writer._store = store_and_change  # type: ignore[method-assign]
    with pytest.raises(FatalError, match="another process changed column 'n'"):
        writer.write_catalog(rows)
    assert written == ["catalog"]
    assert [row["n"] for row in view(tables, "n")] == ["1", "2"]
    assert not [f for f in check_tables(Tables.open(tables.uri), deep=True) if f.severity == "error"]
