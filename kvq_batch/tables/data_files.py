"""Parts: rows of one table, made into Parquet files whose footers were read again, and the log entries for them.

delta-rs compares neither a part's schema with the table's nor its stated number of rows with its rows, so both are
held here, before anything is committed. This module commits nothing and decides no order of commits.
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

from kvq_batch.domain.errors import FatalError
from kvq_batch.tables.delta import BOUNDED_COLUMNS
from kvq_batch.tables.schemas import TableSchema

ROW_GROUP_ROWS = 65_536

_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@-")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file, not stored yet: its path below the table, its bytes, and the log entry that adds it."""

    path: str
    content: Any
    action: AddAction
    num_rows: int


def align_to_schema(rows: Any, table: TableSchema, schema: Any, run_id: str, commit_seq: int) -> Any:
    """`rows` (pa.Table) with run and commit filled in, in the columns and types of `schema`.

    Columns of the table that are none of ours (added by a newer version, or by a catalog) may be left out.
    Raises: FatalError for a missing, unknown or wrongly typed column, and for null keys.
    """
    rows = rows.drop_columns([name for name in ("run_id", "commit_seq") if name in rows.column_names])
    unknown = [name for name in rows.column_names if schema.get_field_index(name) < 0]
    missing = [name for name in table.row_columns().names if name not in rows.column_names]
    if unknown or missing:
        raise FatalError(f"rows for table {table.name!r}: unknown columns {unknown}, missing columns {missing}")
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
            raise FatalError(f"rows for table {table.name!r}: {name} must not be null")
    return result


def _cast(column: Any, field: Any, table: str) -> Any:
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FatalError(
            f"table {table!r}, column {field.name!r}: {column.type} is no {field.type}: {error}"
        ) from error


def make_data_files(rows: Any, table: TableSchema, commit_seq: int) -> Iterator[DataFile]:
    """One part per partition of `rows` (as `conform` returns them), sorted, zstd, with the bounds of the keys."""
    for values, group in _partitions(rows, table):
        group = group.sort_by([(name, "ascending") for name in table.sort_by])
        yield make_data_file(group, table, values, f"{commit_seq:016x}")


def make_data_file(
    group: Any,
    table: TableSchema,
    values: Mapping[str, str | None],
    stem: str,
    row_group_rows: int = ROW_GROUP_ROWS,
    data_change: bool = True,
) -> DataFile:
    """One part of `group`, sorted rows of the partition `values` without its column; named after `stem`.

    `data_change` is false for rows that the table holds already, in parts that this one replaces.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(group, sink, compression="zstd", row_group_size=row_group_rows)
    content = sink.getvalue()
    footer = pq.read_metadata(pa.BufferReader(content))
    if footer.num_rows != group.num_rows:
        raise FatalError(f"table {table.name!r}: wrote {group.num_rows} rows and the part holds {footer.num_rows}")
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


def _partitions(rows: Any, table: TableSchema) -> Iterator[tuple[dict[str, str | None], Any]]:
    if not table.partition_by:
        yield {}, rows
        return
    (name,) = table.partition_by
    for value in sorted(pc.unique(rows.column(name)).to_pylist()):
        # What stands in a path unescaped is the same in every reader; model ids promise no other character.
        if not value or not _SAFE.issuperset(value):
            raise FatalError(f"table {table.name!r}: {name} {value!r} has characters outside [A-Za-z0-9._@-]")
        group = rows.filter(pc.equal(rows.column(name), value))
        yield {name: value}, group.drop_columns([name])


def statistics(footer: Any) -> dict[str, Any]:
    """Delta statistics out of a Parquet footer, for the columns of which each row group has bounds."""
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
