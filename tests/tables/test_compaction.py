"""Compaction changes no query result: alone, beside writers and other compactions, and after a kill."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from kvq_batch.domain.errors import FatalError
from kvq_batch.planning.plan import make_plan
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.check import Finding, check_tables
from kvq_batch.tables.compaction import (
    Compaction,
    choose_groups,
    compact,
    merge_files,
    plan_compaction,
    replace_files,
    store_file,
)
from kvq_batch.tables.data_files import make_data_file, statistics
from kvq_batch.tables.delta import LoggedFile, Tables
from kvq_batch.tables.schemas import DATA_TABLES, find_schema
from kvq_batch.tables.session import Session
from kvq_batch.tables.vacuum import delete_leftovers, find_leftovers
from kvq_batch.tables.writer import Batch, Writer
from tests.support.proxy import DENIED, SLOW_DOWN, Fault, FaultProxy, Lost, Reset
from tests.support.results import KVQ, LUMA, make_batch, make_catalog, make_failures, make_model, make_run
from tests.support.s3 import S3Location

QUESTIONS = ("scores_latest", "regions", "failures", "clips", "maps", "catalog", "models", "runs")
ROOT = Path(__file__).parents[2]


def fill(uri: str, options: StorageOptions) -> Writer:
    """Make small commits of two models: unsorted overlapping ids, a video scored twice, failures, changed content."""
    tables = Tables.create(uri, options)
    writer = Writer(tables, "run-1")
    writer.write_run(make_run([KVQ, LUMA]))
    writer.write_models(make_model(calibration="lsvq", b=(1.0, 5.0, 0.3, 0.1), is_default=True))
    writer.write_models(make_model(LUMA))
    videos = [f"shows/season-1/{number:04d}" for number in (7, 3, 9, 1, 8, 2)]
    writer.write_catalog(as_versions(videos[:4]))
    writer.write_catalog(as_versions(videos[4:]))
    for number, video in enumerate(videos):
        writer.commit(make_batch([video, f"{video}-b"], KVQ, seed=number, num_clips=2))
    for number, video in enumerate(videos[:3]):
        writer.commit(make_batch([video], LUMA, seed=number))
        writer.commit(make_failures([f"{video}-broken"], KVQ))
    writer.commit(make_batch([videos[0]], KVQ, content="etag:0", seed=99))
    writer.write_run(make_run([KVQ, LUMA], state="finished"))
    return writer


def as_versions(videos: list[str]) -> Any:
    rows = make_catalog(videos).append_column("catalog", pa.array(["nightly"] * len(videos)))
    return rows.append_column("in_catalog", pa.array([True] * len(videos)))


def answers(uri: str, options: StorageOptions) -> dict[str, Any]:
    tables = Tables.open(uri, options)
    with Session(tables) as session:
        found = {name: session.sql(f"SELECT * FROM {name} ORDER BY ALL") for name in QUESTIONS}
    catalog = make_catalog([f"shows/season-1/{number:04d}" for number in range(12)])
    plan = make_plan(tables, catalog, "nightly", [KVQ, LUMA])
    return {**found, "tasks": plan.tasks, "counts": plan.counts, "current": plan.num_current}


def errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def test_compaction_changes_no_result_and_writers_continue(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    writer = fill(uri, options)
    before = answers(uri, options)
    done = list(compact(Tables.open(uri, options)))
    assert {(c.table, c.partition): c.files_after for c in done} == {
        ("catalog", ""): 1,
        ("scores", KVQ.model_id): 1,
        ("scores", LUMA.model_id): 1,
        ("clips", KVQ.model_id): 1,
        ("clips", LUMA.model_id): 1,
        ("maps", KVQ.model_id): 1,
        ("maps", LUMA.model_id): 1,
        ("failures", ""): 1,
        ("models", ""): 1,
        ("runs", ""): 1,
    }
    assert answers(uri, options) == before
    assert list(compact(Tables.open(uri, options))) == []

    writer.commit(make_batch(["later"]))
    newer = Writer(Tables.open(uri, options), "run-2")
    newer.commit(make_batch(["newest"]))
    list(compact(Tables.open(uri, options)))
    with pytest.raises(FatalError, match="taken over"):
        writer.commit(make_batch(["stale"]))
    newer.commit(make_batch(["newest-2"]))
    rows = Tables.open(uri, options).dataset("scores").to_table().column("video_id").to_pylist()
    assert {"later", "newest", "newest-2"} <= set(rows)
    assert "stale" not in rows


def test_merged_files_are_sorted_and_match_the_log(tmp_path: Path) -> None:
    uri = str(tmp_path / "tables")
    fill(uri, StorageOptions())
    tables = Tables.open(uri)
    list(compact(tables))
    for name in ("scores", "clips", "maps"):
        for file in tables.data_files(name):
            rows = pq.ParquetFile(tmp_path / "tables" / name / file.path).read()
            keys = list(zip(*(rows.column(key).to_pylist() for key in find_schema(name).sort_by), strict=True))
            assert keys == sorted(keys)
            assert file.num_rows == rows.num_rows
            for column in ("video_id", "commit_seq"):
                bounds = pc.min_max(rows.column(column)).as_py()
                assert (file.low[column], file.high[column]) == (bounds["min"], bounds["max"])
    assert tables.dataset("scores").count_rows(filter=pc.field("video_id") == "shows/season-1/0009") == 2
    assert (tmp_path / "tables" / "scores" / "_delta_log" / "_last_checkpoint").exists()


def test_merged_file_has_small_row_groups(tmp_path: Path) -> None:
    """A query for one video reads one row group, not the whole file."""
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    cells = pa.scalar([1] * 8000, pa.list_(pa.int8()))
    for start in (0, 700):
        maps = make_batch([f"v{number:04d}" for number in range(start, start + 700)]).maps
        for name in ("texture", "saliency"):
            maps = maps.set_column(maps.column_names.index(name), name, pa.repeat(cells, maps.num_rows))
        writer.commit(Batch(maps=maps))
    footer = pq.read_metadata(pa.BufferReader(merge_files(tables, "maps", tables.data_files("maps")).content))
    assert footer.num_rows == 1400
    assert footer.num_row_groups == 3


def test_only_small_neighbours_of_one_partition_are_grouped() -> None:
    def logged(name: str, size: int, seq: int, model: str = "m", rows: int | None = 10) -> LoggedFile:
        return LoggedFile(name, size, rows, {"model_id": model}, {"commit_seq": seq}, {"commit_seq": seq})

    files = [
        logged("d", 40, 4),
        logged("a", 40, 1),
        logged("full", 90, 2),
        logged("b", 40, 3),
        logged("other", 10, 1, "n"),
        logged("uncounted", 10, 5, rows=None),
        logged("many", 10, 6, rows=240_000),
        logged("e", 40, 7),
    ]
    assert [[p.path for p in group] for group in choose_groups(files, 100)] == [["a", "b"], ["d", "e"]]
    assert choose_groups(files, 41) == []


def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "tables")
    fill(uri, StorageOptions())
    tables = Tables.open(uri)
    versions = [tables.delta(name).version() for name in DATA_TABLES]
    plans = plan_compaction(tables)
    sizes = [file.size_bytes for file in tables.data_files("maps") if file.partition["model_id"] == LUMA.model_id]
    assert Compaction("maps", LUMA.model_id, 3, 1, sum(sizes), None) in plans
    tables.refresh()
    assert [tables.delta(name).version() for name in DATA_TABLES] == versions


def test_second_concurrent_compaction_is_rejected(tables_location: tuple[str, StorageOptions]) -> None:
    """delta-rs alone accepts both, and every row is duplicated."""
    uri, options = tables_location
    writer = fill(uri, options)
    rows = Tables.open(uri, options).dataset("scores").to_table().num_rows
    first, second = Tables.open(uri, options), Tables.open(uri, options)
    made = {}
    for tables in (first, second):
        group = choose_groups(tables.data_files("scores"), 1 << 20)[0]
        made[tables] = (group, merge_files(tables, "scores", group))
        store_file(tables, "scores", made[tables][1])
    writer.commit(make_batch(["between"]))
    replace_files(first, "scores", *made[first])
    with pytest.raises(FatalError, match="another compaction of table 'scores' is running"):
        replace_files(second, "scores", *made[second])
    again = Tables.open(uri, options)
    assert again.dataset("scores").to_table().num_rows == rows + 1
    file_system, root = again.table_filesystem("scores")
    assert file_system.exists(f"{root}/{made[first][1].path}")
    assert not file_system.exists(f"{root}/{made[second][1].path}")
    # If the answer to the first commit was lost, the retry finds that it landed.
    replace_files(first, "scores", *made[first])
    assert Tables.open(uri, options).dataset("scores").to_table().num_rows == rows + 1


def test_files_that_contradict_the_log_are_not_merged(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    writer.commit(make_batch(["a", "b"]))
    whole = tables.data_files("scores")[0]
    rows = pq.ParquetFile(tmp_path / "scores" / whole.path).read()
    cases: list[tuple[str, dict[str, Any]]] = [
        ("fewer", {"numRecords": 3}),
        ("narrow", {"numRecords": 2, "minValues": {"video_id": "b", "commit_seq": 0}}),
    ]
    for stem, stats in cases:
        file = make_data_file(rows, find_schema("scores"), whole.partition, stem)
        (tmp_path / "scores" / file.path).write_bytes(file.content)
        stated = statistics(pq.read_metadata(pa.BufferReader(file.content))) | stats
        logged = LoggedFile(
            file.path, file.action.size, stated["numRecords"], whole.partition, stated["minValues"], stated["maxValues"]
        )
        with pytest.raises(FatalError, match=r"(the log has 5 rows|outside the bounds in the log)"):
            merge_files(tables, "scores", [whole, logged] if stem == "fewer" else [logged])


def test_files_of_older_schema_and_delta_rs_are_merged(tmp_path: Path) -> None:
    uri = str(tmp_path / "tables")
    fill(uri, StorageOptions())
    # delta-rs escapes the '@' of the partition in the paths of files it writes.
    DeltaTable(f"{uri}/scores").optimize.compact()
    tables = Tables.open(uri)
    tables.add_columns("scores", [pa.field("noise", pa.float64())])
    writer = Writer(tables, "run-2")
    batch = make_batch(["new"])
    writer.commit(type(batch)(batch.maps, batch.clips, None, batch.scores.append_column("noise", pa.array([0.5]))))
    before = answers(uri, StorageOptions())
    list(compact(Tables.open(uri)))
    assert answers(uri, StorageOptions()) == before
    assert len(Tables.open(uri).data_files("scores")) == 2
    assert errors(check_tables(Tables.open(uri))) == []


_WRITER = """
import sys
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.writer import Writer
from tests.support.results import make_batch
writer = Writer(Tables.open(sys.argv[1]), "run-2")
for number in range(30):
    writer.commit(make_batch([f"beside-{number}"], seed=number))
    print(number, flush=True)
