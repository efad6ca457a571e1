"""Read-only sessions answer SELECT and EXPLAIN and reject everything else."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.sandbox import QueryLimits
from kvq_batch.tables.session import Session, open_session
from kvq_batch.tables.writer import Writer
from tests.support.results import make_batch

a_variable_of_the_program = pa.table({"secret": [1]})


def spill_of(session: Session) -> Path:
    """Return the folder for data over the memory limit; DuckDB leaves it readable for SQL."""
    (row,) = session._sandbox.connection.execute("SELECT current_setting('temp_directory')").fetchall()
    return Path(row[0])


def make_tables(folder: Path) -> Tables:
    tables = Tables.create(str(folder / "tables"))
    Writer(tables, "run-1").commit(make_batch(["a", "b"]))
    return tables


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One session for all queries: rejected statements must not change it."""
    with Session(make_tables(tmp_path_factory.mktemp("session")), num_threads=2) as opened:
        yield opened


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "outside.parquet")
    (tmp_path / "outside.csv").write_text("x\n1\n")
    return tmp_path


@pytest.mark.parametrize(
    "query",
    [
        "SELECT video_id FROM scores",
        "  -- which\n/* and */ select video_id from scores;  ",
        "FROM scores SELECT video_id",
        "WITH s AS (SELECT * FROM scores) SELECT video_id FROM s",
        "SELECT video_id FROM scores UNION SELECT video_id FROM clips",
    ],
)
def test_select_is_allowed(session: Session, query: str) -> None:
    answer = session.sql(query)
    assert sorted(answer.column("video_id").to_pylist()) == ["a", "b"]


@pytest.mark.parametrize(
    "query",
    [
        "EXPLAIN SELECT * FROM scores",
        "explain analyze select * from scores",
        "EXPLAIN (ANALYZE, FORMAT json) SELECT 1",
        "EXPLAIN (SELECT 1)",
        "/* why */ EXPLAIN -- so\n ANALYZE /* slow */ SELECT 1",
        "DESCRIBE scores",
        "SUMMARIZE failures",
        "SHOW TABLES",
        "VALUES (1)",
    ],
)
def test_explain_and_describe_are_allowed(session: Session, query: str) -> None:
    assert session.sql(query).num_rows > 0


@pytest.mark.parametrize(
    "query",
    [
        "COPY scores TO '{outside}/copied.parquet'",
        "COPY (SELECT 1) TO '{outside}/copied.csv'",
        "COPY scores FROM '{outside}/outside.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}/copied.csv'",
        "EXPORT DATABASE '{outside}/copied'",
        "IMPORT DATABASE '{outside}/copied'",
        "ATTACH '{outside}/copied.db'",
        "ATTACH ':memory:' AS other",
        "DETACH memory",
        "USE memory",
        "INSTALL httpfs",
        "LOAD httpfs",
        "LOAD '{outside}/outside.csv'",
        "PRAGMA version",
        "PRAGMA enable_profiling",
        "CALL pragma_version()",
        "SET threads = 1",
        "SET enable_external_access = true",
        "RESET enable_external_access",
        "SET VARIABLE x = 1",
        "CREATE TABLE t AS SELECT 1",
        "CREATE TEMP TABLE t (x INTEGER)",
        "CREATE OR REPLACE VIEW scores AS SELECT 1 AS video_id",
        "CREATE MACRO f(x) AS x",
        "CREATE SECRET s (TYPE s3)",
        "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
        "EXPLAIN (ANALYZE) CREATE TABLE t AS SELECT 1",
        "/* SELECT */ EXPLAIN /* it */ ANALYZE -- now\n CREATE TABLE t AS SELECT 1",
        "EXPLAIN INSERT INTO raw_scores SELECT * FROM raw_scores",
        "INSERT INTO raw_scores SELECT * FROM raw_scores",
        "WITH w AS (INSERT INTO raw_scores SELECT * FROM raw_scores RETURNING *) SELECT * FROM w",
        "UPDATE raw_scores SET raw_score = 0",
        "DELETE FROM raw_scores",
        "DROP VIEW scores",
        "ALTER VIEW scores RENAME TO other",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "BEGIN",
        "CHECKPOINT",
        "VACUUM",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW scores",
        "EXPLAIN /* /* */ SELECT 1 -- */ ANALYZE DROP VIEW scores_latest",
        "EXPLAIN ANALYZE -- ( SELECT 1\n DROP VIEW scores_latest",
        "EXPLAIN (ANALYZE) (DROP VIEW scores_latest)",
        "EXPLAIN (FORMAT html) SELECT 1",
        "EXPLAIN ANALYZE WITH w AS (COPY (SELECT 1) TO '{spill}/copied.csv') FROM w",
        "WITH w AS (COPY (SELECT 1) TO '{spill}/copied.csv') SELECT * FROM w",
        "SELECT (WITH w AS (COPY (SELECT 1) TO '{spill}/copied.csv') SELECT 1)",
        "WITH w AS (COPY (SELECT 1) TO '{spill}/copied.csv') PIVOT scores ON model_id USING count(*)",
        "WITH w AS (DELETE FROM raw_scores RETURNING *) FROM w",
        "WITH w AS (UPDATE raw_scores SET raw_score = 0 RETURNING *) FROM w",
        "CREATE TABLE t AS PIVOT scores ON model_id USING count(*)",
        "COPY (PIVOT scores ON model_id USING count(*)) TO '{spill}/copied.csv'",
        "INSERT INTO raw_scores PIVOT scores ON model_id USING count(*)",
        "EXPLAIN PIVOT scores ON model_id USING count(*)",
        "PIVOT read_text('{spill}/*') ON filename USING count(*)",
        "PIVOT \"Read_Text\" /* ( */ ('{spill}/*') ON filename USING count(*)",
        "PIVOT scores ON model_id USING count(*); DROP VIEW scores",
        "",
        "-- nothing",
        ";",
    ],
)
def test_other_statements_are_rejected(session: Session, outside: Path, query: str) -> None:
    spill = spill_of(session)
    before = [sorted(folder.rglob("*")) for folder in (outside, spill)]
    with pytest.raises(SpecError):
        session.sql(query.replace("{outside}", str(outside)).replace("{spill}", str(spill)))
    assert [sorted(folder.rglob("*")) for folder in (outside, spill)] == before
    assert session.sql("SELECT video_id FROM scores").num_rows == 2
    assert session.sql("SELECT * FROM duckdb_tables()").num_rows == 0


