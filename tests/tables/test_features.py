"""Features are visible only with their score, the newest ones by a view of their own, and damage to them is found."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from kvq_batch.tables.check import check_tables
from kvq_batch.tables.compaction import compact
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Batch, Writer
from tests.support.finished_run import fill
from tests.support.results import KVQ, make_batch, make_catalog, make_model, make_run, with_features


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    writer = Writer(Tables.create(str(tmp_path / "tables")), "run-1")
    writer.write_models(make_model(KVQ))
    writer.write_catalog(catalog_rows(["a", "b"]))
    writer.write_run(make_run([KVQ], state="finished"))
    return writer


def catalog_rows(videos: list[str]) -> pa.Table:
    listed = make_catalog(videos)
    rows = listed.append_column("catalog", pa.array(["nightly"] * len(videos)))
    return rows.append_column("in_catalog", pa.array([True] * len(videos)))


def test_features_of_newest_score_are_visible(writer: Writer) -> None:
    writer.commit(with_features(make_batch(["a", "b"]), (1.0, 2.0)))
    writer.commit(with_features(make_batch(["a"]), (7.0, 8.0)))
    with Session(Tables.open(writer.tables.uri)) as session:
        rows = session.sql("SELECT video_id, features, is_stale FROM features_latest ORDER BY video_id").to_pylist()
        assert session.sql("SELECT count(*) AS n FROM features").to_pylist() == [{"n": 3}]
    assert rows == [
        {"video_id": "a", "features": [7.0, 8.0], "is_stale": False},
        {"video_id": "b", "features": [1.0, 2.0], "is_stale": False},
    ]


def test_features_without_their_score_are_invisible(writer: Writer) -> None:
    whole = with_features(make_batch(["a"]), (1.0, 2.0))
    writer.commit(Batch(features=whole.features))
    with Session(Tables.open(writer.tables.uri)) as session:
        assert session.sql("SELECT * FROM features").num_rows == 0
    assert ("info", "invisible", "features") in {
        (f.severity, f.kind, f.table) for f in check_tables(Tables.open(writer.tables.uri))
    }


def test_row_of_features_without_score_in_its_commit_is_found(writer: Writer) -> None:
    whole = with_features(make_batch(["a", "b"]), (1.0, 2.0))
    writer.commit(replace(whole, scores=whole.scores.slice(1), maps=None, clips=None))
    findings = check_tables(Tables.open(writer.tables.uri))
    assert ("without_score", "features", "a") in {(f.kind, f.table, f.subject) for f in findings}


def test_compaction_keeps_features(writer: Writer) -> None:
    for value in (1.0, 2.0):
        writer.commit(with_features(make_batch(["a"], content=f"etag:{value}"), (value, value + 1)))
    tables = Tables.open(writer.tables.uri)
    assert "features" in {done.table for done in compact(tables)}
    with Session(Tables.open(writer.tables.uri)) as session:
        rows = session.sql("SELECT features FROM features ORDER BY commit_seq").to_pylist()
    assert rows == [{"features": [1.0, 2.0]}, {"features": [2.0, 3.0]}]


def test_tables_of_older_releases_have_no_features_yet(tmp_path: Path) -> None:
    tables = fill(str(tmp_path)).tables
    folder = tmp_path / "features"
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    folder.rmdir()
    with Session(Tables.open(tables.uri)) as session:
        assert session.sql("SELECT * FROM features_latest").num_rows == 0
    assert Tables.create(tables.uri).delta("features").version() == 0
