"""Catalogs whose names and types change from night to night: every value is stored, and no night blocks the next."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kvq_batch.catalog.selection import matching_indices
from kvq_batch.catalog.stored_rows import catalog_changes, stored_name
from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.check import check_tables
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Writer
from tests.support.results import make_catalog

HELPER_NAMES = [
    "row_index", "known", "today", "newest", "t", "k", "n", "f", "l", "v", "s", "c", "known_rows", "known_3", "today_3",
    "model_index", "value", "rank", "item", "attempt", "place", "__kvq_index", "rowid", "raw_catalog", "videos",
    "__filename", "__fragment_index", "__batch_index", "__last_in_fragment", "first_run_id", "last_run_id", "run_id",
    "commit_seq", "in_catalog", "catalog", "model", "best", "is_stale", "filename", "$catalog", "{differs}",
]  # fmt: skip


def show(tables: Tables, *columns: str) -> list[tuple[Any, ...]]:
    """Return the values of `columns` in the view `catalog`, in the order of the videos."""
    names = ", ".join('"{}"'.format(column.replace('"', '""')) for column in columns)
    with Session(Tables.open(tables.uri)) as session:
        rows = session.sql(f"SELECT {names} FROM catalog ORDER BY video_id").to_pylist()
    return [tuple(row[column] for column in columns) for row in rows]


def run_nights(folder: Path, *nights: pa.Table) -> list[list[Any]]:
    """Store one catalog per night, each by its own writer. Return the column `x` of the view after each night."""
    seen = []
    for number, catalog in enumerate(nights):
        tables = Tables.create(str(folder))
        writer = Writer(tables, f"run-{number}")
        rows = catalog_changes(tables, catalog, "nightly")
        if rows.num_rows:
            writer.write_catalog(rows)
        assert catalog_changes(tables, catalog, "nightly").num_rows == 0
        seen.append([row[0] for row in show(tables, "x")])
    return seen


def night(values: Sequence[Any], kind: pa.DataType | None = None) -> pa.Table:
    return make_catalog([f"v{index}" for index in range(len(values))], x=pa.array(values, kind))


@pytest.mark.parametrize(
    ("first", "second", "after_second"),
    [
        (night([1, 2]), night([1.5, 2.0]), [1.5, 2.0]),
        (night([1, 2]), night(["1", "A7"]), ["1", "A7"]),
        (night(["007"]), night([7]), ["7"]),
        (night([1.5]), night([2**60]), [str(2**60)]),
        (night([2**60]), night([1.5]), ["1.5"]),
        (night([True]), night([3]), ["3"]),
        (night([1], pa.int8()), night([300], pa.int16()), [300]),
        (night([1]), night([2**63], pa.uint64()), [str(2**63)]),
        (night([{"a": 1}]), night([{"a": 1, "b": "x"}]), [{"a": 1, "b": "x"}]),
        (night([{"a": 1}]), night([{"a": 1.5, "b": [{"c": 2}]}]), [{"a": 1.5, "b": [{"c": 2}]}]),
        (night([{"a": 1}]), night(["none"]), ["none"]),
        (night([[1]]), night([["x"]]), [["x"]]),
        (night([[1]]), night([{"a": 1}]), ['{"a": 1}']),
    ],
)  # fmt: skip
def test_changed_type_is_widened_or_text(
    tmp_path: Path, first: pa.Table, second: pa.Table, after_second: list[Any]
) -> None:
    seen = run_nights(tmp_path, first, second, first)
    assert seen[0] == first["x"].to_pylist()
    assert seen[1] == after_second
    # The values of the first night are back, in the type of the second.
    is_text = isinstance(after_second[0], str)
    assert is_text or [type(value) for value in seen[2]] == [type(value) for value in after_second]
    assert not [
        finding for finding in check_tables(Tables.open(str(tmp_path)), deep=True) if finding.kind != "files_not_in_log"
    ]


@pytest.mark.parametrize(
    ("empty", "real"),
    [
        ([[]], [[5]]),
        ([None], [5]),
        ([{"a": None}], [{"a": 5}]),
        ([[{"a": []}]], [[{"a": [5]}]]),
        ([{"a": {"b": None}}], [{"a": {"b": 5}}]),
    ],
)
def test_null_type_takes_real_values_later(tmp_path: Path, empty: list[Any], real: list[Any]) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-0")
    writer.write_catalog(catalog_changes(tables, night(empty), "nightly"))
    assert "x" not in tables.arrow_schema("catalog").names
    assert run_nights(tmp_path, night(real), night(empty), night(real)) == [real, empty, real]


def test_empty_struct_is_text(tmp_path: Path) -> None:
    assert run_nights(tmp_path, night([{}]), night([{"a": 1}]), night([{}])) == [["{}"], ['{"a": 1}'], ["{}"]]


@pytest.mark.parametrize("fields", [{"": 1}, {"a": 1, "A": 2}, {"a\0b": 1}])
def test_unusable_fields_are_text(tmp_path: Path, fields: dict[str, int]) -> None:
    ((text,),) = run_nights(tmp_path, night([fields]))
    assert json.loads(text) == fields


def test_every_helper_name_works_on_every_night(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    for number, values in enumerate(([1, 2], [1, 3], None, [4, 2])):
        videos = ["v0", "v1"] if number < 3 else ["v1", "v2"]
        catalog = make_catalog(videos)
        for index, name in enumerate(HELPER_NAMES if values is not None else ()):
            catalog = catalog.append_column(name, pa.array([1000 * index + value for value in values or ()]))
        rows = catalog_changes(tables, catalog, "nightly")
        Writer(tables, f"run-{number}").write_catalog(rows)
        stored = [stored_name(name, tables.arrow_schema("catalog").names) for name in HELPER_NAMES]
        expected = [
            (video, *(None if values is None else 1000 * index + values[row] for index in range(len(stored))))
            for row, video in enumerate(videos)
        ]
        assert show(tables, "video_id", *stored) == expected


def test_conditions_with_helper_names() -> None:
    catalog = make_catalog(["a", "b"], row_index=[7, 8], row_index_=[1, 2], catalog=[3, 4])
    assert matching_indices(catalog, "row_index = 8 AND catalog = 4 AND row_index_ = 2", "where").to_pylist() == [1]


def test_struct_named_like_an_alias(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    for number, name in enumerate(("n", "f", "l", "k", "t", "v", "raw_catalog", "known")):
        row = {"video_id": "x", "catalog": "y", "commit_seq": -1, "in_catalog": False}
        catalog = make_catalog(["a"]).append_column(name, pa.array([row]))
        Writer(tables, f"run-{number}").write_catalog(catalog_changes(tables, catalog, "nightly"))
        assert show(tables, "video_id", "catalog") == [("a", "nightly")]


@pytest.mark.parametrize("name", ["", "\0", "a\0b"])
def test_unusable_name_is_rejected(tmp_path: Path, name: str) -> None:
    tables = Tables.create(str(tmp_path))
    before = tables.delta("catalog").version()
    with pytest.raises(SpecError, match="rename it"):
        catalog_changes(tables, make_catalog(["a"]).append_column(name, [[1]]), "nightly")
    tables.refresh()
    assert tables.delta("catalog").version() == before


def test_names_are_compared_as_duckdb_does(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is not unique"):
        catalog_changes(None, make_catalog(["a"], K=[1]).append_column("\u212a", [[2]]), "nightly")
    tables = Tables.create(str(tmp_path))
    Writer(tables, "run").write_catalog(catalog_changes(tables, make_catalog(["a"], ß=[1], ss=[2]), "nightly"))
    assert show(tables, "ß", "ss") == [(1, 2)]


def test_unwritable_rows_leave_the_log_alone(tmp_path: Path) -> None:
    """Null ids reach the writer only through a bug; even then the schema must not change."""
    tables = Tables.create(str(tmp_path))
    rows = catalog_changes(tables, make_catalog(["a"], new=[1]), "nightly")
    broken = rows.set_column(0, "video_id", pa.nulls(1, pa.string()))
    writer = Writer(tables, "run")
    before = tables.delta("catalog").version()
    with pytest.raises(Exception, match="video_id must not be null"):
        writer.write_catalog(broken)
    tables.refresh()
    assert tables.delta("catalog").version() == before
    assert "new" not in tables.arrow_schema("catalog").names
