"""Changes of a catalog since the last run, as rows to append to the `catalog` table.

A row is appended only if something in it changed. A video that was removed gets a last row with `in_catalog` false; the
history stays. All columns of the user's catalog are kept under their own names, as types that Delta supports.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from kvq_batch.catalog.reader import CATALOG_COLUMNS, check_catalog
from kvq_batch.catalog.selection import shard_condition
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import CATALOG, CATALOG_PREFIX

DERIVED_COLUMNS = ("first_run_id", "last_run_id")
"""Columns that the view `catalog` adds. Columns of a user's catalog with these names get a prefix too."""

_CHANGED = """
WITH newest AS (SELECT * FROM known WHERE catalog = $catalog
    QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY commit_seq DESC) = 1)
SELECT t.__kvq_index FROM today t LEFT JOIN newest k ON k.video_id = t.video_id
WHERE k.video_id IS NULL OR NOT k.in_catalog {differs}
ORDER BY t.__kvq_index
"""

_REMOVED = """
SELECT video_id, arg_max(uri, commit_seq) AS uri, arg_max(content_id, commit_seq) AS content_id
FROM known k WHERE catalog = $catalog AND {in_shard}
GROUP BY video_id HAVING arg_max(in_catalog, commit_seq) AND video_id NOT IN (SELECT video_id FROM today)
ORDER BY video_id
"""


def catalog_changes(tables: Tables | None, catalog: pa.Table, catalog_name: str, shard: Shard = WHOLE) -> pa.Table:
    """Return the rows for `Writer.write_catalog`: new, changed and removed videos (`in_catalog` false).

    `catalog` has the columns that `make_plan` needs and any others, and only the videos of `shard`.

    Raises:
        SpecError: a column that Delta cannot store, whose type differs from that in the table, or whose name is not
            unique.
    """
    check_catalog(catalog)
    known_schema = CATALOG.arrow() if tables is None else tables.arrow_schema("catalog")
    today = _to_rows(catalog, catalog_name, known_schema)
    if tables is None or not tables.delta("catalog").file_uris():
        return today
    compared = [name for name in today.column_names if name not in ("video_id", "catalog", "in_catalog")]
    dropped = [name for name in known_schema.names if name not in (*CATALOG.names, *today.column_names)]
    differs = [
        f't."{_escape(name)}" IS DISTINCT FROM k."{_escape(name)}"'
        if known_schema.get_field_index(name) >= 0
        else f't."{_escape(name)}" IS NOT NULL'
        for name in compared
    ] + [f'k."{_escape(name)}" IS NOT NULL' for name in dropped]
    with connect() as connection:
        connection.register("known", tables.dataset("catalog"))
        connection.register("today", today.append_column("__kvq_index", pa.array(range(today.num_rows), pa.int64())))
        with translate_read_errors(tables.uri):
            query = _CHANGED.format(differs="".join(f" OR {clause}" for clause in differs))
            indices = connection.execute(query, {"catalog": catalog_name}).fetchall()
            query = _REMOVED.format(in_shard=shard_condition(shard))
            removed = connection.execute(query, {"catalog": catalog_name}).fetchall()
    return pa.concat_tables(
        [today.take(pa.array([row[0] for row in indices], pa.int64())), _removed_rows(removed, today, catalog_name)]
    )


def _to_rows(catalog: pa.Table, catalog_name: str, known: pa.Schema) -> pa.Table:
    """Return `catalog` as rows of the table, without run and commit: our columns first, then the others."""
    num = catalog.num_rows
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for field in CATALOG.row_schema():
        if field.name == "catalog":
            columns[field.name] = pa.repeat(pa.scalar(catalog_name, field.type), num)
        elif field.name == "in_catalog":
            columns[field.name] = pa.repeat(pa.scalar(True), num)
        else:
            columns[field.name] = _cast_to_known(catalog.column(field.name), field.type, field.name)
    for name in catalog.column_names:
        if name in CATALOG_COLUMNS:
            continue
        column = _cast_to_storable(catalog.column(name), name)
        stored_name = _stored_name(name, known.names)
        if any(stored_name.casefold() == taken.casefold() for taken in columns):
            raise SpecError(f"catalog column {name!r} is not unique (as {stored_name!r}); rename one of them")
        index = known.get_field_index(stored_name)
        if index >= 0:
            column = _cast_to_known(column, known.field(index).type, name)
        elif pa.types.is_null(column.type):
            continue
        columns[stored_name] = column
    return pa.table(columns)


