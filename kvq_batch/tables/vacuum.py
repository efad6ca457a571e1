"""Vacuum: files below the tables that no reader needs any more are listed, and deleted when asked.

    replaced    parts that compaction took out of a table; as old as their removal
    orphan      parts that a writer or a compaction stored and never committed, because it died; as old as the file

Which they are is delta-rs' judgement (`vacuum`, with `full` for orphans); how young they may be is decided here, so
that neither a run at work nor a reader loses what it still needs. Plans and the lease stand beside the tables and are
never touched. This module asks nobody whether to delete.
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

DEFAULT_RETENTION = timedelta(days=7)

MARGIN = timedelta(hours=1)
"""How much older than anything a run or a compaction may still commit; clocks differ, and uploads take their time."""

Kind = Literal["replaced", "orphan"]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that is no part of its table; `path` is below the table, `modified_at` when it was written."""

    table: str
    path: str
    kind: Kind
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Retention:
    """How old a file must be at least to go, in whole hours, and why it is not what was asked; empty where it is."""

    hours: int
    why: str = ""


def retention(asked: timedelta, holder: Holder | None, now: datetime, is_alone: bool = False) -> Retention:
    """`asked`, or as much more as the run that holds the tables needs.

    Raises: SpecError for less than `MARGIN` where nobody vouches (`is_alone`) that nothing else is at work.
    """
    if asked < MARGIN and not is_alone:
        raise SpecError(
            f"a retention of {_spoken(asked)}: what is younger than {_spoken(MARGIN)} may be a part that a run or a "
            "compaction is about to commit, or that an open session still reads; give a longer --retention, or "
            "--alone if nothing else uses these tables"
        )
    if holder is not None:
        needed = now - holder.taken_at + MARGIN
        if asked < needed:
            hours = _hours(needed)
            return Retention(
                hours,
                f"{holder} holds these tables: only what is older than it and {_spoken(MARGIN)} may go, so that the "
                f"retention is {hours} h and not {_spoken(asked)}",
            )
    return Retention(_hours(asked))


def leftovers(tables: Tables, hours: int, with_orphans: bool) -> Iterator[Leftover]:
    """Files that are older than `hours` and no part of any table, of the loaded versions.

    Raises: SpecError where the tables are out of reach.
    """
    for schema in tables.schemas:
        stored = files_of(tables, schema.name)
        with translate_storage_errors(join(tables.uri, schema.name)):
            replaced = _vacuum(tables, schema.name, hours, full=False)
            # With full, delta-rs also names what it no longer remembers as removed.
            found = replaced | _vacuum(tables, schema.name, hours, full=True) if with_orphans else replaced
        for path in sorted(found & stored.keys()):
            size, modified_at = stored[path]
            yield Leftover(schema.name, path, "replaced" if path in replaced else "orphan", size, modified_at)


def delete_leftovers(tables: Tables, found: Collection[Leftover], hours: int, with_orphans: bool) -> None:
    """Deletes what `leftovers` found with the same `hours` and `with_orphans`; the log of each table tells of it.

    Raises: SpecError where the tables are out of reach, or may not be written.
    """
    for name in sorted({leftover.table for leftover in found}):
        with translate_storage_errors(join(tables.uri, name)):
            _vacuum(tables, name, hours, with_orphans, delete=True)
        tables.refresh(name)


def files_of(tables: Tables, name: str) -> dict[str, tuple[int, datetime]]:
    """{path below the table: (bytes, when written, UTC)} of every file but the log's.

    Raises: SpecError where the table is out of reach.
    """
    with translate_storage_errors(join(tables.uri, name)):
        file_system, root = tables.part_filesystem(name)
        found = file_system.find(root, detail=True)
    files = {}
    for path, info in found.items():
        below = path.removeprefix(root).lstrip("/")
        if not below.startswith("_delta_log/"):
            files[below] = (int(info["size"]), _modified(info))
    return files


def _vacuum(tables: Tables, name: str, hours: int, full: bool, delete: bool = False) -> set[str]:
    """True paths of what delta-rs takes for left over, deleted if asked."""
    paths = tables.delta(name).vacuum(
        retention_hours=hours, dry_run=not delete, enforce_retention_duration=False, full=full
    )
    return {unquote(path) for path in paths}


def _modified(info: dict[str, Any]) -> datetime:
    told = info.get("LastModified") or info.get("mtime")
    return told if isinstance(told, datetime) else datetime.fromtimestamp(float(told or 0), UTC)


def _hours(length: timedelta) -> int:
    return math.ceil(length / timedelta(hours=1))


def _spoken(length: timedelta) -> str:
    hours = length / timedelta(hours=1)
    return f"{hours / 24:g} d" if hours >= 48 else f"{hours:g} h"
