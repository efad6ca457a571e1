"""Random statements against the SQL sandbox: none writes, reads a file or changes a view."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.sandbox import QueryLimits
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Writer
from tests.support.results import make_batch
from tests.support.sql_grammar import VIEWS, SqlGrammar

SECRET = "not-for-readers"
CHECK_EVERY = 100

a_variable_of_the_program = pa.table({"secret": [SECRET]})


@dataclass(frozen=True)
class Target:
    """A session, the folder of its tables, and folders with secrets, one of which DuckDB leaves readable."""

    session: Session
    tables: Path
    folders: tuple[Path, ...]

    def state(self) -> object:
        """Return everything that a statement must not change: files, views, tables, types, functions, settings."""
        files = [
            (str(path), path.stat().st_mtime_ns)
            for folder in (self.tables, *self.folders)
            for path in sorted(folder.rglob("*"))
        ]
        connection = self.session._sandbox.connection
        queries = [
            "SELECT schema_name, view_name, comment, sql FROM duckdb_views() ORDER BY ALL",
            "SELECT count(*) FROM duckdb_tables()",
            "SELECT count(*) FROM duckdb_types() WHERE NOT internal",
            "SELECT count(*) FROM duckdb_functions() WHERE NOT internal",
            "SELECT count(*) FROM duckdb_sequences()",
            "SELECT database_name FROM duckdb_databases() ORDER BY ALL",
            "SELECT name, value FROM duckdb_settings() ORDER BY ALL",
            "SELECT * FROM scores ORDER BY ALL",
        ]
        return files, [connection.execute(query).fetchall() for query in queries]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monkeypatch.setenv("FUZZ_SECRET", SECRET)
    here, outside = tmp_path / "here", tmp_path / "outside"
    here.mkdir()
    outside.mkdir()
    monkeypatch.chdir(here)
    tables = Tables.create(str(tmp_path / "tables"))
    Writer(tables, "run-1").commit(make_batch(["a", "b"]))
    with Session(tables, QueryLimits("300MB", timeout_s=10), num_threads=1) as session:
        (row,) = session._sandbox.connection.execute("SELECT current_setting('temp_directory')").fetchall()
        folders = (outside, Path(row[0]), here)
        put_secrets(folders)
        yield Target(session, tmp_path / "tables", folders)


def put_secrets(folders: tuple[Path, ...]) -> None:
    for folder in folders:
        (folder / "secret.csv").write_text(f"x\n{SECRET}\n")
        pq.write_table(pa.table({"x": [SECRET]}), folder / "secret.parquet")


@pytest.mark.parametrize(
    ("seed", "num"), [(1, 1000), *(pytest.param(seed, 3000, marks=pytest.mark.faults) for seed in range(2, 10))]
)
def test_random_sql_changes_and_leaks_nothing(target: Target, seed: int, num: int) -> None:
    before = target.state()
    outcomes: Counter[str] = Counter()
    recent: list[str] = []
    for number, text in enumerate(SqlGrammar(seed, target.folders).statements(num), 1):
        recent.append(text)
        try:
            answer = str(target.session.sql(text).to_pylist())
        except SpecError:
            outcomes["rejected"] += 1
        else:
            outcomes["answered"] += 1
            assert SECRET not in answer, text
        if number % CHECK_EVERY == 0 or number == num:
            assert target.state() == before, "\n".join(recent)
            recent.clear()
    # Enough of the statements are valid reads, so the sandbox is not closed to everything.
    assert outcomes["answered"] > num / 10, outcomes


def test_random_sql_does_harm_without_the_sandbox(tmp_path: Path) -> None:
    """The statements are worth rejecting: a plain connection loses views, writes files and returns secrets."""
    put_secrets((tmp_path,))
    before = set(tmp_path.iterdir())
    num_leaks = num_changed = 0
    # Not these: they use the network, crash, or change what the next statement finds.
    others = ("attach", "detach", "install", "load", "checkpoint", "logging", "profiling", "pandas_scan", "begin")
    with duckdb.connect() as connection:
        for text in SqlGrammar(1, (tmp_path,)).statements(1000):
            if any(word in text.casefold() for word in others):
                continue
            put_secrets((tmp_path,))
            for view in VIEWS:
                columns = "'a' AS video_id, 'm' AS model_id, 1 AS commit_seq"
                connection.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT {columns}")
            try:
                result = connection.execute(text)
                answer = str(result.fetchall()) if result else ""
            except duckdb.Error:
                continue
            views = connection.execute("SELECT view_name, sql FROM duckdb_views() WHERE NOT internal").fetchall()
            num_changed += not {*VIEWS} <= {name for name, _ in views} or "forged" in str(views)
            num_leaks += SECRET in answer
    assert len(set(tmp_path.iterdir()) - before) >= 3
    assert num_changed >= 3
    assert num_leaks >= 3
