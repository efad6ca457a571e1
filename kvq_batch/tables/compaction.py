"""Compaction: many small parts of one partition become one, sorted, without any row changing.

    choose     neighbours in commit order, small ones only, so that a full part is never written again
    merge      read, sort by the keys, write one part, check its rows and bounds against what the log promised
    replace    one commit that adds the new part and removes the old ones

delta-rs' own `optimize` was measured and left aside. `compact` does not sort; `z_order` looks at the first bytes of a
text only, so that ids under one prefix stay unsorted, and writes everything anew each time; and both make one row
group of a whole part, of which a question for a single video then reads all. An append of ours that removes parts is
not compared by delta-rs with other removals (measured: two compactions of the same parts were both accepted, and rows
stood twice). So a commit may only follow the very version that was looked at, and is otherwise looked at anew.

Writers may commit all the while: nothing here carries or moves their application transaction. This module deletes no
replaced file; that is `vacuum`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from deltalake import CommitProperties
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import RemoveAction

from kvq_batch.domain.errors import FatalError
from kvq_batch.storage.errors import FOREIGN_ERRORS, explain_error
from kvq_batch.storage.objects import put_file
from kvq_batch.storage.options import display_uri, join, translate_storage_errors
from kvq_batch.storage.retry import RetryPolicy
from kvq_batch.tables.data_files import ROW_GROUP_ROWS, DataFile, make_data_file
from kvq_batch.tables.database import reading
from kvq_batch.tables.delta import BOUNDED_COLUMNS, LoggedFile, Tables
from kvq_batch.tables.schemas import find_schema

TARGET_BYTES = 128 << 20

MARK = "kvqBatch"
"""Key of the commit information under which a compaction tells what it did."""

_FULL_SHARE = 0.75
"""A part of this share of the target is left alone."""

_MAX_ROWS = 250_000
"""Rows of a merged part at most: scores compress so well that 128 MB of them would not fit into memory."""

_ROW_GROUP_BYTES = 8 << 20
"""Bytes in memory of a row group at most: what a question for one video reads."""

_LEAST_ROW_GROUP_ROWS = 512

_COMMIT_ATTEMPTS = 50

PATIENCE = RetryPolicy()
"""As a writer has with its commits."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """What became of one partition, or would become of it: its parts and their bytes before and after.

    `bytes_after` is None where it was not done. Commits of a writer beside it are counted as they came.
    """

    table: str
    partition: str
    parts_before: int
    parts_after: int
    bytes_before: int
    bytes_after: int | None


def plan_compaction(tables: Tables, target_bytes: int = TARGET_BYTES) -> list[Compaction]:
    """What `compact` would begin with, of every partition with something to merge."""
    plans = []
    for schema in tables.schemas:
        parts = tables.parts(schema.name)
        groups = choose(parts, target_bytes)
        for partition in sorted({_partition_of(group[0]) for group in groups}):
            before = [part for part in parts if _partition_of(part) == partition]
            fewer = sum(len(group) - 1 for group in groups if _partition_of(group[0]) == partition)
            size = sum(part.size_bytes for part in before)
            plans.append(Compaction(schema.name, partition, len(before), len(before) - fewer, size, None))
    return plans


def compact(tables: Tables, target_bytes: int = TARGET_BYTES) -> Iterator[Compaction]:
    """Merges what is small, table by table; each partition that changed is given when its table is done.

    Each merge is one commit, and its table reads the same before and after it. A table's log gets a checkpoint, and
    loses what is older than its retention.

    Raises:
        SpecError: a part is missing or cannot be read.
        FatalError: another compaction has replaced the same parts, or the store failed; what was committed stays.
    """
    for schema in tables.schemas:
        name = schema.name
        tables.refresh(name)
        before, merged = tables.parts(name), set[str]()
        while groups := choose(tables.parts(name), target_bytes):
            group = groups[0]
            part = merge(tables, name, group)
            store(tables, name, part)
            replace(tables, name, group, part)
            merged.add(_partition_of(group[0]))
        if not merged:
            continue
        with translate_storage_errors(join(tables.uri, name)):
            tables.delta(name).create_checkpoint()
            tables.delta(name).cleanup_metadata()
        after = tables.parts(name)
        for partition in sorted(merged):
            old = [part.size_bytes for part in before if _partition_of(part) == partition]
            new = [part.size_bytes for part in after if _partition_of(part) == partition]
            yield Compaction(name, partition, len(old), len(new), sum(old), sum(new))


def choose(parts: Sequence[LoggedFile], target_bytes: int) -> list[list[LoggedFile]]:
    """Groups of two or more parts to merge, each of one partition and of no more than the target together."""
    small = [
        part
        for part in parts
        # A part of which the log does not know the rows could not be checked after merging.
        if part.num_rows is not None
        and part.size_bytes < _FULL_SHARE * target_bytes
        and part.num_rows < _FULL_SHARE * _MAX_ROWS
    ]
    groups: list[list[LoggedFile]] = []
    size = rows = 0
    for part in sorted(small, key=lambda part: (_partition_of(part), part.low.get("commit_seq", 0), part.path)):
        num_rows = part.num_rows or 0
        is_next = groups and _partition_of(groups[-1][0]) == _partition_of(part)
        if is_next and size + part.size_bytes <= target_bytes and rows + num_rows <= _MAX_ROWS:
            groups[-1].append(part)
            size, rows = size + part.size_bytes, rows + num_rows
        else:
            groups.append([part])
            size, rows = part.size_bytes, num_rows
    return [group for group in groups if len(group) > 1]


def merge(tables: Tables, name: str, group: Sequence[LoggedFile]) -> DataFile:
    """One part with the rows of `group`, sorted; stored nowhere yet.

    Raises: SpecError where a part is missing or cannot be read. FatalError where the log promised other rows.
    """
    schema = find_schema(name)
    with reading(tables.uri):
        rows = tables.dataset(name, group).to_table()
    promised = sum(part.num_rows or 0 for part in group)
    if rows.num_rows != promised:
        raise FatalError(
            f"{display_uri(tables.uri)}: table {name!r}: the log promises {promised} rows in {len(group)} parts and "
            f"they hold {rows.num_rows}; nothing was changed, see `kvq-batch tables check`"
        )
    rows = rows.drop_columns(list(schema.partition_by))
    order = [*schema.sort_by, *(column for column in ("commit_seq",) if column not in schema.sort_by)]
    rows = rows.sort_by([(column, "ascending") for column in order])
    fitting = _ROW_GROUP_BYTES * rows.num_rows // max(1, rows.nbytes)
    stem = f"{max(part.high.get('commit_seq', 0) for part in group):016x}-merged"
    part = make_data_file(
        rows,
        schema,
        group[0].partition,
        stem,
        row_group_rows=max(_LEAST_ROW_GROUP_ROWS, min(ROW_GROUP_ROWS, fitting)),
        data_change=False,
    )
    for column in BOUNDED_COLUMNS:
        _check_bounds(tables, name, column, rows, group)
    return part


def store(tables: Tables, name: str, part: DataFile, patience: RetryPolicy = PATIENCE) -> None:
    """Writes the file of `part`; no reader sees it yet. Raises: FatalError where the store refuses it."""
    try:
        put_file(join(join(tables.uri, name), part.path), part.content.to_pybytes(), tables.options, patience)
    except FOREIGN_ERRORS as error:
        raise _fatal(tables, name, error) from error


def replace(
    tables: Tables, name: str, group: Sequence[LoggedFile], part: DataFile, patience: RetryPolicy = PATIENCE
) -> None:
    """Commits `part`, which is stored, in place of `group`.

    Raises: FatalError where another compaction has replaced one of them, or the store fails.
    """
    removals = [
        RemoveAction(
            path=old.path,
            data_change=False,
            deletion_timestamp=part.action.modification_time,
            size=old.size_bytes,
            partition_values=dict(old.partition),
        )
        for old in group
    ]
    told_of = {"operation": "compact", "parts": len(group), "rows": part.num_rows}
    delta = tables.delta(name)

    def commit(attempt: int) -> None:
        for _ in range(_COMMIT_ATTEMPTS):
            delta.update_incremental()
            live = {logged.path for logged in tables.parts(name)}
            if part.path in live:
                # The commit before had landed, and only its answer was lost.
                return
            if not live.issuperset(old.path for old in group):
                _remove(tables, name, part)
                raise FatalError(
                    f"{display_uri(tables.uri)}: another compaction of table {name!r} is at work; what this one "
                    "committed stays. Let the other finish, then start again if parts are left"
                )
            try:
                delta.create_write_transaction(
                    [part.action, *removals],
                    mode="append",
                    schema=delta.schema(),
                    partition_by=list(find_schema(name).partition_by),
                    commit_properties=CommitProperties(custom_metadata={MARK: told_of}, max_commit_retries=0),
                )
            except CommitFailedError:
                # Somebody committed since we looked.
                continue
            delta.update_incremental()
            return
        raise FatalError(
            f"{display_uri(tables.uri)}: table {name!r} gets commits faster than it can be compacted; start again when "
            "less is written"
        )

    try:
        patience.run(commit)
    except FOREIGN_ERRORS as error:
        raise _fatal(tables, name, error) from error


def _check_bounds(tables: Tables, name: str, column: str, rows: Any, group: Sequence[LoggedFile]) -> None:
    """Raises: FatalError where rows lie outside of what the log promised, so that readers had left them out."""
    if column not in rows.column_names or not all(column in part.low and column in part.high for part in group):
        return
    bounds = pc.min_max(rows.column(column)).as_py()
    low, high = min(part.low[column] for part in group), max(part.high[column] for part in group)
    if bounds["min"] < low or bounds["max"] > high:
        raise FatalError(
            f"{display_uri(tables.uri)}: table {name!r}: {column} lies outside of the bounds that the log has; nothing "
            "was changed, see `kvq-batch tables check`"
        )


def _remove(tables: Tables, name: str, part: DataFile) -> None:
    file_system, root = tables.part_filesystem(name)
    file_system.rm_file(f"{root}/{part.path}")


def _fatal(tables: Tables, name: str, error: Exception) -> FatalError:
    return FatalError(
        f"{display_uri(tables.uri)}: table {name!r} cannot be compacted: {explain_error(error)}. "
        "What was committed stays; start again"
    )


def _partition_of(part: LoggedFile) -> str:
    return ",".join(part.partition.values())
