"""Commands that read tables: data on stdout in three formats, warnings on stderr, errors with a hint."""

import csv
import io
import json
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner, Result

from kvq_batch.cli.app import app
from kvq_batch.planning.plan import make_plan
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.check import check_tables
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, LUMA, make_catalog, make_failures
from tests.support.scored import BROKEN, PLAIN, VIDEO, Scored, make_scored, without_maps


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return make_scored(tmp_path_factory.mktemp("scored"))


def call(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result


def test_status_counts_and_lists_runs(scored: Scored) -> None:
    record = json.loads(call("status", scored.tables, "--output", "json").stdout)
    counts = {name: record[name] for name in ("videos", "num_runs", "current_scores", "stale_scores", "failures")}
    assert counts == {"videos": 3, "num_runs": 1, "current_scores": 2, "stale_scores": 0, "failures": 1}
    assert record["last_commit_seq"] > 0
    assert {model["model_id"]: (model["model_origin"], model["current_scores"]) for model in record["models"]} == {
        KVQ.model_id: ("untrained", 1),
        LUMA.model_id: ("untrained", 1),
    }
    (run,) = record["runs"]
    assert (run["run_id"], run["state"]) == ("run-1", "finished")
    table = call("status", scored.tables).stdout
    assert "run-1" in table
    assert KVQ.model_id in table
    rows = list(csv.DictReader(io.StringIO(call("status", scored.tables, "-o", "csv").stdout)))
    assert [row["run_id"] for row in rows] == ["run-1"]


def test_query_formats_agree(scored: Scored) -> None:
    sql = "SELECT video_id, sum(num_clips) AS clips, raw_score FROM scores_latest GROUP BY ALL ORDER BY video_id"
    rows = json.loads(call("query", scored.tables, sql, "-o", "json").stdout)
    assert [(row["video_id"], row["clips"]) for row in rows] == [(PLAIN, 1), (VIDEO, 2)]
    (first, second) = csv.DictReader(io.StringIO(call("query", scored.tables, sql, "-o", "csv").stdout))
    assert float(first["raw_score"]) == rows[0]["raw_score"]
    assert second["clips"] == "2"
    assert VIDEO in call("query", scored.tables, sql).stdout


def test_query_numbers_repeated_columns(scored: Scored) -> None:
    sql = "SELECT 1 AS a, 2 AS a, outputs FROM scores LIMIT 1"
    (row,) = json.loads(call("query", scored.tables, sql, "-o", "json").stdout)
    assert row == {"a": 1, "a:1": 2, "outputs": {"sharpness": 0.5}}


@pytest.mark.parametrize("output", ["table", "json", "csv"])
def test_query_warns_about_untrained_models(scored: Scored, output: str) -> None:
    """Also if the query renames the column. The warning goes to stderr."""
    for sql in ("SELECT avg(raw_score) AS x FROM Scores_Latest", "SELECT max(texture) AS y FROM regions"):
        result = call("query", scored.tables, sql, "--output", output)
        assert f"UNTRAINED: the weights of {KVQ.model_id} are random" in result.stderr
        assert "UNTRAINED" not in result.stdout
    assert call("query", scored.tables, "SELECT count(*) FROM catalog", "--output", output).stderr == ""


def test_views_include_columns_of_the_catalog(scored: Scored) -> None:
    rows = json.loads(call("query", scored.tables, "--views", "--output", "json").stdout)
    columns = {(row["view"], row["column"]): row["meaning"] for row in rows}
    assert ("scores_latest", "raw_score") in columns
    assert columns["catalog", "country"] == "column of your catalog"
    assert {"regions", "failures", "runs", "models"} <= {row["view"] for row in rows}
    assert all(row["meaning"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SELECT * FROM nothing"], "`kvq-batch query TABLES --views` lists"),
        (["SELECT nothing FROM scores"], "`kvq-batch query TABLES --views` lists"),
        (["SELEC 1"], "syntax error"),
        (["DROP TABLE scores"], "one SELECT or EXPLAIN"),
        (["SELECT 1; SELECT 2"], "2 statements"),
        (["SELECT * FROM read_csv('/etc/hosts')"], "disabled"),
        ([], "Pass either a query"),
        (["SELECT 1", "--views"], "Pass either a query"),
    ],
)
def test_query_rejects_invalid_sql(scored: Scored, arguments: list[str], message: str) -> None:
    result = call("query", scored.tables, *arguments, exit_code=2)
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "command", [["status"], ["query", "SELECT 1"], ["failures list"], ["maps", "v", "--out", "x.png"]]
)
def test_folder_without_tables_is_rejected(command: list[str], tmp_path: Path) -> None:
    name, *more = command
    result = call(*name.split(), str(tmp_path), *more, exit_code=2)
    assert "there are no tables here" in result.stderr