@pytest.mark.parametrize(
    "source",
    [
        "read_parquet('{outside}/outside.parquet')",
        "parquet_metadata('{outside}/outside.parquet')",
        "read_csv('{outside}/outside.csv')",
        "sniff_csv('{outside}/outside.csv')",
        "read_json('{outside}/outside.csv')",
        "read_text('{outside}/outside.csv')",
        "read_blob('{outside}/outside.csv')",
        "glob('{outside}/*')",
        "'{outside}/outside.parquet'",
        "'{outside}/outside.csv'",
        "'{outside}/tables/scores/*/*.parquet'",
        "'s3://videos/outside.parquet'",
        "'https://example.invalid/outside.parquet'",
        "query('SELECT * FROM ''{outside}/outside.csv''')",
        "a_variable_of_the_program",
        "a_local_variable",
        "arrow_scan(1, 2, 3)",
        "pandas_scan(1)",
        "read_text('{spill}/*')",
        "'{spill}/spilled.csv'",
        "glob('{spill}/*')",
        "GLOB('{spill}/*')",
        "main.glob('{spill}/*')",
        "system.main.\"glob\"('{spill}/*')",
        "(DESCRIBE SELECT * FROM glob('{spill}/*'))",
        "read_duckdb('{spill}/x.db')",
        "enable_logging(storage='file', storage_path='{spill}')",
        "enable_profiling(save_location='{spill}/x.json')",
        "checkpoint()",
        "query('SELECT 1')",
        "json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "(SELECT write_log('x'))",
        "(SELECT setseed(0.5))",
        "(SELECT current_setting('temp_directory'))",
        "(SELECT getenv('HOME'))",
    ],
)
def test_only_views_can_be_read(session: Session, outside: Path, source: str) -> None:
    a_local_variable = pa.table({"secret": [2]})
    assert a_local_variable.num_rows == 1
    spill = spill_of(session)
    (spill / "spilled.csv").write_text("x\n1\n")
    source = source.replace("{outside}", str(outside)).replace("{spill}", str(spill))
    for query in (f"SELECT * FROM {source}", f"PIVOT (SELECT * FROM {source}) ON 1 USING count(*)"):
        with pytest.raises(SpecError):
            session.sql(query)


@pytest.mark.parametrize(
    "query",
    [
        "PIVOT scores ON model_id USING count(*)",
        "PIVOT scores ON model_id IN ('a', 'b') USING count(*);",
        "FROM (PIVOT scores ON model_id USING count(*)) SELECT 1;;",
        "WITH p AS (PIVOT scores ON model_id USING max(raw_score) GROUP BY video_id) SELECT * FROM p -- all",
        "SELECT * FROM scores PIVOT (count(*) FOR model_id IN ('a')) /* äöü */",
    ],
)
def test_pivot_is_allowed_and_leaves_nothing(session: Session, query: str) -> None:
    assert session.sql(query).num_rows > 0
    assert session.sql("SELECT * FROM duckdb_types() WHERE NOT internal").num_rows == 0