"""


def test_compaction_beside_writer_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "tables")
    fill(uri, StorageOptions())
    before = Tables.open(uri).dataset("scores").to_table().column("video_id").to_pylist()
    merges_beside = 0
    command = [sys.executable, "-c", _WRITER, uri]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            merges_beside += sum(1 for _ in compact(Tables.open(uri)))
    assert process.returncode == 0
    assert merges_beside > 3
    for name in ("scores", "maps", "clips"):
        rows = Tables.open(uri).dataset(name).to_table().column("video_id").to_pylist()
        assert sorted(row for row in rows if row.startswith("beside")) == sorted(f"beside-{n}" for n in range(30))
    rows = Tables.open(uri).dataset("scores").to_table().column("video_id").to_pylist()
    assert sorted(row for row in rows if not row.startswith("beside")) == sorted(before)
    assert errors(check_tables(Tables.open(uri), deep=True)) == []


# Killed after the file is stored and before its commit.
_KILLED = """
import os, signal, sys
from kvq_batch.tables import compaction
from kvq_batch.tables.delta import Tables
compaction.replace_files = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
list(compaction.compact(Tables.open(sys.argv[1])))
"""


def test_kill_before_commit_leaves_tables_intact(tmp_path: Path) -> None:
    uri = str(tmp_path / "tables")
    fill(uri, StorageOptions())
    before = answers(uri, StorageOptions())
    process = subprocess.run([sys.executable, "-c", _KILLED, uri], cwd=ROOT, check=False)
    assert process.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "tables").rglob("*-merged-*.parquet")
    assert answers(uri, StorageOptions()) == before
    assert errors(check_tables(Tables.open(uri), deep=True)) == []
    (found,) = find_leftovers(Tables.open(uri), 0, with_orphans=True)
    assert (found.kind, tmp_path / "tables" / found.table / found.path) == ("orphan", left)
    assert list(compact(Tables.open(uri)))
    assert answers(uri, StorageOptions()) == before
    kept = Tables.open(uri)
    delete_leftovers(kept, list(find_leftovers(kept, 0, with_orphans=True)), 0, with_orphans=True)
    assert not left.exists()
    assert answers(uri, StorageOptions()) == before


@pytest.mark.parametrize("where", [r"/scores/model_id.*-merged-.*\.parquet", r"/scores/_delta_log/.*\.json"])
@pytest.mark.parametrize("fault", [SLOW_DOWN, Lost(), Reset()], ids=repr)
def test_transient_store_fault_loses_no_row(
    fault: Fault, where: str, s3_prefix: S3Location, fault_proxy: FaultProxy
) -> None:
    """A commit that landed is not repeated if its answer was lost."""
    uri, options = f"{s3_prefix.uri}/tables", fault_proxy.options(attempts=2)
    writer = Writer(Tables.create(uri, options), "run-1")
    for number in range(3):
        writer.commit(make_batch([f"v{number}"], seed=number))
    rule = fault_proxy.add(fault, method="PUT", pattern=where, times=1)
    list(compact(Tables.open(uri, options)))
    assert rule.num_faults == 1
    tables = Tables.open(uri, options)
    assert len(tables.data_files("scores")) == 1
    assert sorted(tables.dataset("scores").to_table().column("video_id").to_pylist()) == ["v0", "v1", "v2"]


@pytest.mark.parametrize("where", [r"/scores/model_id.*-merged-.*\.parquet", r"/scores/_delta_log/.*\.json"])
def test_denied_write_stops_compaction_without_changes(
    where: str, s3_prefix: S3Location, fault_proxy: FaultProxy
) -> None:
    uri, options = f"{s3_prefix.uri}/tables", fault_proxy.options(attempts=2)
    writer = Writer(Tables.create(uri, options), "run-1")
    for number in range(3):
        writer.commit(make_batch([f"v{number}"], seed=number))
    fault_proxy.add(DENIED, method="PUT", pattern=where)
    with pytest.raises(FatalError, match=r"table 'scores' cannot be compacted: access is denied"):
        list(compact(Tables.open(uri, options)))
    fault_proxy.clear()
    tables = Tables.open(uri, options)
    assert len(tables.data_files("scores")) == 3
    assert sorted(tables.dataset("scores").to_table().column("video_id").to_pylist()) == ["v0", "v1", "v2"]
    assert list(compact(tables))