def _stored_name(name: str, known: Sequence[str]) -> str:
    """Return the name of a user's column in the table: reserved names get a prefix; names are case-insensitive."""
    ours = {column.casefold() for column in (*CATALOG.names, *DERIVED_COLUMNS)}
    stored = f"{CATALOG_PREFIX}{name}" if name.casefold() in ours else name
    return next((other for other in known if other.casefold() == stored.casefold()), stored)


def _cast_to_storable(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Cast the column to a type that Delta supports: no unsigned integers, microseconds in UTC, no dictionaries."""
    try:
        return column.cast(_storable_type(column.type, name))
    except pa.ArrowInvalid as error:
        raise SpecError(f"catalog column {name!r} ({column.type}) cannot be stored: {error}") from error


def _storable_type(kind: pa.DataType, name: str) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(kind):
        return _storable_type(kind.value_type, name)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_storable_type(kind.value_type, name))
    if types.is_map(kind):
        return pa.map_(_storable_type(kind.key_type, name), _storable_type(kind.item_type, name))
    if types.is_struct(kind):
        return pa.struct([(field.name, _storable_type(field.type, name)) for field in kind])
    if types.is_unsigned_integer(kind):
        return {8: pa.int16(), 16: pa.int32()}.get(kind.bit_width, pa.int64())
    if types.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC")
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_float16(kind):
        return pa.float32()
    if types.is_date64(kind):
        return pa.date32()
    unchanged = (types.is_null, types.is_boolean, types.is_signed_integer, types.is_floating, types.is_string)
    if any(matches(kind) for matches in (*unchanged, types.is_binary, types.is_date32, types.is_decimal128)):
        return kind
    raise SpecError(f"catalog column {name!r} is {kind}, which a Delta table cannot store; cast it or remove it")


def _cast_to_known(column: pa.ChunkedArray, kind: pa.DataType, name: str) -> pa.ChunkedArray:
    """Cast the column to its type in the table, if no value changes its meaning."""
    if column.type == kind:
        return column
    types = pa.types
    is_lossless = (
        types.is_null(column.type),
        types.is_integer(column.type) and (types.is_integer(kind) or types.is_floating(kind)),
        types.is_floating(column.type) and types.is_floating(kind),
        types.is_decimal(column.type) and types.is_decimal(kind),
        types.is_large_string(column.type) and types.is_string(kind),
        types.is_dictionary(column.type) and column.type.value_type == kind,
        types.is_nested(column.type) and types.is_nested(kind),
    )
    if any(is_lossless):
        try:
            return column.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reason = f": {error}"
    else:
        reason = ""
    raise SpecError(
        f"catalog column {name!r} is {column.type}, but {kind} in the table{reason}; cast it back, or rename the column"
    )


def _removed_rows(removed: Sequence[tuple[Any, ...]], today: pa.Table, catalog_name: str) -> pa.Table:
    columns = {field.name: pa.nulls(len(removed), field.type) for field in today.schema}
    for index, name in enumerate(("video_id", "uri", "content_id")):
        columns[name] = pa.array([row[index] for row in removed], pa.string())
    columns["in_catalog"] = pa.repeat(pa.scalar(False), len(removed))
    columns["catalog"] = pa.repeat(pa.scalar(catalog_name), len(removed))
    return pa.table(columns)


def _escape(name: str) -> str:
    return name.replace('"', '""')