def test_pivot_counts_by_value(session: Session) -> None:
    answer = session.sql("PIVOT (VALUES ('a', 1), ('ü', 2), ('a', 5)) v(k, n) ON k USING sum(n)")
    assert answer.to_pylist() == [{"a": 6, "ü": 2}]


def test_time_limit_stops_a_query(tmp_path: Path) -> None:
    with Session(make_tables(tmp_path), QueryLimits(timeout_s=0.5), num_threads=1) as opened:
        started = time.monotonic()
        with pytest.raises(SpecError, match="time limit of"):
            opened.sql("SELECT count(*) FROM range(1_000_000_000_000)")
        assert time.monotonic() - started < 20
        assert opened.sql("SELECT video_id FROM scores").num_rows == 2


def test_time_limit_stops_a_query_that_is_still_parsed(tmp_path: Path) -> None:
    with Session(make_tables(tmp_path), QueryLimits(timeout_s=1e-6), num_threads=1) as opened:
        started = time.monotonic()
        with pytest.raises(SpecError, match="time limit of"):
            opened.sql("SELECT count(*) FROM range(1_000_000_000_000)")
        assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "query",
    [
        "SELECT list(i) FROM range(100_000_000) t(i)",
        "SELECT i, i::VARCHAR AS text FROM range(100_000_000) t(i)",
    ],
)
def test_memory_limit_covers_work_and_result(tmp_path: Path, query: str) -> None:
    with Session(make_tables(tmp_path), QueryLimits("100MB"), num_threads=1) as opened:
        with pytest.raises(SpecError, match="needs more memory than the limit of 100MB"):
            opened.sql(query)
        assert opened.sql("SELECT video_id FROM scores").num_rows == 2


@pytest.mark.parametrize("limit", ["much", "", "0", "4GB'; DROP VIEW x; --"])
def test_invalid_memory_limit_is_rejected(tmp_path: Path, limit: str) -> None:
    with pytest.raises(SpecError, match="Invalid memory limit"):
        Session(make_tables(tmp_path), QueryLimits(limit))


def test_spill_folder_is_private_and_removed(tmp_path: Path) -> None:
    tables = make_tables(tmp_path)
    with Session(tables) as first, Session(tables) as second:
        folders = {spill_of(first), spill_of(second)}
        assert len(folders) == 2
        for folder in folders:
            assert (folder.stat().st_mode & 0o777, folder.stat().st_uid) == (0o700, os.getuid())
    assert not any(folder.exists() for folder in folders)


def test_errors_name_the_mistake(session: Session) -> None:
    with pytest.raises(SpecError, match="vidoe_id"):
        session.sql("SELECT vidoe_id FROM scores")
    with pytest.raises(SpecError, match="syntax error"):
        session.sql("SELEC 1")
    with pytest.raises(SpecError, match="one SELECT or EXPLAIN over the views; found COPY"):
        session.sql("COPY scores TO 'x.csv'")
    with pytest.raises(SpecError, match="found 2 statements"):
        session.sql("SELECT 1; SELECT 2")


def test_times_are_utc(session: Session) -> None:
    (row,) = session.sql("SELECT scored_at, scored_at::VARCHAR AS text FROM scores LIMIT 1").to_pylist()
    assert row["scored_at"].isoformat() == "2026-01-02T03:04:05.678901+00:00"
    assert row["text"] == "2026-01-02 03:04:05.678901+00"


def test_session_shows_version_at_opening(tmp_path: Path) -> None:
    with Session(make_tables(tmp_path)) as session:
        Writer(Tables.open(str(tmp_path / "tables")), "run-2").commit(make_batch(["c"]))
        assert session.sql("SELECT * FROM scores").num_rows == 2
    with open_session(str(tmp_path / "tables")) as later:
        assert later.sql("SELECT * FROM scores").num_rows == 3


def test_missing_data_file_is_an_error(tmp_path: Path) -> None:
    with Session(make_tables(tmp_path)) as session:
        for file in (tmp_path / "tables" / "scores").rglob("*.parquet"):
            file.unlink()
        with pytest.raises(SpecError, match=r"scores|not found|No such file"):
            session.sql("SELECT * FROM scores")


def test_threads_share_a_session(session: Session) -> None:
    answers: list[int] = []

    def ask() -> None:
        for _ in range(5):
            answers.append(session.sql("SELECT * FROM scores").num_rows)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [2] * 15


def test_missing_tables_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no tables here"):
        open_session(str(tmp_path / "nowhere"))


def test_session_spills_outside_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with Session(make_tables(tmp_path), limits=QueryLimits("60MB"), num_threads=1) as opened:
        answer = opened.sql("SELECT count(DISTINCT i) AS numbers FROM range(4000000) t(i)")
    assert answer.to_pylist() == [{"numbers": 4_000_000}]
    assert list(here.iterdir()) == []
