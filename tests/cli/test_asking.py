"""Commands that ask tables: data on stdout in three formats, warnings on stderr, refusals with a hint."""

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
    told = json.loads(call("status", scored.tables, "--output", "json").stdout)
    counts = {name: told[name] for name in ("videos", "num_runs", "current_scores", "stale_scores", "failures")}
    assert counts == {"videos": 3, "num_runs": 1, "current_scores": 2, "stale_scores": 0, "failures": 1}
    assert told["last_commit_seq"] > 0
    assert {model["model_id"]: (model["model_origin"], model["current_scores"]) for model in told["models"]} == {
        KVQ.model_id: ("untrained", 1),
        LUMA.model_id: ("untrained", 1),
    }
    (run,) = told["runs"]
    assert (run["run_id"], run["state"]) == ("run-1", "finished")
    table = call("status", scored.tables).stdout
    assert "run-1" in table
    assert KVQ.model_id in table
    rows = list(csv.DictReader(io.StringIO(call("status", scored.tables, "-o", "csv").stdout)))
    assert [row["run_id"] for row in rows] == ["run-1"]


def test_query_in_three_formats_gives_the_same_numbers(scored: Scored) -> None:
    sql = "SELECT video_id, sum(num_clips) AS clips, raw_score FROM scores_latest GROUP BY ALL ORDER BY video_id"
    rows = json.loads(call("query", scored.tables, sql, "-o", "json").stdout)
    assert [(row["video_id"], row["clips"]) for row in rows] == [(PLAIN, 1), (VIDEO, 2)]
    (first, second) = csv.DictReader(io.StringIO(call("query", scored.tables, sql, "-o", "csv").stdout))
    assert float(first["raw_score"]) == rows[0]["raw_score"]
    assert second["clips"] == "2"
    assert VIDEO in call("query", scored.tables, sql).stdout


def test_query_keeps_columns_of_one_name_apart_and_maps_as_objects(scored: Scored) -> None:
    sql = "SELECT 1 AS a, 2 AS a, outputs FROM scores LIMIT 1"
    (row,) = json.loads(call("query", scored.tables, sql, "-o", "json").stdout)
    assert row == {"a": 1, "a:1": 2, "outputs": {"sharpness": 0.5}}


@pytest.mark.parametrize("output", ["table", "json", "csv"])
def test_scores_of_an_untrained_model_are_never_shown_without_a_word(scored: Scored, output: str) -> None:
    """Whatever name a question gives the number; and on stderr, so that data stays data."""
    for sql in ("SELECT avg(raw_score) AS x FROM Scores_Latest", "SELECT max(texture) AS y FROM regions"):
        result = call("query", scored.tables, sql, "--output", output)
        assert f"UNTRAINED: the weights of {KVQ.model_id} are random" in result.stderr
        assert "UNTRAINED" not in result.stdout
    assert call("query", scored.tables, "SELECT count(*) FROM catalog", "--output", output).stderr == ""


def test_views_lists_what_can_be_asked_with_the_columns_of_the_owner(scored: Scored) -> None:
    rows = json.loads(call("query", scored.tables, "--views", "--output", "json").stdout)
    columns = {(row["view"], row["column"]): row["meaning"] for row in rows}
    assert ("scores_latest", "raw_score") in columns
    assert columns["catalog", "country"] == "column of your catalog"
    assert {"regions", "failures", "runs", "models"} <= {row["view"] for row in rows}
    assert all(row["meaning"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["SELECT * FROM nothing"], "`kvq-batch query TABLES --views` lists"),
        (["SELECT nothing FROM scores"], "`kvq-batch query TABLES --views` lists"),
        (["SELEC 1"], "syntax error"),
        (["DROP TABLE scores"], "one SELECT or EXPLAIN"),
        (["SELECT 1; SELECT 2"], "2 statements"),
        (["SELECT * FROM read_csv('/etc/hosts')"], "disabled"),
        ([], "say one of both"),
        (["SELECT 1", "--views"], "say one of both"),
    ],
)
def test_what_is_no_question_is_refused(scored: Scored, arguments: list[str], said: str) -> None:
    result = call("query", scored.tables, *arguments, exit_code=2)
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", [["status"], ["query", "SELECT 1"], ["failures"], ["maps", "v", "--out", "x.png"]])
def test_a_place_without_tables_is_refused(command: list[str], tmp_path: Path) -> None:
    name, *more = command
    result = call(name, str(tmp_path), *more, exit_code=2)
    assert "there are no tables here" in result.stderr


def test_failures_are_listed_for_people_and_whole_for_pipes(scored: Scored) -> None:
    table = call("failures", scored.tables).stdout
    assert all(word in table for word in (BROKEN, "decode", "decoder_crashed", "next run", "kvq-tiny"))
    (row,) = json.loads(call("failures", scored.tables, "--output", "json").stdout)
    wanted = {"video_id", "model_id", "stage", "error", "message", "final", "permanent", "run_id", "exit_signal"}
    assert wanted <= set(row)
    assert (row["video_id"], row["exit_signal"], row["final"]) == (BROKEN, "SIGSEGV", True)
    (kind,) = json.loads(call("failures", scored.tables, "--summary", "-o", "json").stdout)
    assert (kind["stage"], kind["error"], kind["videos"]) == ("decode", "decoder_crashed", 1)


