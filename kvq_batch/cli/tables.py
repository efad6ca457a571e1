"""Commands that ask the tables: status, query, failures, maps.

All of them read; none changes a table.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.options import EndpointOption, OutputOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Format, Output

if TYPE_CHECKING:
    from kvq_batch.io.session import Session

_RUNS = """
SELECT run_id, job, state, started_at, finished_at, num_planned AS planned, num_scored AS scored, num_failed AS failed,
    num_not_reached AS not_reached, message
FROM runs ORDER BY commit_seq DESC LIMIT {limit}
"""

_TOTALS = """
SELECT (SELECT count(*) FROM catalog) AS videos,
    (SELECT count(*) FROM scores_latest WHERE NOT is_stale) AS current_scores,
    (SELECT count(*) FROM scores_latest WHERE is_stale) AS stale_scores,
    (SELECT count(*) FROM failures WHERE final) AS final_failures,
    (SELECT max(scored_at) FROM scores) AS last_scored_at, (SELECT max(commit_seq) FROM scores) AS last_commit_seq
"""

_FAILURES = """
SELECT video_id, model_id, stage, error, message, exit_signal, attempt, final, permanent, run_id, uri, failed_at
FROM failures {where} ORDER BY commit_seq DESC, video_id, attempt
"""

_SUMMARY = """
SELECT stage, error, permanent, count(DISTINCT video_id) AS videos, max(failed_at) AS last_failed_at,
    any_value(message) AS example
FROM failures WHERE final GROUP BY ALL ORDER BY videos DESC, stage, error
"""


def status(
    tables: TablesArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show so many runs.")] = 10,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show runs, counts and the last commit.

    Example:  kvq-batch status s3://bucket/quality
    """
    with _session(tables, endpoint_url, region) as session:
        totals = session.sql(_TOTALS).to_pylist()[0]
        runs = session.sql(_RUNS.format(limit=limit)).to_pylist()
    out = Output(output)
    if output is Format.JSON:
        out.record({**totals, "runs": runs})
    else:
        if output is Format.TABLE:
            out.record(totals, title=tables)
        out.rows(runs, title="runs, newest first")


def query(
    tables: TablesArgument,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT. Views: scores_latest, regions, catalog, ...")],
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Ask the tables in SQL (DuckDB), read-only.

    Views: catalog, scores, scores_latest, clips, maps, regions, failures, models, runs. Columns of one:
    DESCRIBE is `SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'scores'`.

    Example:  kvq-batch query quality/ "SELECT uri, raw_score FROM scores_latest ORDER BY raw_score LIMIT 10"
    """
    with _session(tables, endpoint_url, region) as session:
        answer = session.sql(sql)
        origins = _origins(session)
    out = Output(output)
    out.rows(answer.to_pylist(), answer.column_names)
    if any("score" in name or name in ("texture", "weighted", "mos") for name in answer.column_names):
        out.warn_untrained(origins)


def failures(
    tables: TablesArgument,
    summary: Annotated[bool, typer.Option("--summary", help="Count by stage and error instead of listing.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Also tries that failed before a later one settled it.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List videos that could not be scored, with stage and reason.

    Example:  kvq-batch failures quality/ --summary
    """
    with _session(tables, endpoint_url, region) as session:
        answer = session.sql(_SUMMARY if summary else _FAILURES.format(where="" if every else "WHERE final"))
    Output(output).rows(answer.to_pylist(), answer.column_names)


def maps(
    tables: TablesArgument,
    video_id: Annotated[str, typer.Argument(metavar="VIDEO_ID", help="Video id, as `scores_latest` has it.")],
    out: Annotated[Path, typer.Option("--out", help="Picture to write (.png).")],
    model: Annotated[
        str | None, typer.Option("--model", help="Model name, where a video has maps of several.", show_default=False)
    ] = None,
    clip: Annotated[int, typer.Option("--clip", min=0, help="Clip of the video.")] = 0,
    slots: Annotated[int, typer.Option("--slots", min=1, max=16, help="Moments of the clip to draw.")] = 4,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Draw saliency and texture of a video over its frames.

    Example:  kvq-batch maps quality/ holiday.mp4 --out holiday.png
    """
    from kvq_batch.io.storage import StorageOptions
    from kvq_batch.report.picture import draw_maps

    with _session(tables, endpoint_url, region) as session:
        drawn = draw_maps(session, StorageOptions(endpoint_url, region), video_id, out, model, clip, slots)
    output = Output()
    output.note(f"wrote {out}: {drawn.model_id}, clip {clip}, score {drawn.raw_score:.4g}")
    output.warn_untrained([drawn.model_origin])


def _session(tables: str, endpoint_url: str | None, region: str | None) -> "Session":
    from kvq_batch.io.session import open_session
    from kvq_batch.io.storage import StorageOptions

    return open_session(tables, StorageOptions(endpoint_url, region))


def _origins(session: "Session") -> list[Any]:
    rows = session.sql("SELECT DISTINCT model_origin FROM scores").to_pylist()
    return [row["model_origin"] for row in rows]
