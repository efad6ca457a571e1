"""Compaction: merge many small data files of a partition into one sorted file, without changing a row.

    choose_groups    small neighbours in commit order; full files are never rewritten
    merge_files      read, sort by the keys, write one file, compare rows and bounds with the log
    replace_files    one commit that adds the new file and removes the old ones

Why not `optimize` of delta-rs (measured): `compact` does not sort. `z_order` compares only the first bytes of a
string, so ids with a common prefix stay unsorted, and it rewrites everything each time. Both write one row group per
file, so a query for one video reads the whole file. delta-rs does not compare an append that removes files with other
removals: two compactions of the same files were both accepted, and all rows were duplicated. So a commit here may only
follow the version that was inspected; otherwise the log is inspected again.

Writers may commit at the same time: compaction neither carries nor changes their application transactions. Replaced
files are deleted by `vacuum`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import RemoveAction

from kvq_batch.domain.errors import FatalError
from kvq_batch.storage.errors import RetryPolicy, explain_error, foreign_errors
from kvq_batch.storage.objects import put_file
from kvq_batch.storage.options import display_uri, join, translate_storage_errors
from kvq_batch.tables.data_files import ROW_GROUP_ROWS, DataFile, make_data_file
from kvq_batch.tables.database import translate_read_errors
from kvq_batch.tables.delta import BOUNDED_COLUMNS, LoggedFile, Tables
from kvq_batch.tables.schemas import find_schema

TARGET_BYTES = 128 << 20

COMMIT_INFO_KEY = "kvqBatch"
"""Key of the commit info under which a commit that replaces data files records what it did."""

_FULL_SHARE = 0.75
"""A file of this share of the target size is not rewritten."""

_MAX_ROWS = 250_000
"""Most rows of a merged file. Scores compress so well that 128 MB of them would not fit into memory."""

_ROW_GROUP_BYTES = 8 << 20
"""Most bytes in memory of a row group, which is what a query for one video reads."""

_MIN_ROW_GROUP_ROWS = 512

_COMMIT_ATTEMPTS = 50

RETRY_POLICY = RetryPolicy()
"""The same policy as for commits of a writer."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """Data files of one partition, with their bytes, before and after compaction.

    `bytes_after` is None in a dry run. Files that a writer committed in the meantime are included.
    """

    table: str
    partition: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int | None


def plan_compaction(tables: Tables, target_bytes: int = TARGET_BYTES) -> list[Compaction]:
    """Return what `compact` would do first, for each partition with files to merge."""
    plans = []
    for schema in tables.schemas:
        files = tables.data_files(schema.name)
        groups = choose_groups(files, target_bytes)
        for partition in sorted({_partition_of(group[0]) for group in groups}):
            before = [file for file in files if _partition_of(file) == partition]
            num_fewer = sum(len(group) - 1 for group in groups if _partition_of(group[0]) == partition)
            size = sum(file.size_bytes for file in before)
            plans.append(Compaction(schema.name, partition, len(before), len(before) - num_fewer, size, None))
    return plans


def compact(tables: Tables, target_bytes: int = TARGET_BYTES) -> Iterator[Compaction]:
    """Merge small files, table by table. Yield each changed partition once its table is done.

    Each merge is one commit; the table reads the same before and after it. The log of each changed table gets a
    checkpoint and loses entries older than its retention.

    Raises:
        SpecError: a data file is missing or cannot be read.
        FatalError: another compaction replaced the same files, or the store failed. Earlier commits are kept.
    """
    for schema in tables.schemas:
        name = schema.name
        tables.refresh(name)
        before, merged = tables.data_files(name), set[str]()
        while groups := choose_groups(tables.data_files(name), target_bytes):
            group = groups[0]
            file = merge_files(tables, name, group)
            store_file(tables, name, file)
            replace_files(tables, name, group, file)
            merged.add(_partition_of(group[0]))
        if not merged:
            continue
        with translate_storage_errors(join(tables.uri, name)):
            tables.delta(name).create_checkpoint()
            tables.delta(name).cleanup_metadata()
        after = tables.data_files(name)
        for partition in sorted(merged):
            old = [file.size_bytes for file in before if _partition_of(file) == partition]
            new = [file.size_bytes for file in after if _partition_of(file) == partition]
            yield Compaction(name, partition, len(old), len(new), sum(old), sum(new))


def choose_groups(files: Sequence[LoggedFile], target_bytes: int) -> list[list[LoggedFile]]:
    """Return groups of two or more files to merge, each of one partition and together at most `target_bytes`."""
    small = [
        file
        for file in files
        # Without a row count in the log, the merged file could not be checked.
        if file.num_rows is not None
        and file.size_bytes < _FULL_SHARE * target_bytes
        and file.num_rows < _FULL_SHARE * _MAX_ROWS
    ]
    groups: list[list[LoggedFile]] = []
    size = rows = 0
    for file in sorted(small, key=lambda file: (_partition_of(file), file.low.get("commit_seq", 0), file.path)):
        num_rows = file.num_rows or 0
        is_next = groups and _partition_of(groups[-1][0]) == _partition_of(file)
        if is_next and size + file.size_bytes <= target_bytes and rows + num_rows <= _MAX_ROWS:
            groups[-1].append(file)
            size, rows = size + file.size_bytes, rows + num_rows
        else:
            groups.append([file])
            size, rows = file.size_bytes, num_rows
    return [group for group in groups if len(group) > 1]


def merge_files(tables: Tables, name: str, group: Sequence[LoggedFile]) -> DataFile:
    """Return one sorted data file, not stored yet, with the rows of `group`.

    Raises:
        SpecError: a data file is missing or cannot be read.
        FatalError: the rows do not match the row counts or bounds in the log.
    """
    schema = find_schema(name)
    with translate_read_errors(tables.uri):
        rows = tables.dataset(name, group).to_table()
    expected = sum(file.num_rows or 0 for file in group)
    if rows.num_rows != expected:
        raise FatalError(
            f"{display_uri(tables.uri)}: table {name!r}: the log has {expected} rows in {len(group)} files, but they "
            f"hold {rows.num_rows}. Nothing was changed. Run `kvq-batch tables check`."
        )
    rows = rows.drop_columns(list(schema.partition_by))
    order = [*schema.sort_by, *(column for column in ("commit_seq",) if column not in schema.sort_by)]
    rows = rows.sort_by([(column, "ascending") for column in order])
    fitting = _ROW_GROUP_BYTES * rows.num_rows // max(1, rows.nbytes)
    stem = f"{max(file.high.get('commit_seq', 0) for file in group):016x}-merged"
    merged = make_data_file(
        rows,
        schema,
        group[0].partition,
        stem,
        row_group_rows=max(_MIN_ROW_GROUP_ROWS, min(ROW_GROUP_ROWS, fitting)),
        data_change=False,
    )
    for column in BOUNDED_COLUMNS:
        _check_bounds(tables, name, column, rows, group)
    return merged


def store_file(tables: Tables, name: str, file: DataFile, retry_policy: RetryPolicy = RETRY_POLICY) -> None:
    """Write the data file; readers do not see it yet. Raises: FatalError if the store fails."""
    try:
        put_file(join(join(tables.uri, name), file.path), file.content.to_pybytes(), tables.options, retry_policy)
    except foreign_errors() as error:
        raise _fatal(tables, name, error) from error


def replace_files(
    tables: Tables, name: str, group: Sequence[LoggedFile], file: DataFile, retry_policy: RetryPolicy = RETRY_POLICY
) -> None:
    """Commit the stored `file` in place of `group`.

    Raises:
        FatalError: another compaction replaced one of the group, or the store failed.
    """
    removals = [
        RemoveAction(
            path=old.path,
            data_change=False,
            deletion_timestamp=file.action.modification_time,
            size=old.size_bytes,
            partition_values=dict(old.partition),
        )
        for old in group
    ]
    info = {"operation": "compact", "files": len(group), "rows": file.num_rows}
    delta = tables.delta(name)

    def commit(attempt: int) -> None:
        for _ in range(_COMMIT_ATTEMPTS):
            delta.update_incremental()
            live = {logged.path for logged in tables.data_files(name)}
            if file.path in live:
                # The previous attempt landed, and only its answer was lost.
                return
            if not live.issuperset(old.path for old in group):
                _remove(tables, name, file)
                raise FatalError(
                    f"{display_uri(tables.uri)}: another compaction of table {name!r} is running. The commits of this "
                    "one are kept. Let the other finish, then run it again if small files are left."
                )
            try:
                delta.create_write_transaction(
                    [file.action, *removals],
                    mode="append",
                    schema=delta.schema(),
                    partition_by=list(find_schema(name).partition_by),
                    commit_properties=CommitProperties(custom_metadata={COMMIT_INFO_KEY: info}, max_commit_retries=0),
                )
            except CommitFailedError:
                # Another commit came first.
                continue
            delta.update_incremental()
            return
        raise FatalError(
            f"{display_uri(tables.uri)}: table {name!r} gets commits faster than it can be compacted. Run the "
            "compaction again when less is written."
        )

    try:
        retry_policy.run(commit)
    except foreign_errors() as error:
        raise _fatal(tables, name, error) from error


def _check_bounds(tables: Tables, name: str, column: str, rows: pa.Table, group: Sequence[LoggedFile]) -> None:
    """Raises: FatalError if rows are outside the bounds in the log: queries would have skipped them."""
    if column not in rows.column_names or not all(column in file.low and column in file.high for file in group):
        return
    bounds = pc.min_max(rows.column(column)).as_py()
    low, high = min(file.low[column] for file in group), max(file.high[column] for file in group)
    if bounds["min"] < low or bounds["max"] > high:
        raise FatalError(
            f"{display_uri(tables.uri)}: table {name!r}: {column} is outside the bounds in the log. Nothing was "
            "changed. Run `kvq-batch tables check`."
        )


def _remove(tables: Tables, name: str, file: DataFile) -> None:
    file_system, root = tables.table_filesystem(name)
    file_system.rm_file(f"{root}/{file.path}")


def _fatal(tables: Tables, name: str, error: Exception) -> FatalError:
    return FatalError(
        f"{display_uri(tables.uri)}: table {name!r} cannot be compacted: {explain_error(error, tables.uri)}. "
        "Earlier commits are kept. Run it again."
    )


def _partition_of(file: LoggedFile) -> str:
    return ",".join(file.partition.values())
