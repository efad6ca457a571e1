"""`tables check` finds every kind of damage, and reports no errors for intact tables or during a run."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties
from deltalake.transaction import AddAction, RemoveAction

from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.check import MAX_EXAMPLES, Finding, check_tables
from kvq_batch.tables.compaction import compact, store_file
from kvq_batch.tables.data_files import DataFile, make_data_file
from kvq_batch.tables.delta import LoggedFile, Tables
from kvq_batch.tables.schemas import find_schema
from kvq_batch.tables.writer import Batch, Writer
from tests.support.finished_run import fill, run_row
from tests.support.results import KVQ, make_batch, make_failures


def check(tables: Tables, deep: bool = False) -> list[Finding]:
    return check_tables(Tables.open(tables.uri, tables.options), deep)


def errors(findings: list[Finding]) -> set[tuple[str, str, str]]:
    return {(f.kind, f.table, f.subject) for f in findings if f.severity == "error"}


def test_intact_tables_have_no_findings(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = fill(uri, options).tables
    assert check(tables, deep=True) == []
    list(compact(tables))
    assert {f.kind for f in check(tables, deep=True)} == {"files_not_in_log"}


def test_running_run_causes_no_errors(tmp_path: Path) -> None:
    writer = fill(str(tmp_path))
    next_writer = Writer(Tables.open(str(tmp_path)), "run-2")
    next_writer.write_run(run_row("running", 0, 0, 5, 5))
    next_writer.commit(make_batch(["d"], KVQ))
    whole = make_batch(["e"], KVQ)
    next_writer.commit(Batch(maps=whole.maps))
    findings = check(writer.tables)
    assert errors(findings) == set()
    messages = {(f.kind, f.subject): f.message for f in findings}
    assert "of a running or a crashed run: 1 rows that no view shows" in messages["invisible", "run-2"]
    assert ("running", "run-2") in messages


def test_rows_of_crashed_run_are_reported_as_info(tmp_path: Path) -> None:
    writer = fill(str(tmp_path))
    crashed = Writer(Tables.open(str(tmp_path)), "run-2")
    crashed.write_run(run_row("running", 0, 0, 1, 1))
    whole = make_batch(["d", "e"], KVQ)
    crashed.commit(Batch(maps=whole.maps, clips=whole.clips))
    Writer(Tables.open(str(tmp_path)), "run-3").write_run(run_row("crashed", 0, 0, 1, 1), run_id="run-2")
    findings = check(writer.tables)
    assert errors(findings) == set()
    invisible = [(f.table, f.message) for f in findings if f.kind == "invisible"]
    assert [table for table, _ in invisible] == ["clips", "maps"]
    assert all("of a crashed run: 2 rows that no view shows" in message for _, message in invisible)


def first_file(tables: Tables, name: str) -> LoggedFile:
    return next(
        file for file in tables.data_files(name) if file.partition.get("model_id", KVQ.model_id) == KVQ.model_id
    )


def path_of(tables: Tables, name: str, file: LoggedFile) -> Path:
    return Path(tables.uri) / name / file.path


def rows_of(tables: Tables, name: str, file: LoggedFile) -> Any:
    return pq.ParquetFile(path_of(tables, name, file)).read()


def append(
    tables: Tables, name: str, file: DataFile, stats: dict[str, Any] | None = None, *removed: LoggedFile
) -> None:
    """Commit a data file without the checks of the writer."""
    store_file(tables, name, file)
    action: AddAction = file.action
    if stats is not None:
        action = dataclasses.replace(action, stats=json.dumps(json.loads(action.stats) | stats))
    removals = [RemoveAction(old.path, True, action.modification_time, old.size_bytes) for old in removed]
    tables.refresh(name)
    tables.delta(name).create_write_transaction(
        [action, *removals],
        mode="append",
        schema=tables.delta(name).schema(),
        partition_by=list(find_schema(name).partition_by),
        commit_properties=CommitProperties(),
    )
    tables.refresh(name)


def relog(tables: Tables, name: str, stats: dict[str, Any]) -> str:
    """Commit the first data file again, with other statistics in the log. Return its path."""
    old = first_file(tables, name)
    file = make_data_file(rows_of(tables, name, old), find_schema(name), old.partition, "relogged")
    append(tables, name, file, stats, old)
    return file.path


def test_missing_data_file_is_found(tmp_path: Path) -> None:
    tables = fill(str(tmp_path)).tables
    file = first_file(tables, "scores")
    path_of(tables, "scores", file).unlink()
    found = errors(check(tables))
    assert ("missing_file", "scores", file.path) in found
    # Rows that depend on it are reported too: clips of its videos, and the count of the run.
    assert ("run_scored", "scores", "run-1") in found


def test_empty_log_entry_is_found(tmp_path: Path) -> None:
    tables = fill(str(tmp_path)).tables
    newest = max((tmp_path / "scores" / "_delta_log").glob("*.json"))
    newest.write_bytes(b"")
    assert ("empty_log_entry", "scores", f"_delta_log/{newest.name}") in errors(check(tables))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda content: content[:-20], "wrong_size"),
        (lambda content: content[:-20] + b"x" * 20, "unreadable_file"),
    ],
)
def test_damaged_data_file_is_found(tmp_path: Path, damage: Callable[[bytes], bytes], kind: str) -> None:
    tables = fill(str(tmp_path)).tables
    file = first_file(tables, "maps")
    path = path_of(tables, "maps", file)
    path.write_bytes(damage(path.read_bytes()))
    assert (kind, "maps", file.path) in errors(check(tables))


@pytest.mark.parametrize("column", ["video_id", "texture"])
def test_damaged_column_under_intact_footer_is_found(tmp_path: Path, column: str) -> None:
    """Every check reads the key columns, and a deep one reads all columns."""
    tables = fill(str(tmp_path)).tables
    file = first_file(tables, "maps")
    path = path_of(tables, "maps", file)
    group = pq.read_metadata(path).row_group(0)
    chunk = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema.startswith(column))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    damaged = ("unreadable_file", "maps", file.path)
    assert damaged in errors(check(tables, deep=True))
    assert (damaged in errors(check(tables))) == (column == "video_id")


def test_damaged_data_file_on_s3_is_found(s3_prefix: Any) -> None:
    tables = fill(f"{s3_prefix.uri}/tables", s3_prefix.options).tables
    file, other = first_file(tables, "maps"), first_file(tables, "clips")
    content = s3_prefix.fs.cat_file(f"{s3_prefix.path}/tables/maps/{file.path}")
    s3_prefix.put(f"tables/maps/{file.path}", content[:-20] + b"x" * 20)
    s3_prefix.remove(f"tables/clips/{other.path}")
    found = errors(check(tables))
    assert {("unreadable_file", "maps", file.path), ("missing_file", "clips", other.path)} <= found


@pytest.mark.parametrize(
    ("stats", "kind"),
    [
        ({"numRecords": 4}, "wrong_row_count"),
        ({"minValues": {"video_id": "b", "commit_seq": 0}}, "wrong_bounds"),
        ({"maxValues": {"video_id": "z", "commit_seq": 1}}, "wrong_bounds"),
    ],
)
def test_wrong_log_statistics_are_found(tmp_path: Path, stats: dict[str, Any], kind: str) -> None:
    tables = fill(str(tmp_path)).tables
    path = relog(tables, "scores", stats)
    assert (kind, "scores", path) in errors(check(tables))


def test_wrong_column_type_is_found(tmp_path: Path) -> None:
    tables = fill(str(tmp_path)).tables
    old = first_file(tables, "scores")
    rows = rows_of(tables, "scores", old)
    rows = rows.set_column(rows.column_names.index("width_px"), "width_px", pa.array(["wide"] * rows.num_rows))
    file = make_data_file(rows, find_schema("scores"), old.partition, "typed")
    append(tables, "scores", file, None, old)
    assert ("wrong_type", "scores", file.path) in errors(check(tables))


@pytest.mark.parametrize("name", ["scores", "clips", "maps", "failures", "catalog"])
def test_duplicate_rows_are_found(tmp_path: Path, name: str) -> None:
    tables = fill(str(tmp_path)).tables
    old = max(tables.data_files(name), key=lambda file: file.low["commit_seq"])
    rows = rows_of(tables, name, old)
    append(tables, name, make_data_file(rows, find_schema(name), old.partition, "again"))
    videos = set(rows.column("video_id").to_pylist())
    assert {("duplicate", name, video) for video in videos} <= errors(check(tables))


def replaced_rows(tables: Tables, name: str, change: Callable[[Any], Any]) -> None:
    old = first_file(tables, name)
    rows = change(rows_of(tables, name, old))
    append(tables, name, make_data_file(rows, find_schema(name), old.partition, "changed"), None, old)


def test_wrong_number_of_clips_and_maps_is_found(tmp_path: Path) -> None:
    tables = fill(str(tmp_path)).tables
    replaced_rows(tables, "clips", lambda rows: rows.slice(1))
    replaced_rows(tables, "maps", lambda rows: rows.slice(0, rows.num_rows - 1))
    findings = check(tables)
    assert errors(findings) == {("clip_count", "clips", "a"), ("clip_count", "maps", "c")}
    assert any("found 1 clips of kvq-tiny@1-0123456789ab" in f.message for f in findings)


def test_missing_score_in_commit_is_found(tmp_path: Path) -> None:
    """A crash does not explain it: other scores of the commit exist."""
    tables = fill(str(tmp_path)).tables
    replaced_rows(tables, "scores", lambda rows: rows.slice(1))
    assert errors(check(tables)) == {
        ("without_score", "clips", "a"),
        ("without_score", "maps", "a"),
        ("run_scored", "scores", "run-1"),
    }


def test_wrong_counts_of_run_are_found(tmp_path: Path) -> None:
    writer = fill(str(tmp_path))
    writer.write_run(run_row("finished", 4, 2, 9))
    findings = check(writer.tables)
    assert errors(findings) == {("run_sums", "runs", "run-1")}
    assert "9 planned; 4 scored, 2 failed and 0 remaining are 6" in findings[0].message
    writer.write_run(run_row("finished", 5, 1, 6))
    assert errors(check(writer.tables)) == {("run_scored", "scores", "run-1"), ("run_failed", "failures", "run-1")}


def test_task_with_score_and_final_failure_is_found(tmp_path: Path) -> None:
    writer = fill(str(tmp_path))
    writer.commit(make_failures(["a"], KVQ))
    assert ("scored_and_failed", "scores", "a") in errors(check(writer.tables))


def test_rows_of_unknown_run_and_commit_are_found(tmp_path: Path) -> None:
    tables = fill(str(tmp_path)).tables
    old = first_file(tables, "scores")
    rows = rows_of(tables, "scores", old)
    ahead = pa.array([1 << 50] * rows.num_rows, pa.int64())
    rows = rows.set_column(rows.column_names.index("commit_seq"), "commit_seq", ahead)
    nobody = pa.array(["nobody"] * rows.num_rows)
    rows = rows.set_column(rows.column_names.index("run_id"), "run_id", nobody)
    append(tables, "scores", make_data_file(rows, find_schema("scores"), old.partition, "foreign"))
    findings = check(tables)
    assert ("ahead_of_log", "scores", "nobody") in errors(findings)
    assert [f.subject for f in findings if f.kind == "unknown_run"] == ["nobody"]


def test_findings_over_the_limit_are_counted(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    batch = make_batch([f"v{number:03d}" for number in range(MAX_EXAMPLES + 5)])
    writer.commit(batch)
    writer.commit(batch)
    found = [f for f in check(tables) if f.kind == "duplicate" and f.table == "scores"]
    assert len(found) == MAX_EXAMPLES + 1
    assert found[-1].message == "and 5 more"
