"""Commands that ask the tables: status, query, maps.

All of them read; none changes a table.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvq_batch.cli.options import EndpointOption, OutputOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.tables.session import Session

# Views that show what a model made of a video.
_SHOWS_SCORES = re.compile(r"\b(scores|scores_latest|clips|maps|regions)\b", re.IGNORECASE)
_UNKNOWN_NAME = re.compile(r"does not exist|not found in FROM|Referenced (?:table|column)", re.IGNORECASE)


def status(
    tables: TablesArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show so many runs.")] = 10,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show runs, counts and the last commit.

    A score is stale where the video, the model or the preprocessing has
    changed since; the next run makes it anew.

    Example:

      $ kvq-batch status s3://bucket/quality
    """
    from kvq_batch.tables.questions import count_totals, list_models, list_runs

    with open_tables(tables, endpoint_url, region) as session:
        totals = count_totals(session)
        models = list_models(session)
        runs = list_runs(session, limit, is_short=output is Format.TABLE)
    out = Output(output)
    if output is Format.JSON:
        out.record({**totals, "models": models.to_pylist(), "runs": runs.to_pylist()})
        return
    if output is Format.TABLE:
        out.record(totals, title=tables)
        out.rows(models.to_pylist(), models.column_names, title="\nmodels")
    out.rows(runs.to_pylist(), runs.column_names, title="\nruns, newest first" if output is Format.TABLE else "")


def query(
    tables: TablesArgument,
    sql: Annotated[
        str | None, typer.Argument(metavar="SQL", help="One SELECT (or EXPLAIN) in quotes.", show_default=False)
    ] = None,
    views: Annotated[bool, typer.Option("--views", help="List the views and their columns.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Ask the tables in SQL (DuckDB), read-only.

    Views: scores_latest (one current score a video and model), regions (cells
    of the maps), catalog, scores, clips, maps, failures, models, runs.

    Examples:

      $ kvq-batch query quality/ --views
      $ kvq-batch query quality/ \\
          "SELECT video_id, raw_score FROM scores_latest ORDER BY raw_score"
      $ kvq-batch query quality/ "SELECT cell_row, avg(texture) AS texture \\
          FROM regions GROUP BY ALL ORDER BY ALL" --output csv
    """
    from kvq_batch.tables.questions import list_untrained_models, list_view_columns

    if views == (sql is not None):
        raise SpecError('say one of both: a question in SQL ("SELECT ..."), or --views')
    out = Output(output)
    with open_tables(tables, endpoint_url, region) as session:
        if sql is None:
            out.rows(list_view_columns(session), ["view", "column", "type", "meaning"])
            return
        answer = _asked(session, sql)
        untrained = list_untrained_models(session) if _SHOWS_SCORES.search(sql) else []
    answer = answer.rename_columns(_distinct(answer.column_names))
    out.rows(_rows_of(answer), answer.column_names)
    out.warn_untrained(untrained)


def maps(
    tables: TablesArgument,
    video_id: Annotated[
        str, typer.Argument(metavar="VIDEO_ID", help="Video id, as `scores_latest` has it.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Picture to write (.png).", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", help="Model name, where a video has maps of several.", show_default=False)
    ] = None,
    clip: Annotated[int, typer.Option("--clip", min=0, help="Clip of the video.")] = 0,
    slots: Annotated[int, typer.Option("--slots", min=1, max=16, help="Moments of the clip to draw.")] = 4,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Draw saliency and texture of a video over its frames.

    The video is read again from where the catalog says; a video that has
    changed since it was scored is refused.

    Example:

      $ kvq-batch maps quality/ holiday.mp4 --out holiday.png
    """
    from kvq_batch.report.picture import draw_maps
    from kvq_batch.storage.options import StorageOptions

    with open_tables(tables, endpoint_url, region) as session:
        drawn = draw_maps(session, StorageOptions(endpoint_url, region), video_id, out, model, clip, slots)
    output = Output()
    output.note(f"wrote {out}: {drawn.model_id} ({drawn.model_origin}), clip {clip}, score {drawn.raw_score:.4g}")
    output.warn_untrained([drawn.model_id] if drawn.model_origin == "untrained" else [])


def open_tables(tables: str, endpoint_url: str | None, region: str | None) -> "Session":
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.session import open_session

    return open_session(tables, StorageOptions(endpoint_url, region))


def _asked(session: "Session", sql: str) -> Any:
    """The answer as a pa.Table; who names what there is not learns where the names are."""
    try:
        return session.sql(sql)
    except SpecError as error:
        if _UNKNOWN_NAME.search(str(error)):
            raise SpecError(f"{error}\n`kvq-batch query TABLES --views` lists the views and their columns") from error
        raise


def _distinct(names: list[str]) -> list[str]:
    """Column names of which none stands twice: rows are handed over by name."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name}:{seen[name] - 1}")
    return distinct


def _rows_of(answer: Any) -> Iterator[dict[str, Any]]:
    # Batch by batch: an export of millions of rows never stands in memory as Python objects.
    for batch in answer.to_batches(max_chunksize=10_000):
        yield from batch.to_pylist(maps_as_pydicts="lossy")
