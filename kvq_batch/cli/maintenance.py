"""Commands that look after the tables: tables compact, vacuum, history, check.

None of them changes an answer; compact and vacuum may run beside a run.
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

app = typer.Typer(no_args_is_help=True, help="Look after the tables: fewer parts, no leftovers, nothing wrong.")

_SIZE = re.compile(r"(\d+) ?(KB|MB|GB)", re.IGNORECASE)
_UNITS = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
_LENGTH = re.compile(r"(\d+) ?(h|d)")

EXIT_FOUND = 3
"""`tables check` found an error."""

_COMPACTION = ("table", "partition", "parts_before", "parts_after", "bytes_before", "bytes_after")
_LEFTOVER = ("table", "path", "kind", "size_bytes", "modified_at")
_COMMIT = (
    "table", "version", "committed_at", "operation", "parts_added", "rows_added", "parts_removed", "rows_removed",
    "epoch", "counter", "run_id",
)  # fmt: skip
_FINDING = ("severity", "kind", "table", "subject", "message")


@app.command()
def compact(
    tables: TablesArgument,
    target: Annotated[str, typer.Option("--target", help="Size of a part to merge towards: 64MB, 1GB.")] = "128MB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be merged and stop.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Merge small parts, sorted by video; no answer changes.

    May run beside a run that commits. The parts that it replaces stay, for
    whoever still reads them, until `tables vacuum` deletes them.

    Example:

      $ kvq-batch tables compact s3://bucket/quality
    """
    from kvq_batch.tables.compaction import compact as merged
    from kvq_batch.tables.compaction import plan_compaction

    target_bytes = _bytes(target)
    opened, out = _open(tables, endpoint_url, region), Output(output)
    if dry_run:
        out.rows((asdict(plan) for plan in plan_compaction(opened, target_bytes)), _COMPACTION)
        return
    done = list(merged(opened, target_bytes))
    out.rows((asdict(compaction) for compaction in done), _COMPACTION)
    if not done:
        out.note("nothing to merge: no partition has two small parts")


@app.command()
def vacuum(
    tables: TablesArgument,
    keep: Annotated[str, typer.Option("--retention", help="Keep what is younger: 36h, 7d.")] = "7d",
    delete: Annotated[bool, typer.Option("--delete", help="Delete the files; else only list them.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Also files that the log never knew, of writers that died.")
    ] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="Nothing else uses these tables: allow a retention under 1 hour.")
    ] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List files that are no part of the tables any more, or delete them.

    Never what is younger than the run that holds the tables, and an hour.
    Plans of earlier runs are not touched.

    Example:

      $ kvq-batch tables vacuum s3://bucket/quality --full
      $ kvq-batch tables vacuum s3://bucket/quality --full --delete
    """
    from kvq_batch.tables.lease import read_holder
    from kvq_batch.tables.vacuum import delete_leftovers, leftovers, retention

    asked = _length(keep)
    opened, out = _open(tables, endpoint_url, region), Output(output)
    kept = retention(asked, read_holder(opened.uri, opened.options), datetime.now(UTC), is_alone=alone)
    if kept.why:
        out.note(kept.why)
    found = list(leftovers(opened, kept.hours, full))
    if delete:
        delete_leftovers(opened, found, kept.hours, full)
    out.rows((asdict(leftover) for leftover in found), _LEFTOVER)
    size = sum(leftover.size_bytes for leftover in found)
    done = "deleted" if delete else "would be deleted; --delete does it"
    out.note(f"{len(found)} file(s) of {size / (1 << 20):.1f} MiB, older than {kept.hours} h: {done}")


@app.command()
def history(
    tables: TablesArgument,
    table: Annotated[str | None, typer.Option("--table", help="Only this table.", show_default="all")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show so many commits.")] = 20,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show what was committed, newest first.

    Epoch and counter are the writer's, as in `commit_seq`; a claim is a writer
    that begins.

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
    deep: Annotated[bool, typer.Option("--deep", help="Read every column of every part, not only its footer.")] = False,
    endpoint_url: EndpointOption = None,
    region: RegionOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Check that everything committed is there, whole, and adds up.

    Exit code 0: nothing is wrong. 3: there are findings of severity error.

    Example:

      $ kvq-batch tables check s3://bucket/quality --deep
    """
    from kvq_batch.tables.check import check_tables

    out = Output(output)
    findings = check_tables(_open(tables, endpoint_url, region), deep)
    out.rows((asdict(finding) for finding in findings), _FINDING)
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        out.note(f"{errors} error(s)", style="red")
        raise typer.Exit(EXIT_FOUND)
    out.note("nothing is wrong")


def _open(tables: str, endpoint_url: str | None, region: str | None) -> "Tables":
    from kvq_batch.storage.options import StorageOptions
    from kvq_batch.tables.delta import Tables

    return Tables.open(tables, StorageOptions(endpoint_url, region))


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise SpecError(f"--target {text!r} is no size; write 128MB, or 1GB")
    return int(found[1]) * _UNITS[found[2].lower()]


def _length(text: str) -> timedelta:
    found = _LENGTH.fullmatch(text.strip())
    if found is None:
        raise SpecError(f"--retention {text!r} is no length of time; write 7d, or 36h")
    return int(found[1]) * (timedelta(days=1) if found[2] == "d" else timedelta(hours=1))
