"""The command about failures: what could not be scored and why, as a list, counted, as a file; and another try of it.

Listing reads; only `--retry` writes, and only that somebody asks: the next run does it.
"""

import os
from typing import Annotated, Literal

import typer

from kvq_batch.cli.options import EndpointOption, OutputOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.tables import open_tables
from kvq_batch.domain.errors import SpecError

StageName = Literal["fetch", "probe", "decode", "score"]


def failures(
    tables: TablesArgument,
    summary: Annotated[bool, typer.Option("--summary", help="Count by stage and error instead of listing.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Have the next run try again what failed for good (see --error, --where).")
    ] = False,
    export: Annotated[
        str | None,
        typer.Option("--export", metavar="FILE", help="Write them to a .parquet, .csv or .jsonl.", show_default=False),
    ] = None,
    error: Annotated[
        str | None, typer.Option("--error", metavar="NAME", help="Only failures of this name.", show_default=False)
    ] = None,
    stage: Annotated[StageName | None, typer.Option("--stage", help="Only failures of this stage.")] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="SQL", help="Only failures that meet this condition.", show_default=False),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every try that ever failed, those that a later one settled too.")
    ] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List videos that could not be scored, with stage and reason.

    Shown is the newest final failure of each video and model that has no
    later score. What failed for good is tried again when the video changes,
    or after --retry; everything else by the next run anyway.

    Examples:

      $ kvq-batch failures quality/
      $ kvq-batch failures quality/ --summary
      $ kvq-batch failures quality/ --stage decode --export failures.csv
      $ kvq-batch failures quality/ --retry --error out_of_memory
    """
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.questions import count_failures, list_failures, select_failures
    from kvq_batch.tables.retry_requests import request_retries
    from kvq_batch.tables.table_files import check_extension, write_table

    if summary + retry + (export is not None) > 1:
        raise SpecError("say one of --summary, --retry and --export")
    if retry and every:
        raise SpecError("--retry is about failures that still stand: leave out --all")
    out, storage = Output(output), StorageOptions(endpoint_url, region)
    if retry:
        who = os.environ.get("USER") or f"user {os.getuid()}"
        num = request_retries(tables, storage, who, error, stage, where)
        return out.note(f"{num} failure(s) for good are tried again by the next run" if num else _nothing(error, stage))
    if export is not None:
        check_extension(export)
    selected = select_failures("failures" if every else "unresolved_failures", error, stage, where)
    is_short = output is Format.TABLE and not every and export is None
    with open_tables(tables, endpoint_url, region) as session:
        answer = count_failures(session, selected) if summary else list_failures(session, selected, is_short)
    if export is not None:
        write_table(answer, export, storage)
        return out.note(f"wrote {export}: {answer.num_rows} failures")
    if not answer.num_rows:
        out.note("no failures")
        if output is Format.TABLE:
            return None
    return out.rows(answer.to_pylist(), answer.column_names)


def _nothing(error: str | None, stage: str | None) -> str:
    narrow = f" of {' and '.join(word for word in (error, stage) if word)}" if error or stage else ""
    return f"no failure for good stands{narrow}; what may pass is tried again by every run"
