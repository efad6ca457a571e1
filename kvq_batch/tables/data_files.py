"""Data files: rows of one table as Parquet bytes, with the log entries that add them.

delta-rs compares neither the schema of a data file with the schema of the table nor the stated row count with the rows.
Both are checked here before a commit: each footer is read back.
"""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake.transaction import AddAction

from kvq_batch.domain.column_types import LossyConversionError, convert
from kvq_batch.domain.errors import FatalError
from kvq_batch.tables.delta import BOUNDED_COLUMNS
from kvq_batch.tables.schemas import TableSchema

ROW_GROUP_ROWS = 65_536

_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@-")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file that is not stored yet: its path below the table, its bytes, and the log entry that adds it."""

    path: str
    content: pa.Buffer
    action: AddAction
    num_rows: int


def align_to_schema(rows: pa.Table, table: TableSchema, schema: pa.Schema, run_id: str, commit_seq: int) -> pa.Table:
    """Return `rows` with run id and commit sequence, in the columns and types of `schema` (the schema in the log).

    Columns of the log that `table` does not have (from a newer release or a user's catalog) are null if missing.

    Raises:
        FatalError: a column is missing, unknown or of the wrong type, or a key is null.
    """
    rows = rows.drop_columns([name for name in ("run_id", "commit_seq") if name in rows.column_names])
    unknown = [name for name in rows.column_names if schema.get_field_index(name) < 0]
    missing = [name for name in table.row_schema().names if name not in rows.column_names]
    if unknown or missing:
        raise FatalError(f"Rows for table {table.name!r}: unknown columns {unknown}, missing columns {missing}.")
    columns = []
    for field in schema:
        if field.name == "run_id":
            column = pa.repeat(pa.scalar(run_id, field.type), rows.num_rows)
        elif field.name == "commit_seq":
            column = pa.repeat(pa.scalar(commit_seq, field.type), rows.num_rows)
        elif field.name in rows.column_names:
            column = _cast(rows.column(field.name), field, table.name)
        else:
            column = pa.nulls(rows.num_rows, field.type)
        columns.append(column)
    result = pa.Table.from_arrays(columns, schema=schema.remove_metadata())
    for name in {*BOUNDED_COLUMNS, *table.sort_by, *table.partition_by} & set(schema.names):
        if result.column(name).null_count:
            raise FatalError(f"Rows for table {table.name!r}: {name} must not be null.")
    return result


def _cast(column: pa.ChunkedArray, field: pa.Field, table: str) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        return convert(column, field.type)
    except LossyConversionError as error:
        raise FatalError(
            f"Rows for table {table!r}: cannot convert column {field.name!r} from {column.type} to {field.type}: "
            f"{error}"
        ) from error


def make_data_files(rows: pa.Table, table: TableSchema, commit_seq: int) -> Iterator[DataFile]:
    """Yield one sorted data file for each partition of `rows` (returned by `align_to_schema`)."""
    for values, group in _partitions(rows, table):
        group = group.sort_by([(name, "ascending") for name in table.sort_by])
        yield make_data_file(group, table, values, f"{commit_seq:016x}")


def make_data_file(
    group: pa.Table,
    table: TableSchema,
    values: Mapping[str, str | None],
    stem: str,
    row_group_rows: int = ROW_GROUP_ROWS,
    data_change: bool = True,
) -> DataFile:
    """Return one data file (zstd) of `group`: sorted rows of the partition `values`, without the partition columns.

    The file name starts with `stem`. `data_change` is false for a file that only replaces others with the same rows.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(group, sink, compression="zstd", row_group_size=row_group_rows)
    content = sink.getvalue()
    footer = pq.read_metadata(pa.BufferReader(content))
    if footer.num_rows != group.num_rows:
        raise FatalError(f"Table {table.name!r}: wrote {group.num_rows} rows, but the file holds {footer.num_rows}.")
    folder = "".join(f"{name}={value}/" for name, value in values.items())
    path = f"{folder}{stem}-{secrets.token_hex(4)}.parquet"
    action = AddAction(
        path=path,
        size=len(content),
        partition_values=values,
        modification_time=time.time_ns() // 1_000_000,
        data_change=data_change,
        stats=json.dumps(statistics(footer)),
    )
    return DataFile(path, content, action, group.num_rows)


def _partitions(rows: pa.Table, table: TableSchema) -> Iterator[tuple[dict[str, str | None], pa.Table]]:
    if not table.partition_by:
        yield {}, rows
        return
    (name,) = table.partition_by
    for value in sorted(pc.unique(rows.column(name)).to_pylist()):
        # Readers differ in how they escape other characters in paths. Model ids contain only these.
        if not value or not _SAFE.issuperset(value):
            raise FatalError(f"Rows for table {table.name!r}: {name} {value!r} has characters outside [A-Za-z0-9._@-].")
        group = rows.filter(pc.equal(rows.column(name), value))
        yield {name: value}, group.drop_columns([name])


def statistics(footer: pq.FileMetaData) -> dict[str, Any]:
    """Return Delta statistics from a Parquet footer, for key columns that have bounds in each row group."""
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for column in range(footer.num_columns):
        name = footer.schema.column(column).path
        if name not in BOUNDED_COLUMNS:
            continue
        bounds = [footer.row_group(i).column(column).statistics for i in range(footer.num_row_groups)]
        if bounds and all(b is not None and b.has_min_max and b.has_null_count for b in bounds):
            low[name] = min(b.min for b in bounds)
            high[name] = max(b.max for b in bounds)
            nulls[name] = sum(b.null_count for b in bounds)
    return {"numRecords": footer.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls}
