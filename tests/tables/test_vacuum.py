"""Vacuum deletes replaced files and orphans, and keeps what a run, a compaction or a reader may need."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.planning.plan import PLANS_FOLDER, make_plan
from kvq_batch.storage.options import StorageOptions, filesystem
from kvq_batch.tables.compaction import compact, merge_files, store_file
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold, read_holder
from kvq_batch.tables.schemas import DATA_TABLES
from kvq_batch.tables.session import Session
from kvq_batch.tables.vacuum import Retention, delete_leftovers, effective_retention, find_leftovers
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, make_batch, make_catalog

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def fill(uri: str, options: StorageOptions) -> Tables:
    tables = Tables.create(uri, options)
    writer = Writer(tables, "run-1")
    for number in range(3):
        writer.commit(make_batch([f"v{number}"], seed=number))
    return tables


def test_only_replaced_files_and_orphans_are_deleted(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = fill(uri, options)
    replaced = {(name, file.path) for name in DATA_TABLES for file in tables.data_files(name)}
    list(compact(tables))
    orphan = merge_files(tables, "maps", tables.data_files("maps"))
    store_file(tables, "maps", orphan)
    file_system, root = filesystem(uri, options)
    file_system.makedirs(f"{root}/{PLANS_FOLDER}", exist_ok=True)
    for beside in (f"{PLANS_FOLDER}/run-1.parquet", "lease.json"):
        file_system.pipe_file(f"{root}/{beside}", b"kept")

    assert list(find_leftovers(tables, 24, with_orphans=True)) == []
    known = list(find_leftovers(tables, 0, with_orphans=False))
    assert {(found.table, found.path) for found in known} == replaced
    everything = list(find_leftovers(tables, 0, with_orphans=True))
    assert {(f.table, f.path) for f in everything if f.kind == "orphan"} == {("maps", orphan.path)}
    assert {(f.table, f.path) for f in everything if f.kind == "replaced"} == replaced
    assert next(f for f in everything if f.kind == "orphan").size_bytes == len(orphan.content)
    assert all(abs(f.modified_at - datetime.now(UTC)) < timedelta(minutes=10) for f in everything)

    rows = tables.dataset("maps").to_table()
    delete_leftovers(tables, known, 0, with_orphans=False)
    assert {f.path for f in find_leftovers(tables, 0, with_orphans=True)} == {orphan.path}
    delete_leftovers(tables, list(find_leftovers(tables, 0, with_orphans=True)), 0, with_orphans=True)
    again = Tables.open(uri, options)
    assert list(find_leftovers(again, 0, with_orphans=True)) == []
    assert again.dataset("maps").to_table().equals(rows)
    for beside in (f"{PLANS_FOLDER}/run-1.parquet", "lease.json"):
        assert file_system.cat_file(f"{root}/{beside}") == b"kept"
    Writer(again, "run-2").commit(make_batch(["later"]))


def test_age_of_replaced_file_is_age_of_removal(tmp_path: Path) -> None:
    """A session that was opened before the compaction still reads month-old files."""
    tables = fill(str(tmp_path), StorageOptions())
    a_month_ago = time.time() - 30 * 86400
    for path in tmp_path.rglob("*.parquet"):
        os.utime(path, (a_month_ago, a_month_ago))
    list(compact(tables))
    assert list(find_leftovers(tables, 1, with_orphans=True)) == []
    orphan = merge_files(tables, "maps", tables.data_files("maps"))
    store_file(tables, "maps", orphan)
    assert list(find_leftovers(tables, 1, with_orphans=True)) == []
    os.utime(tmp_path / "maps" / orphan.path, (a_month_ago, a_month_ago))
    assert [found.path for found in find_leftovers(tables, 1, with_orphans=True)] == [orphan.path]


def test_retention_covers_the_running_run() -> None:
    holder = Holder("run-1", "nightly", "host", "boot", 1, 1, NOW - timedelta(hours=30, minutes=20))
    assert effective_retention(timedelta(days=7), None, NOW) == Retention(168)
    assert effective_retention(timedelta(days=7), holder, NOW) == Retention(168)
    for is_forced in (False, True):
        kept = effective_retention(timedelta(hours=3), holder, NOW, is_forced)
        assert kept.hours == 32
        assert "run run-1 of job 'nightly'" in kept.reason
        assert "retention is 32 h instead of 3 h" in kept.reason
    with pytest.raises(SpecError, match=r"--retention of 0 h.*--force"):
        effective_retention(timedelta(0), None, NOW)
    assert effective_retention(timedelta(0), None, NOW, is_forced=True) == Retention(0)


def test_uncommitted_files_of_running_run_are_kept(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = fill(uri, options)
    with hold(uri, options, Holder.this_process("run-2", "nightly")):
        store_file(tables, "maps", merge_files(tables, "maps", tables.data_files("maps")))
        kept = effective_retention(timedelta(0), read_holder(uri, options), datetime.now(UTC), is_forced=True)
        assert kept.hours == 2
        assert list(find_leftovers(tables, kept.hours, with_orphans=True)) == []
    kept = effective_retention(timedelta(0), read_holder(uri, options), datetime.now(UTC), is_forced=True)
    assert len(list(find_leftovers(tables, kept.hours, with_orphans=True))) == 1


def test_session_with_deleted_files_says_reopen(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = fill(uri, options)
    question = "SELECT video_id FROM scores ORDER BY 1"
    old_files = [file.path for file in tables.data_files("scores")]
    with Session(Tables.open(uri, options)) as session:
        list(compact(tables))
        assert session.sql(question).num_rows == 3
        delete_leftovers(tables, list(find_leftovers(tables, 0, with_orphans=False)), 0, with_orphans=False)
        with pytest.raises(SpecError, match=r"is missing: the tables were compacted after this session") as caught:
            session.sql(question)
        assert any(path in str(caught.value) for path in old_files)
        assert "\n" not in str(caught.value)
    stale = Tables.open(uri, options)
    with Session(stale) as session:
        assert session.sql(question).num_rows == 3
        file_system, root = stale.table_filesystem("scores")
        file_system.rm_file(f"{root}/{stale.data_files('scores')[0].path}")
        with pytest.raises(SpecError, match=r"but the log lists it\. Run `kvq-batch tables check`"):
            session.sql(question)
        with pytest.raises(SpecError, match=r"is missing: the tables were compacted while they were read, or"):
            make_plan(stale, make_catalog(["v0"]), "nightly", [KVQ])