def test_failures_list_is_complete_in_json(scored: Scored) -> None:
    table = call("failures", "list", scored.tables).stdout
    assert all(word in table for word in (BROKEN, "decode", "decoder_crashed", "next run", "kvq-tiny"))
    (row,) = json.loads(call("failures", "list", scored.tables, "--output", "json").stdout)
    wanted = {"video_id", "model_id", "stage", "error", "message", "final", "permanent", "run_id", "exit_signal"}
    assert wanted <= set(row)
    assert (row["video_id"], row["exit_signal"], row["final"]) == (BROKEN, "SIGSEGV", True)
    (kind,) = json.loads(call("failures", "list", scored.tables, "--summary", "-o", "json").stdout)
    assert (kind["stage"], kind["error"], kind["videos"]) == ("decode", "decoder_crashed", 1)


def test_failure_is_unresolved_until_a_score(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    scored.writer.commit(make_failures([BROKEN], KVQ))
    assert len(json.loads(call("failures", "list", scored.tables, "-o", "json").stdout)) == 1
    scored.writer.commit(without_maps([BROKEN], LUMA, "etag:1"))
    assert len(json.loads(call("failures", "list", scored.tables, "-o", "json").stdout)) == 1
    scored.writer.commit(without_maps([BROKEN], KVQ, "etag:1"))
    settled = call("failures", "list", scored.tables, "-o", "json")
    assert json.loads(settled.stdout) == []
    assert "no failures" in settled.stderr
    assert call("failures", "list", scored.tables).stdout == ""
    assert len(json.loads(call("failures", "list", scored.tables, "--all", "-o", "json").stdout)) == 2


def test_maps_writes_a_picture_and_warns_if_untrained(scored: Scored, tmp_path: Path) -> None:
    out = tmp_path / "maps.png"
    result = call("maps", scored.tables, VIDEO, "--out", str(out), "--slots", "1")
    assert out.stat().st_size > 1000
    assert result.stdout == ""
    assert f"wrote {out}: raw score " in result.stderr
    assert f"{KVQ.model_id} (untrained)" in result.stderr
    assert "UNTRAINED" in result.stderr
    rejected = call("maps", scored.tables, VIDEO, "--out", str(out), "--clip", "7", exit_code=2)
    assert "its clips are 0 to 1" in rejected.stderr


def test_report_is_written(scored: Scored, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    result = call("report", scored.tables, "--out", str(out), "--by", "country", "--model", KVQ.name)
    assert f"wrote {out} (0." in result.stderr
    text = out.read_text()
    assert "UNTRAINED" in text
    assert ">country</h3>" in text
    rejected = call("report", scored.tables, "--out", str(tmp_path), exit_code=2)
    assert "Is a directory" in rejected.stderr


def test_maps_of_a_missing_video_fails(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    (scored.videos / VIDEO).unlink()
    result = call("maps", scored.tables, VIDEO, "--out", str(tmp_path / "x.png"), exit_code=1)
    assert result.stderr.startswith("error: fetch: missing")


def unresolved(scored: Scored, *more: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(call("failures", "list", scored.tables, "-o", "json", *more).stdout)
    return rows


def test_retry_request_keeps_the_failure(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    scored.writer.commit(make_failures([VIDEO, PLAIN], LUMA))
    permanent = {row["video_id"] for row in unresolved(scored, "--where", "permanent")}
    assert permanent == {VIDEO, PLAIN}
    message = call("failures", "retry", scored.tables, "--where", f"video_id = '{PLAIN}' -- only this one").stderr
    assert message == "the next run retries 1 permanent failure(s)\n"

    # The request is not counted or listed as a failure.
    rows = unresolved(scored)
    assert {(row["video_id"], row["permanent"]) for row in rows} == {(BROKEN, False), (VIDEO, True), (PLAIN, False)}
    assert [row["video_id"] for row in rows if row["is_retry_requested"]] == [PLAIN]
    assert len(unresolved(scored, "--all")) == 3
    assert "retry_requested" not in {row["error"] for row in unresolved(scored, "--all")}
    kinds = json.loads(call("failures", "list", scored.tables, "--summary", "-o", "json").stdout)
    assert sum(kind["videos"] for kind in kinds) == 3
    assert json.loads(call("status", scored.tables, "-o", "json").stdout)["failures"] == 3

    # A second request finds only the other failure.
    assert "no permanent failures" in call("failures", "retry", scored.tables, "--error", "nothing").stderr
    assert call("failures", "retry", scored.tables, "--stage", "decode").stderr.endswith("1 permanent failure(s)\n")
    assert "no permanent failures" in call("failures", "retry", scored.tables).stderr

    # A new permanent failure is unresolved again.
    Writer(Tables.open(scored.tables), "run-2").commit(make_failures([PLAIN], LUMA))
    assert [row["video_id"] for row in unresolved(scored, "--where", "permanent")] == [PLAIN]


def test_next_plan_includes_requested_retries(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    tables = Tables.open(scored.tables)
    scored.writer.commit(make_failures(["a", "b"], LUMA))
    catalog = make_catalog(["a", "b"])
    tables.refresh()
    assert make_plan(tables, catalog, "nightly", [LUMA]).num_quarantined == 2
    call("failures", "retry", scored.tables, "--where", "video_id = 'b'")
    tables.refresh()
    plan = make_plan(tables, catalog, "nightly", [LUMA])
    assert plan.num_quarantined == 1
    assert [(row["video_id"], row["reason"]) for row in plan.tasks.to_pylist()] == [("b", "retry")]
    assert [finding.kind for finding in check_tables(tables) if finding.kind == "unknown_run"] == []


def test_retry_request_waits_for_no_active_run(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    with hold(scored.tables, StorageOptions(), Holder.this_process("run-7", "nightly")):
        rejected = call("failures", "retry", scored.tables, exit_code=2)
    assert "run run-7 of job 'nightly'" in rejected.stderr


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_failures_export_is_complete(scored: Scored, extension: str, tmp_path: Path) -> None:
    out = tmp_path / f"new/failures.{extension}"
    result = call("failures", "export", scored.tables, "--out", str(out))
    assert result.stdout == ""
    assert result.stderr == f"wrote {out}: 1 failures\n"
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT * FROM '{out}'")
        (row,) = (dict(zip([column[0] for column in found.description], row, strict=True)) for row in found.fetchall())
    assert (row["video_id"], row["error"], row["final"]) == (BROKEN, "decoder_crashed", True)
    assert set(unresolved(scored)[0]) == set(row)


def test_failures_rejects_unknown_extension_and_column(scored: Scored) -> None:
    assert "Invalid file name x.xls" in call("failures", "export", scored.tables, "--out", "x.xls", exit_code=2).stderr
    assert "nonsense" in call("failures", "list", scored.tables, "--where", "nonsense > 1", exit_code=2).stderr
    for command in ("list", "retry", "export"):
        assert f"$ kvq-batch failures {command}" in call("failures", command, "--help").stdout
