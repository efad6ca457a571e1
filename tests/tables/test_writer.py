"""The writer commits in a fixed order, one epoch per run, and rejects stale writers and invalid rows."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.domain.errors import FatalError
from kvq_batch.storage.options import StorageOptions, filesystem
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import COUNTER_BITS, DATA_TABLES, SCORES, make_rows
from kvq_batch.tables.transactions import APPLICATION_ID
from kvq_batch.tables.writer import Batch, Writer
from tests.support.results import (
    KVQ,
    LUMA,
    make_batch,
    make_catalog,
    make_failures,
    make_model,
    make_run,
    with_features,
)


def rows_of(tables: Tables, name: str) -> list[dict[str, Any]]:
    tables.refresh(name)
    found: list[dict[str, Any]] = tables.dataset(name).to_table().to_pylist()
    return found


def with_failure(batch: Batch) -> Batch:
    return dataclasses.replace(batch, failures=make_failures(["broken"]).failures)


def test_batch_is_read_back_complete(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = Tables.create(uri, options)
    writer = Writer(tables, "run-1")
    batch = with_features(with_failure(make_batch(["b", "a"], num_clips=2)))
    seq = writer.commit(batch)
    opened = Tables.open(uri, options)
    for name in DATA_TABLES:
        found = opened.dataset(name).to_table()
        assert set(found.column("run_id").to_pylist()) == {"run-1"}
        assert set(found.column("commit_seq").to_pylist()) == {seq}
        given = getattr(batch, name)
        keys = [("video_id", "ascending"), *([("clip_index", "ascending")] if name in ("maps", "clips") else [])]
        assert found.select(given.column_names).sort_by(keys).equals(given.sort_by(keys))


def test_one_sorted_data_file_per_model(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    both = [make_batch(["c", "a", "b"], model).scores for model in (KVQ, LUMA)]
    seq = writer.commit(Batch(scores=pa.concat_tables(both)))
    actions = pa.table(tables.delta("scores").get_add_actions(flatten=True)).to_pylist()
    assert {action["partition.model_id"] for action in actions} == {KVQ.model_id, LUMA.model_id}
    for action in actions:
        footer = pq.read_table(tmp_path / "scores" / action["path"], partitioning=None)
        assert footer.column("video_id").to_pylist() == ["a", "b", "c"]
        assert "model_id" not in footer.column_names
        assert action["num_records"] == footer.num_rows == 3
        assert action["size_bytes"] == (tmp_path / "scores" / action["path"]).stat().st_size
        assert (action["min.video_id"], action["max.video_id"]) == ("a", "c")
        assert action["min.commit_seq"] == action["max.commit_seq"] == seq
        assert action["null_count.video_id"] == 0


def test_tables_commit_in_the_fixed_order(tmp_path: Path) -> None:
    """If a table cannot be committed, those before it are committed and those after it are not."""
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    (tmp_path / "failures" / "_delta_log").rename(tmp_path / "failures" / "gone")
    (tmp_path / "failures" / "_delta_log").write_text("in the way")
    with pytest.raises(FatalError, match="'failures'"):
        writer.commit(with_failure(make_batch(["a"])))
    (tmp_path / "failures" / "_delta_log").unlink()
    (tmp_path / "failures" / "gone").rename(tmp_path / "failures" / "_delta_log")
    assert [len(rows_of(tables, name)) for name in DATA_TABLES] == [1, 1, 0, 0, 0]


def test_commit_seq_rises_over_runs(tmp_path: Path) -> None:
    seqs = []
    for number in range(3):
        writer = Writer(Tables.create(str(tmp_path)), f"run-{number}")
        seqs += [writer.commit(make_batch(["a"])), writer.write_run(make_run()), writer.write_models(make_model())]
    assert seqs == sorted(set(seqs))
    assert seqs[0] >> COUNTER_BITS == 1
    assert Tables.open(str(tmp_path)).last_commit_seq() == seqs[-1]


def test_log_rejects_stale_writer(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    first = Writer(Tables.create(uri, options), "run-1")
    first.commit(make_batch(["a"]))
    second = Writer(Tables.open(uri, options), "run-2")
    with pytest.raises(FatalError, match="another run has taken over"):
        first.commit(make_batch(["stale"]))
    second.commit(make_batch(["b"]))
    with pytest.raises(FatalError, match="another run has taken over"):
        first.commit(make_failures(["stale"]))
    with pytest.raises(FatalError, match="another run has taken over"):
        first.write_catalog(catalog_changes(None, make_catalog(["stale"]), "nightly"))
    tables = Tables.open(uri, options)
    assert {row["video_id"] for row in rows_of(tables, "scores")} == {"a", "b"}
    assert rows_of(tables, "maps")[0]["video_id"] != "stale"


def test_stale_writer_is_rejected_after_refresh(tmp_path: Path) -> None:
    first = Writer(Tables.create(str(tmp_path)), "run-1")
    Writer(Tables.open(str(tmp_path)), "run-2")
    first.tables.refresh()
    with pytest.raises(FatalError, match="another run has taken over"):
        first.commit(make_batch(["stale"]))


def test_epochs_are_claimed_once(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    late = Tables.open(str(tmp_path))
    epochs = [Writer(place, "run").epoch for place in (tables, late, tables)]
    assert epochs == [1, 2, 3]


def test_log_has_the_application_transaction(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    seq = Writer(tables, "run-1").commit(make_batch(["a"]))
    newest = sorted((tmp_path / "scores" / "_delta_log").glob("*.json"))[-1]
    entries = [json.loads(line) for line in newest.read_text().splitlines()]
    transaction = next(entry["txn"] for entry in entries if "txn" in entry)
    assert (transaction["appId"], transaction["version"]) == (APPLICATION_ID, seq)


def test_commit_with_lost_answer_counts(tmp_path: Path) -> None:
    """The commit landed and its answer was lost: sending the same entry again must not stop the run."""
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    writer.commit(make_batch(["a"]))
    same_epoch = Writer.__new__(Writer)
    same_epoch.__dict__.update(writer.__dict__, tables=Tables.open(str(tmp_path)))
    parts_before = len(tables.delta("scores").file_uris())
    writer.commit(make_batch(["b"]))
    same_epoch.commit(make_batch(["b"]))
    assert len(DeltaTable(str(tmp_path / "scores")).file_uris()) == parts_before + 1


def test_commit_reports_bytes_and_seconds(tmp_path: Path) -> None:
    writer = Writer(Tables.create(str(tmp_path)), "run-1")
    assert writer.last_commit.size_bytes == 0
    before = {file: file.stat().st_size for file in tmp_path.rglob("*.parquet") if "_delta_log" not in file.parts}
    writer.commit(make_batch(["a", "b"]))
    files = {file: file.stat().st_size for file in tmp_path.rglob("*.parquet") if "_delta_log" not in file.parts}
    assert writer.last_commit.size_bytes == sum(size for file, size in files.items() if file not in before)
    assert writer.last_commit.seconds > 0


def test_empty_batch_makes_no_commit(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    version = tables.delta("scores").version()
    writer.commit(Batch(scores=SCORES.row_schema().empty_table()))
    assert tables.delta("scores").version() == version


@pytest.mark.parametrize("change", ["missing", "unknown", "type", "null", "path"])
def test_invalid_rows_are_rejected_before_any_commit(tmp_path: Path, change: str) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    scores = make_batch(["a"]).scores
    place = scores.column_names.index("model_id")
    changed = {
        "missing": scores.drop_columns(["raw_score"]),
        "unknown": scores.append_column("surprise", pa.array([1])),
        "type": scores.set_column(scores.column_names.index("raw_score"), "raw_score", pa.array(["much"])),
        "null": scores.set_column(scores.column_names.index("video_id"), "video_id", pa.nulls(1, pa.string())),
        "path": scores.set_column(place, "model_id", pa.array(["../elsewhere"])),
    }[change]
    with pytest.raises(FatalError, match=r"table 'scores'"):
        writer.commit(Batch(maps=make_batch(["a"]).maps, scores=changed))
    assert rows_of(tables, "maps") == []


def test_unwritable_folder_is_fatal(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path / "tables"))
    writer = Writer(tables, "run-1")
    (tmp_path / "tables" / "maps").rename(tmp_path / "tables" / "elsewhere")
    (tmp_path / "tables" / "maps").write_text("in the way")
    with pytest.raises(FatalError, match=r"'maps' cannot be written.*Start the job again"):
        writer.commit(make_batch(["a"]))


def test_missing_permission_is_fatal(s3_prefix: Any, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, options = f"{s3_prefix.uri}/tables", s3_prefix.options
    tables = Tables.create(uri, options)
    writer = Writer(tables, "run-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret_key)
    filesystem(uri, options)[0].clear_instance_cache()
    with pytest.raises(FatalError, match=r"cannot be written.*permissions") as caught:
        writer.commit(make_batch(["a"]))
    assert s3_server.reader_secret_key not in str(caught.value)
    filesystem(uri, options)[0].clear_instance_cache()


def test_new_catalog_columns_are_added(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = Tables.create(uri, options)
    writer = Writer(tables, "run-1")
    writer.write_catalog(catalog_changes(tables, make_catalog(["a", "b"]), "nightly"))
    today = make_catalog(["a", "b"], country=["de", None], run_id=["x", "y"])
    changes = catalog_changes(tables, today, "nightly")
    assert changes.num_rows == 2
    writer.write_catalog(changes)
    rows = rows_of(Tables.open(uri, options), "catalog")
    assert [(r["country"], r["catalog_run_id"], r["run_id"]) for r in rows if r["country"]] == [("de", "x", "run-1")]
    assert catalog_changes(tables, today, "nightly").num_rows == 0


def test_runs_and_models_are_appended(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    writer.write_run(make_run([KVQ, LUMA]))
    writer.write_models(make_model(calibration="lsvq", b=(1.0, 5.0, 0.3, 0.1), is_default=True))
    (run,) = rows_of(tables, "runs")
    assert [model["name"] for model in run["models"]] == ["kvq-tiny", "luma"]
    assert run["planned_by_reason"] == [("new", 2)]
    (model,) = rows_of(tables, "models")
    assert (model["b2"], model["is_default"], model["run_id"]) == (5.0, True, "run-1")


def test_commits_continue_after_checkpoint(tmp_path: Path) -> None:
    tables = Tables.create(str(tmp_path))
    writer = Writer(tables, "run-1")
    rows = make_failures(["a"]).failures
    for _ in range(120):
        writer.commit(Batch(failures=rows))
    assert (tmp_path / "failures" / "_delta_log" / "_last_checkpoint").exists()
    assert len(rows_of(Tables.open(str(tmp_path)), "failures")) == 120
    assert Writer(Tables.open(str(tmp_path)), "run-2").epoch == 2
    assert make_rows("failures", []).num_rows == 0
