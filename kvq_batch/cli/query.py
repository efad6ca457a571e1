"""The commands `status` and `query`, which read the tables and change nothing."""

import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from kvq_batch.cli.options import EndpointOption, OutputOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

    from kvq_batch.tables.sandbox import QueryLimits
    from kvq_batch.tables.session import Session

# Queries over these views show results of models, so a warning about untrained models applies.
_VIEWS_WITH_RESULTS = re.compile(r"\b(scores|scores_latest|clips|maps|regions)\b", re.IGNORECASE)
_UNKNOWN_NAME = re.compile(r"does not exist|not found in FROM|Referenced (?:table|column)", re.IGNORECASE)
_GRACE_S = 5.0
"""Time after the time limit in which DuckDB stops by itself, as it does between blocks of rows."""

_logger = logging.getLogger(__name__)


def status(
    tables: TablesArgument,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of runs to show.")] = 10,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show runs, counts and the last commit.

    A score is stale if the video, the model or the preprocessing has changed
    since. The next run replaces it.

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
        str | None, typer.Argument(metavar="SQL", help="One SELECT (or EXPLAIN), quoted.", show_default=False)
    ] = None,
    views: Annotated[bool, typer.Option("--views", help="List the views and their columns.")] = False,
    script: Annotated[
        bool, typer.Option("--print-views", help="Print SQL that creates the views in plain DuckDB.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Stop the query after this time.")
    ] = 600,
    memory_limit: Annotated[
        str, typer.Option("--memory-limit", metavar="SIZE", help="Memory of the query, and of its result.")
    ] = "4GB",
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Query the tables in SQL (DuckDB), read-only.

    A query is one SELECT (with PIVOT, if you like), EXPLAIN, DESCRIBE, SUMMARIZE
    or SHOW. It reads the views, and no file. Ctrl-C stops it (exit code 130).

    Views: scores_latest (the current score of each video and model), regions
    (cells of the maps), catalog, scores, clips, maps, failures, models, runs.

    Examples:

      $ kvq-batch query quality/ --views
      $ kvq-batch query quality/ --print-views | duckdb quality.duckdb
      $ kvq-batch query quality/ \\
          "SELECT video_id, raw_score FROM scores_latest ORDER BY raw_score"
      $ kvq-batch query quality/ "SELECT cell_row, avg(texture) AS texture \\
          FROM regions GROUP BY ALL ORDER BY ALL" --output csv
    """
    from kvq_batch.analysis.printed_views import print_views
    from kvq_batch.cli.stdio import write_data
    from kvq_batch.tables.questions import list_untrained_models, list_view_columns
    from kvq_batch.tables.sandbox import QueryLimits

    if [views, script, sql is not None].count(True) != 1:
        raise SpecError('Pass either a query ("SELECT ..."), --views or --print-views.')
    out = Output(output)
    with open_tables(tables, endpoint_url, region, QueryLimits(memory_limit, timeout)) as session:
        if script:
            write_data(print_views(session))
            return
        if sql is None:
            out.rows(list_view_columns(session), ["view", "column", "type", "meaning"])
            return
        with _exit_after(timeout + _GRACE_S):
            answer = _run_query(session, sql)
        untrained = list_untrained_models(session) if _VIEWS_WITH_RESULTS.search(sql) else []
    answer = answer.rename_columns(_unique_names(answer.column_names))
    out.answer(answer)
    out.warn_untrained(untrained)


def open_tables(
    tables: str,
    endpoint_url: str | None,
    region: str | None,
    limits: "QueryLimits | None" = None,
    materialised: Sequence[str] = (),
) -> "Session":
    """Open a read-only session over the tables. Raises: SpecError if there are none."""
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.sandbox import DEFAULT_LIMITS
    from kvq_batch.tables.session import open_session

    return open_session(tables, StorageOptions(endpoint_url, region), limits or DEFAULT_LIMITS, materialised)


def _run_query(session: "Session", sql: str) -> "pa.Table":
    """Return the answer; an error about an unknown name also says where names are listed."""
    try:
        return session.sql(sql)
    except SpecError as error:
        if _UNKNOWN_NAME.search(str(error)):
            raise SpecError(f"{error}\n`kvq-batch query TABLES --views` lists the views and their columns") from error
        raise


@contextmanager
def _exit_after(seconds: float) -> Iterator[None]:
    """Exit the process if the block takes longer: DuckDB cannot stop in the middle of computing one value."""

    def give_up() -> None:
        _logger.error("error: The query did not stop at its time limit: it computes one value that takes very long.")
        # The exit code of a query that stops at its limit. The next session removes the folder of this one.
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _unique_names(names: list[str]) -> list[str]:
    """Number repeated column names: rows are passed on as dictionaries."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}:{seen[name] - 1}")
    return unique
