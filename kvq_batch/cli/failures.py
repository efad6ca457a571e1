"""The commands `failures list`, `retry` and `export`: what could not be scored, and why."""

import os
from typing import Annotated, Literal

import typer

from kvq_batch.cli.options import EndpointOption, OutputOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Format, Output
from kvq_batch.cli.query import open_tables

StageName = Literal["fetch", "probe", "decode", "score"]

ErrorOption = Annotated[
    str | None, typer.Option("--error", metavar="NAME", help="Only failures with this error.", show_default=False)
]
StageOption = Annotated[
    StageName | None, typer.Option("--stage", help="Only failures of this stage.", show_default=False)
]
FilterOption = Annotated[
    str | None,
    typer.Option("--where", metavar="SQL", help="Only failures that meet this condition.", show_default=False),
]
AllOption = Annotated[
    bool, typer.Option("--all", help="Every failed attempt, also those that a later attempt resolved.")
]

app = typer.Typer(no_args_is_help=True, help="List, retry and export failures.")


@app.command("list")
def list_(
    tables: TablesArgument,
    summary: Annotated[bool, typer.Option("--summary", help="Count by stage and error.")] = False,
    error: ErrorOption = None,
    stage: StageOption = None,
    where: FilterOption = None,
    all_: AllOption = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List failed videos with stage and reason.

    Shows the newest final failure of each video and model that has no later
    score. Permanent failures are retried when the video changes or after
    `failures retry`. Other failures are retried by the next run.

    Examples:

      $ kvq-batch failures list quality/
      $ kvq-batch failures list quality/ --summary
      $ kvq-batch failures list quality/ --stage decode --output json
    """
    from kvq_batch.tables.questions import count_failures, list_failures, select_failures

    out = Output(output)
    selected = select_failures(_view(all_), error, stage, where)
    is_short = output is Format.TABLE and not all_
    with open_tables(tables, endpoint_url, region) as session:
        answer = count_failures(session, selected) if summary else list_failures(session, selected, is_short)
    if not answer.num_rows:
        out.note("no failures")
        if output is Format.TABLE:
            return
    out.rows(answer.to_pylist(), answer.column_names)


@app.command()
def retry(
    tables: TablesArgument,
    error: ErrorOption = None,
    stage: StageOption = None,
    where: FilterOption = None,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Release permanent failures, so that the next run retries them.

    Writes the request, with your user name, to the tables. Starts no run.

    Examples:

      $ kvq-batch failures retry quality/
      $ kvq-batch failures retry quality/ --error out_of_memory
    """
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.retry_requests import request_retries

    user = os.environ.get("USER") or f"user {os.getuid()}"
    num = request_retries(tables, StorageOptions(endpoint_url, region), user, error, stage, where)
    if num:
        Output().note(f"the next run retries {num} permanent failure(s)")
    else:
        filters = " and ".join(word for word in (error, stage) if word)
        of = f" of {filters}" if filters else ""
        Output().note(f"no permanent failures{of}; every run retries the others")


@app.command()
def export(
    tables: TablesArgument,
    out: Annotated[
        str, typer.Option("--out", metavar="FILE", help="File to write: .parquet, .csv or .jsonl.", show_default=False)
    ],
    error: ErrorOption = None,
    stage: StageOption = None,
    where: FilterOption = None,
    all_: AllOption = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
) -> None:
    """Write failures to a file.

    Example:

      $ kvq-batch failures export quality/ --out failures.csv --stage decode
    """
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.questions import list_failures, select_failures
    from kvq_batch.tables.table_files import check_extension, write_table

    check_extension(out)
    with open_tables(tables, endpoint_url, region) as session:
        answer = list_failures(session, select_failures(_view(all_), error, stage, where))
    write_table(answer, out, StorageOptions(endpoint_url, region))
    Output().note(f"wrote {out}: {answer.num_rows} failures")


def _view(has_all: bool) -> str:
    return "failures" if has_all else "unresolved_failures"
