"""Tables are created, opened, read and extended in the same way on a local path and on S3."""

import dataclasses
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.video import VideoFacts
from kvq_batch.planning.past_runs import read_past_runs
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.check import check_tables
from kvq_batch.tables.delta import FORMAT_KEY, Tables
from kvq_batch.tables.schemas import DATA_TABLES, FORMAT_VERSION, SCORES, TABLES, find_schema, make_rows
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, LUMA, make_batch

CURRENT: dict[str, Any] = {"configuration": {FORMAT_KEY: str(FORMAT_VERSION)}, "raise_if_key_not_exists": False}
"""Arguments of `DeltaTable.create` for tables of the format that this release supports."""


def test_tables_are_created_once(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    first = Tables.create(uri, options)
    versions = {schema.name: first.delta(schema.name).version() for schema in TABLES}
    again = Tables.create(uri, options)
    assert {schema.name: again.delta(schema.name).version() for schema in TABLES} == versions
    opened = Tables.open(uri, options)
    for schema in TABLES:
        assert opened.arrow_schema(schema.name).equals(schema.arrow())
        assert opened.dataset(schema.name).count_rows() == 0


def test_opening_missing_tables_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere.*no tables here"):
        Tables.open(str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_missing_bucket_is_rejected(s3_prefix: Any) -> None:
    with pytest.raises(SpecError, match="no-such-bucket"):
        Tables.create("s3://no-such-bucket-here/tables", s3_prefix.options)


def test_file_in_place_of_tables_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpecError, match="file"):
        Tables.create(str(tmp_path / "file"))


def test_unknown_table_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Unknown table 'score'"):
        Tables.create(str(tmp_path)).delta("score")


def test_filter_on_added_column_finds_new_rows(tables_location: tuple[str, StorageOptions]) -> None:
    """A filter on the new column finds new data files; older ones read as null."""
    uri, options = tables_location
    tables = Tables.create(uri, options)
    writer = Writer(tables, "run-1")
    writer.commit(make_batch(["old"]))
    tables.add_columns("scores", [pa.field("noise", pa.float64()), pa.field("label", pa.string())])
    batch = make_batch(["new"])
    writer.commit(dataclasses.replace(batch, scores=batch.scores.append_column("noise", pa.array([0.5]))))
    writer.commit(make_batch(["without"]))
    dataset = Tables.open(uri, options).dataset("scores")
    assert dataset.to_table(filter=pc.field("noise") > 0.1).column("video_id").to_pylist() == ["new"]
    connection = duckdb.connect()
    connection.register("scores", dataset)
    found = connection.sql("SELECT video_id, noise, label FROM scores ORDER BY ALL").fetchall()
    assert found == [("new", 0.5, None), ("old", None, None), ("without", None, None)]
    assert connection.sql("SELECT video_id FROM scores WHERE noise = 0.5").fetchall() == [("new",)]
    assert len(connection.sql("SELECT video_id FROM scores WHERE noise IS NULL").fetchall()) == 2


def test_create_adds_missing_columns(tmp_path: Path) -> None:
    old = pa.schema([field for field in SCORES.arrow() if field.name != "decoder"])
    DeltaTable.create(str(tmp_path / "scores"), old, partition_by=["model_id"], **CURRENT)
    tables = Tables.create(str(tmp_path))
    assert tables.arrow_schema("scores").field("decoder").type == pa.string()


def test_missing_columns_are_read_as_null(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    old = DeltaTable.create(
        str(tmp_path / "runs"),
        pa.schema([("run_id", pa.string()), ("commit_seq", pa.int64())]),
        mode="overwrite",
        **CURRENT,
    )
    tables.refresh("runs")
    assert {field.name for field in old.schema().fields} == {"run_id", "commit_seq"}
    assert tables.dataset("runs").schema.names == ["run_id", "commit_seq", *find_schema("runs").names[2:]]
    assert read_past_runs(tables, [("kvq", "f", "cpu")]) == []
    with Session(tables) as session:
        assert session.sql("SELECT state, core_hours FROM runs").to_pylist() == []


def test_column_of_other_type_is_rejected(tmp_path: Path) -> None:
    other = pa.schema([pa.field(f.name, pa.string() if f.name == "raw_score" else f.type) for f in SCORES.arrow()])
    DeltaTable.create(str(tmp_path / "scores"), other, partition_by=["model_id"], **CURRENT)
    with pytest.raises(SpecError, match="raw_score"):
        Tables.create(str(tmp_path))


def test_filters_skip_data_files(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    writer.commit(make_batch(["a", "b"]))
    writer.commit(make_batch(["m", "n"]))
    writer.commit(make_batch(["a"], LUMA))
    dataset = tables.dataset("scores")

    def num_files(condition: Any) -> int:
        return len(list(dataset.get_fragments(filter=condition)))

    assert num_files(pc.field("video_id") == "n") == 1
    assert num_files(pc.field("model_id") == LUMA.model_id) == 1
    assert num_files(pc.field("model_id") == KVQ.model_id) == 2
    assert num_files(pc.field("commit_seq") > writer.commit_seq) == 0


def test_compacted_table_reads_the_same(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    for number in range(4):
        writer.commit(make_batch([f"v{number}"], seed=number))
    before = {name: tables.dataset(name).to_table().sort_by("video_id") for name in DATA_TABLES}
    for name in DATA_TABLES:
        DeltaTable(str(tmp_path / name)).optimize.compact()
    tables.refresh()
    assert len(tables.delta("scores").file_uris()) == 1
    for name in DATA_TABLES:
        assert tables.dataset(name).to_table().sort_by("video_id").equals(before[name])
    assert tables.dataset("maps").to_table(filter=pc.field("model_id") == KVQ.model_id).num_rows == 4


def test_scores_have_all_video_facts() -> None:
    arrow = {"int": pa.types.is_integer, "float": pa.types.is_floating, "bool": pa.types.is_boolean}
    schema = SCORES.arrow()
    for field in dataclasses.fields(VideoFacts):
        kind = field.type if isinstance(field.type, str) else field.type.__name__
        assert arrow.get(kind, pa.types.is_string)(schema.field(field.name).type), field.name


def test_columns_are_described_and_never_unsigned() -> None:
    for schema in TABLES:
        assert len(set(schema.names)) == len(schema.names)
        for column in schema.columns:
            assert column.comment
            assert "uint" not in str(column.type)


def test_make_rows_rejects_unknown_columns() -> None:
    with pytest.raises(ValueError, match="raw_scores"):
        make_rows("scores", [{"video_id": "a", "raw_scores": 1.0}])
    rows = make_rows("scores", [{"video_id": "a", "outputs": {"x": 1.0}}])
    assert rows.column("outputs").to_pylist() == [[("x", 1.0)]]
    assert "run_id" not in rows.column_names
    assert find_schema("scores").row_schema().names == rows.column_names


def test_missing_added_table_is_empty_until_next_run(
    tables_location: tuple[str, StorageOptions],
) -> None:
    uri, options = tables_location
    tables = Tables.create(uri, options)
    Writer(tables, "run-1").commit(make_batch(["a"]))
    file_system, root = tables.table_filesystem("labels")
    file_system.rm(root, recursive=True)
    old = Tables.open(uri, options)
    assert "labels" not in {schema.name for schema in old.schemas}
    assert old.dataset("labels").count_rows() == 0
    with Session(old) as session:
        counts = session.sql("SELECT (SELECT count(*) FROM labels) AS labels, (SELECT count(*) FROM scores) AS scores")
    assert counts.to_pylist() == [{"labels": 0, "scores": 1}]
    assert not [finding for finding in check_tables(old) if finding.severity == "error"]
    with pytest.raises(SpecError, match="'labels' does not exist yet"):
        old.delta("labels")
    assert Tables.create(uri, options).delta("labels").version() == 0


def test_missing_required_table_is_rejected(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = Tables.create(uri, options)
    file_system, root = tables.table_filesystem("maps")
    file_system.rm(root, recursive=True)
    with pytest.raises(SpecError, match="'maps' is missing"):
        Tables.open(uri, options)
