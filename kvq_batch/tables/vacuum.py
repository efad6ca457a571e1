"""Vacuum: list files below the tables that no reader needs, and delete them on request.

    replaced    data files that compaction took out of a table; their age is that of the removal
    orphan      data files that a crashed writer or compaction stored but never committed; their age is that of the file

delta-rs finds them (`vacuum`, with `full` for orphans). The minimum age is decided here, so that neither a running job
nor a reader loses a file that it needs. Plans and leases, which are beside the tables, are not touched.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import unquote

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import join, translate_storage_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder

MARGIN = timedelta(hours=1)
"""Files younger than this may still be committed by a run or a compaction. Clocks differ, and uploads take time."""

Kind = Literal["replaced", "orphan"]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that does not belong to its table any more. `path` is below the table, `modified_at` its write time."""

    table: str
    path: str
    kind: Kind
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Retention:
    """Minimum age of a file to delete, in whole hours, and why it is longer than requested (empty if it is not)."""

    hours: int
    reason: str = ""


def effective_retention(
    requested: timedelta, holder: Holder | None, now: datetime, is_forced: bool = False
) -> Retention:
    """Return the requested retention, or a longer one if the run that holds the tables needs it.

    Raises:
        SpecError: `requested` is less than `MARGIN` and `is_forced` (nothing else uses the tables) is false.
    """
    if requested < MARGIN and not is_forced:
        raise SpecError(
            f"Invalid --retention of {_format(requested)}: files younger than {_format(MARGIN)} may be about to be "
            "committed by a run or a compaction, or be read by an open session. Give a longer --retention, or --force "
            "if nothing else uses these tables."
        )
    if holder is not None:
        needed = now - holder.taken_at + MARGIN
        if requested < needed:
            hours = _hours(needed)
            return Retention(
                hours,
                f"The retention is {hours} h instead of {_format(requested)}: {holder} holds these tables, and only "
                f"files that are {_format(MARGIN)} older than its start may be deleted.",
            )
    return Retention(_hours(requested))


def find_leftovers(tables: Tables, hours: int, with_orphans: bool) -> Iterator[Leftover]:
    """Yield files older than `hours` that belong to no table, as of the loaded versions.

    Raises: SpecError if the tables are out of reach.
    """
    for schema in tables.schemas:
        stored = list_files(tables, schema.name)
        with translate_storage_errors(join(tables.uri, schema.name)):
            replaced = _vacuum(tables, schema.name, hours, full=False)
            # With full, delta-rs also returns files whose removal is no longer in the log.
            found = replaced | _vacuum(tables, schema.name, hours, full=True) if with_orphans else replaced
        for path in sorted(found & stored.keys()):
            size, modified_at = stored[path]
            yield Leftover(schema.name, path, "replaced" if path in replaced else "orphan", size, modified_at)


def delete_leftovers(tables: Tables, found: Collection[Leftover], hours: int, with_orphans: bool) -> None:
    """Delete what `find_leftovers` found with the same arguments. The log of each table records it.

    Raises: SpecError if the tables are out of reach or read-only.
    """
    for name in sorted({leftover.table for leftover in found}):
        with translate_storage_errors(join(tables.uri, name)):
            _vacuum(tables, name, hours, with_orphans, delete=True)
        tables.refresh(name)


def list_files(tables: Tables, name: str) -> dict[str, tuple[int, datetime]]:
    """Return {path below the table: (bytes, write time in UTC)} of all its files, without the log.

    Raises: SpecError if the table is out of reach.
    """
    with translate_storage_errors(join(tables.uri, name)):
        file_system, root = tables.table_filesystem(name)
        found = file_system.find(root, detail=True)
    files = {}
    for path, info in found.items():
        below = path.removeprefix(root).lstrip("/")
        if not below.startswith("_delta_log/"):
            files[below] = (int(info["size"]), _modified(info))
    return files


def _vacuum(tables: Tables, name: str, hours: int, full: bool, delete: bool = False) -> set[str]:
    """Return the unescaped paths that delta-rs would vacuum; delete them if `delete` is true."""
    paths = tables.delta(name).vacuum(
        retention_hours=hours, dry_run=not delete, enforce_retention_duration=False, full=full
    )
    return {unquote(path) for path in paths}


def _modified(info: dict[str, Any]) -> datetime:
    modified = info.get("LastModified") or info.get("mtime")
    return modified if isinstance(modified, datetime) else datetime.fromtimestamp(float(modified or 0), UTC)


def _hours(length: timedelta) -> int:
    return math.ceil(length / timedelta(hours=1))


def _format(length: timedelta) -> str:
    hours = length / timedelta(hours=1)
    return f"{hours / 24:g} d" if hours >= 48 else f"{hours:g} h"
