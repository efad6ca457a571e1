"""`kvq-batch tables`: data on stdout in three formats, messages on stderr, exit codes, rejected options."""

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.cli.app import app
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.writer import Writer
from tests.support.finished_run import fill
from tests.support.results import KVQ, make_catalog
from tests.support.s3 import S3Location


@pytest.fixture
def tables(tmp_path: Path) -> str:
    return fill(str(tmp_path / "tables")).tables.uri


def call(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["tables", *arguments])
    assert result.exit_code == exit_code, result.output
    return result


def test_compact_vacuum_and_check(tables: str) -> None:
    planned = json.loads(call("compact", tables, "--dry-run", "-o", "json").stdout)
    done = json.loads(call("compact", tables, "-o", "json").stdout)
    keys = ("table", "partition", "files_before", "files_after", "bytes_before")
    assert [[row[key] for key in keys] for row in done] == [[row[key] for key in keys] for row in planned]
    assert {"failures": 3, "runs": 2}.items() <= {row["table"]: row["files_before"] for row in done}.items()
    assert {row["files_after"] for row in done} == {1}
    again = call("compact", tables)
    assert "(no rows)" in again.stdout
    assert "nothing to merge" in again.stderr

    assert "0 file(s)" in call("vacuum", tables, "--delete").stderr
    listed = call("vacuum", tables, "--retention", "0h", "--force", "-o", "csv")
    rows = list(csv.DictReader(io.StringIO(listed.stdout)))
    assert {row["kind"] for row in rows} == {"replaced"}
    assert f"{len(rows)} file(s)" in listed.stderr
    assert "use --delete to delete them" in listed.stderr
    assert all((Path(tables) / row["table"] / row["path"]).exists() for row in rows)
    assert ": deleted" in call("vacuum", tables, "--retention", "0h", "--force", "--delete").stderr
    assert not any((Path(tables) / row["table"] / row["path"]).exists() for row in rows)
    assert "no errors" in call("check", tables, "--deep").stderr


def test_maintenance_of_tables_on_s3(s3_prefix: S3Location) -> None:
    uri = fill(f"{s3_prefix.uri}/tables", s3_prefix.options).tables.uri
    there = (uri, "--endpoint-url", s3_prefix.options.endpoint_url or "", "-o", "json")
    assert {row["table"] for row in json.loads(call("compact", *there).stdout)} == {"failures", "runs"}
    vacuum = ("vacuum", *there, "--retention", "0h", "--force", "--full")
    assert len(json.loads(call(*vacuum).stdout)) == 5
    call(*vacuum, "--delete")
    assert json.loads(call(*vacuum).stdout) == []
    assert json.loads(call("history", *there, "--limit", "1").stdout)[0]["operation"] == "vacuum end"
    assert json.loads(call("check", *there, "--deep").stdout) == []


def test_history_lists_commits_with_their_run(tables: str) -> None:
    call("compact", tables)
    newest, *older = json.loads(call("history", tables, "--table", "failures", "-o", "json").stdout)
    shown = {name: newest[name] for name in newest if name != "committed_at"}
    assert shown == {
        "table": "failures",
        "version": 5,
        "operation": "compact",
        "files_added": 1,
        "rows_added": 3,
        "files_removed": 3,
        "rows_removed": 3,
        "epoch": None,
        "counter": None,
        "run_id": None,
    }
    assert [row["operation"] for row in older] == ["append", "append", "append", "claim", "create table"]
    assert {row["run_id"] for row in older if row["operation"] == "append"} == {"run-1"}
    assert [row["counter"] for row in older[:4]] == [8, 7, 6, 0]
    rows = json.loads(call("history", tables, "--limit", "2", "-o", "json").stdout)
    assert {(row["table"], row["operation"]) for row in rows} == {("failures", "compact"), ("runs", "compact")}
    assert "create table" in call("history", tables, "--table", "runs").stdout


def test_check_exits_with_3_on_errors(tables: str) -> None:
    assert "no errors" in call("check", tables).stderr
    file = next(p for p in Tables.open(tables).data_files("maps") if p.partition["model_id"] == KVQ.model_id)
    (Path(tables) / "maps" / file.path).unlink()
    result = call("check", tables, "--output", "json", exit_code=3)
    first = json.loads(result.stdout)[0]
    assert (first["severity"], first["kind"], first["subject"]) == ("error", "missing_file", file.path)
    assert "error(s)" in result.stderr


def test_vacuum_beside_run_keeps_more_with_reason(tables: str) -> None:
    call("compact", tables)
    with hold(tables, StorageOptions(), Holder.this_process("run-9", "nightly")):
        result = call("vacuum", tables, "--retention", "0h", "--force", "--full", "-o", "json")
    assert json.loads(result.stdout) == []
    assert "run run-9 of job 'nightly'" in result.stderr
    assert "The retention is 2 h instead of 0 h" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compact", "--target", "big"], "Invalid --target 'big': expected a size"),
        (["compact", "--target", "0MB"], "expected a size such as 128MB"),
        (["vacuum", "--retention", "soon"], "Invalid --retention 'soon': expected a duration"),
        (["vacuum", "--retention", "0h"], "--force if nothing else uses these tables"),
        (["history", "--table", "score"], "Unknown table 'score'"),
    ],
)
def test_invalid_options_are_rejected(tables: str, arguments: list[str], said: str) -> None:
    name, *more = arguments
    result = call(name, tables, *more, exit_code=2)
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["compact", "vacuum", "history", "check"])
def test_missing_tables_are_rejected(command: str, tmp_path: Path) -> None:
    assert "there are no tables here" in call(command, str(tmp_path), exit_code=2).stderr


def test_drop_column(tables: str) -> None:
    opened = Tables.open(tables)
    catalog = make_catalog(["a"], content="etag:1", notes=["x"])
    Writer(opened, "run-9").write_catalog(catalog_changes(opened, catalog, "more"))
    planned = json.loads(call("drop-column", tables, "notes", "--dry-run", "-o", "json").stdout)
    assert [(row["column"], row["type"]) for row in planned] == [("notes", "string")]
    assert "notes" in Tables.open(tables).arrow_schema("catalog").names
    assert json.loads(call("drop-column", tables, "notes", "-o", "json").stdout) == planned
    assert "notes" not in Tables.open(tables).arrow_schema("catalog").names
    assert "no errors" in call("check", tables, "--deep").stderr
    assert "has no column 'notes'" in call("drop-column", tables, "notes", exit_code=2).stderr
    assert "is a column of kvq-batch" in call("drop-column", tables, "uri", exit_code=2).stderr