def test_a_failure_stands_until_the_model_scores_the_video(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    scored.writer.commit(make_failures([BROKEN], KVQ))
    assert len(json.loads(call("failures", scored.tables, "-o", "json").stdout)) == 1
    scored.writer.commit(without_maps([BROKEN], LUMA, "etag:1"))
    assert len(json.loads(call("failures", scored.tables, "-o", "json").stdout)) == 1
    scored.writer.commit(without_maps([BROKEN], KVQ, "etag:1"))
    settled = call("failures", scored.tables, "-o", "json")
    assert json.loads(settled.stdout) == []
    assert "no failures" in settled.stderr
    assert call("failures", scored.tables).stdout == ""
    assert len(json.loads(call("failures", scored.tables, "--all", "-o", "json").stdout)) == 2


def test_maps_writes_a_picture_and_says_what_the_score_is_worth(scored: Scored, tmp_path: Path) -> None:
    out = tmp_path / "maps.png"
    result = call("maps", scored.tables, VIDEO, "--out", str(out), "--slots", "1")
    assert out.stat().st_size > 1000
    assert result.stdout == ""
    assert f"wrote {out}: {KVQ.model_id} (untrained), clip 0, score" in result.stderr
    assert "UNTRAINED" in result.stderr
    refused = call("maps", scored.tables, VIDEO, "--out", str(out), "--clip", "7", exit_code=2)
    assert "its clips are 0 to 1" in refused.stderr


def test_maps_of_a_video_that_is_gone_is_a_failure(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    (scored.videos / VIDEO).unlink()
    result = call("maps", scored.tables, VIDEO, "--out", str(tmp_path / "x.png"), exit_code=1)
    assert result.stderr.startswith("error: fetch: missing")


def standing(scored: Scored, *more: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(call("failures", scored.tables, "-o", "json", *more).stdout)
    return rows


def test_what_failed_for_good_is_asked_for_again_and_stays_a_failure(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    scored.writer.commit(make_failures([VIDEO, PLAIN], LUMA))
    permanent = {row["video_id"] for row in standing(scored, "--where", "permanent")}
    assert permanent == {VIDEO, PLAIN}
    said = call("failures", scored.tables, "--retry", "--where", f"video_id = '{PLAIN}' -- only this one").stderr
    assert said == "1 failure(s) for good are tried again by the next run\n"

    # The request is no failure: nothing is counted or listed twice, and what it asks for stands out.
    rows = standing(scored)
    assert {(row["video_id"], row["permanent"]) for row in rows} == {(BROKEN, False), (VIDEO, True), (PLAIN, False)}
    assert [row["video_id"] for row in rows if row["is_retry_requested"]] == [PLAIN]
    assert len(standing(scored, "--all")) == 3
    assert "retry_requested" not in {row["error"] for row in standing(scored, "--all")}
    kinds = json.loads(call("failures", scored.tables, "--summary", "-o", "json").stdout)
    assert sum(kind["videos"] for kind in kinds) == 3
    assert json.loads(call("status", scored.tables, "-o", "json").stdout)["failures"] == 3

    # Asked again, there is nothing left to ask for but the other.
    assert "no failure for good stands" in call("failures", scored.tables, "--retry", "--error", "nothing").stderr
    assert call("failures", scored.tables, "--retry", "--stage", "decode").stderr.startswith("1 failure(s)")
    assert "no failure for good stands" in call("failures", scored.tables, "--retry").stderr

    # A new failure for good stands again.
    Writer(Tables.open(scored.tables), "run-2").commit(make_failures([PLAIN], LUMA))
    assert [row["video_id"] for row in standing(scored, "--where", "permanent")] == [PLAIN]


def test_the_next_plan_tries_what_was_asked_for(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    tables = Tables.open(scored.tables)
    scored.writer.commit(make_failures(["a", "b"], LUMA))
    catalog = make_catalog(["a", "b"])
    tables.refresh()
    assert make_plan(tables, catalog, "nightly", [LUMA]).num_quarantined == 2
    call("failures", scored.tables, "--retry", "--where", "video_id = 'b'")
    tables.refresh()
    plan = make_plan(tables, catalog, "nightly", [LUMA])
    assert plan.num_quarantined == 1
    assert [(row["video_id"], row["reason"]) for row in plan.tasks.to_pylist()] == [("b", "retry")]
    assert [finding.kind for finding in check_tables(tables) if finding.kind == "unknown_run"] == []


def test_another_try_is_not_asked_for_while_a_run_is_at_work(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    with hold(scored.tables, StorageOptions(), Holder.this_process("run-7", "nightly")):
        refused = call("failures", scored.tables, "--retry", exit_code=2)
    assert "run run-7 of job 'nightly'" in refused.stderr


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_failures_are_exported_whole(scored: Scored, extension: str, tmp_path: Path) -> None:
    out = tmp_path / f"new/failures.{extension}"
    result = call("failures", scored.tables, "--export", str(out))
    assert result.stdout == ""
    assert result.stderr == f"wrote {out}: 1 failures\n"
    with duckdb.connect() as connection:
        found = connection.execute(f"SELECT * FROM '{out}'")
        (row,) = (dict(zip([column[0] for column in found.description], row, strict=True)) for row in found.fetchall())
    assert (row["video_id"], row["error"], row["final"]) == (BROKEN, "decoder_crashed", True)
    assert set(standing(scored)[0]) == set(row)


def test_failures_takes_one_wish_at_a_time(scored: Scored, tmp_path: Path) -> None:
    assert "one of --summary, --retry" in call("failures", scored.tables, "--retry", "--summary", exit_code=2).stderr
    assert "leave out --all" in call("failures", scored.tables, "--retry", "--all", exit_code=2).stderr
    assert "written as .parquet" in call("failures", scored.tables, "--export", "x.xls", exit_code=2).stderr
    assert "nonsense" in call("failures", scored.tables, "--where", "nonsense > 1", exit_code=2).stderr
