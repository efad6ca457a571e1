"""Commands that maintain the tables: tables compact, vacuum, history, check, drop-column.

Only drop-column changes query results. compact, vacuum and check may run while a run commits.
"""

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from kvq_batch.cli.options import EndpointOption, OutputOption, RegionOption, TablesArgument
from kvq_batch.cli.output import Format, Output
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    from kvq_batch.tables.delta import Tables

app = typer.Typer(no_args_is_help=True, help="Compact, vacuum, check and repair the tables, and show their history.")

_SIZE = re.compile(r"(\d+) ?(KB|MB|GB)", re.IGNORECASE)
_UNITS = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
_DURATION = re.compile(r"(\d+) ?(h|d)")

EXIT_FOUND = 3
"""Exit code of `tables check` if it finds an error."""

_COMPACTION = ("table", "partition", "files_before", "files_after", "bytes_before", "bytes_after")
_LEFTOVER = ("table", "path", "kind", "size_bytes", "modified_at")
_COMMIT = (
    "table", "version", "committed_at", "operation", "files_added", "rows_added", "files_removed", "rows_removed",
    "epoch", "counter", "run_id",
)  # fmt: skip
_DROP = ("table", "column", "type", "files", "rows")
_FINDING = ("severity", "kind", "table", "subject", "message")


@app.command()
def compact(
    tables: TablesArgument,
    target: Annotated[str, typer.Option("--target", help="Target size of merged files: 64MB, 1GB.")] = "128MB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be merged, and stop.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Merge small data files and sort them by video.

    Query results do not change. Can run while a run commits. Replaced files
    are kept for open sessions until `tables vacuum` deletes them.

    Example:

      $ kvq-batch tables compact s3://bucket/quality
    """
    from kvq_batch.tables.compaction import compact as compact_tables
    from kvq_batch.tables.compaction import plan_compaction

    target_bytes = _parse_size(target)
    opened, out = _open(tables, endpoint_url, region), Output(output)
    if dry_run:
        out.rows((asdict(plan) for plan in plan_compaction(opened, target_bytes)), _COMPACTION)
        return
    done = list(compact_tables(opened, target_bytes))
    out.rows((asdict(compaction) for compaction in done), _COMPACTION)
    if not done:
        out.note("nothing to merge: no partition has two small files")


@app.command()
def vacuum(
    tables: TablesArgument,
    keep: Annotated[str, typer.Option("--retention", help="Keep files younger than this: 36h, 7d.")] = "7d",
    delete: Annotated[bool, typer.Option("--delete", help="Delete the files instead of listing them.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Include files of crashed writers, which were never committed.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Allow a retention under 1 hour. Only if nothing else uses the tables.")
    ] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List or delete files that the tables no longer need.

    Keeps files that are younger than the current run plus one hour. Plans
    of earlier runs are not touched.

    Examples:

      $ kvq-batch tables vacuum s3://bucket/quality --full
      $ kvq-batch tables vacuum s3://bucket/quality --full --delete
    """
    from kvq_batch.tables.lease import read_holder
    from kvq_batch.tables.vacuum import delete_leftovers, effective_retention, find_leftovers

    requested = _parse_duration(keep)
    opened, out = _open(tables, endpoint_url, region), Output(output)
    holder = read_holder(opened.uri, opened.options)
    retention = effective_retention(requested, holder, datetime.now(UTC), is_forced=force)
    if retention.reason:
        out.note(retention.reason)
    found = list(find_leftovers(opened, retention.hours, full))
    if delete:
        delete_leftovers(opened, found, retention.hours, full)
    out.rows((asdict(leftover) for leftover in found), _LEFTOVER)
    size = sum(leftover.size_bytes for leftover in found)
    done = "deleted" if delete else "use --delete to delete them"
    out.note(f"{len(found)} file(s) of {size / (1 << 20):.1f} MiB, older than {retention.hours} h: {done}")


@app.command()
def history(
    tables: TablesArgument,
    table: Annotated[str | None, typer.Option("--table", help="Show only this table.", show_default="all")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of commits to show.")] = 20,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show commits, newest first.

    Epoch and counter identify the commit of a writer, as in `commit_seq`. A
    claim is the start of a writer.

    Example:

      $ kvq-batch tables history quality/ --table scores --limit 5
    """
    from kvq_batch.tables.history import read_history
    from kvq_batch.tables.schemas import find_schema

    opened = _open(tables, endpoint_url, region)
    names = [schema.name for schema in opened.schemas] if table is None else [find_schema(table).name]
    commits = [commit for name in names for commit in read_history(opened, name, limit)]
    commits.sort(key=lambda commit: (commit.committed_at, commit.version), reverse=True)
    Output(output).rows((asdict(commit) for commit in commits[:limit]), _COMMIT)


@app.command()
def check(
    tables: TablesArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Read every column of every file, not only footers.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Check that committed data is complete and consistent.

    Exit code 0: no errors. 3: there are findings of severity error.

    Example:

      $ kvq-batch tables check s3://bucket/quality --deep
    """
    from kvq_batch.tables.check import check_tables

    out = Output(output)
    findings = check_tables(_open(tables, endpoint_url, region), deep)
    out.rows((asdict(finding) for finding in findings), _FINDING)
    num_errors = sum(finding.severity == "error" for finding in findings)
    if num_errors:
        out.note(f"{num_errors} error(s)", style="red")
        raise typer.Exit(EXIT_FOUND)
    out.note("no errors")


@app.command("drop-column")
def drop_column(
    tables: TablesArgument,
    column: Annotated[
        str, typer.Argument(metavar="COLUMN", help="Column of your catalog to drop.", show_default=False)
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written again, and stop.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Drop a column of your catalogs from the tables, with its values.

    Writes the table `catalog` again, in one commit. No run may be active.
    `tables vacuum` deletes the old files. The next run adds the column again
    if a catalog still has it.

    Example:

      $ kvq-batch tables drop-column quality/ notes --dry-run
    """
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.schema_changes import drop_catalog_column, plan_drop

    out = Output(output)
    if dry_run:
        out.rows([asdict(plan_drop(_open(tables, endpoint_url, region), column))], _DROP)
        return
    out.rows([asdict(drop_catalog_column(tables, StorageOptions(endpoint_url, region), column))], _DROP)
    out.note("dropped")


def _open(tables: str, endpoint_url: str | None, region: str | None) -> "Tables":
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.delta import Tables

    return Tables.open(tables, StorageOptions(endpoint_url, region))


def _parse_size(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise SpecError(f"Invalid --target {text!r}: expected a size such as 128MB or 1GB.")
    return int(found[1]) * _UNITS[found[2].lower()]


def _parse_duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise SpecError(f"Invalid --retention {text!r}: expected a duration such as 7d or 36h.")
    return int(found[1]) * (timedelta(days=1) if found[2] == "d" else timedelta(hours=1))
