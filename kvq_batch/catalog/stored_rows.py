"""Rows of the table `catalog`: the columns of a user's catalog as they are stored, and the changes since the last run.

A row is appended only if something in it changed. A video that was removed gets a last row with `in_catalog` false; the
history stays. All columns of the user's catalog are kept.

Names that this project, Delta, DuckDB or Arrow uses itself get the prefix `catalog_`. Types are merged with those of
the table (`domain/column_types.py`). `plan` asks for the stored columns, too, so what a run cannot store is rejected
before it starts.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from kvq_batch.catalog.reader import CATALOG_COLUMNS, check_catalog
from kvq_batch.catalog.selection import shard_condition
from kvq_batch.domain.column_types import (
    ARROW_COLUMNS,
    TEXT,
    LossyConversionError,
    convert,
    fold_name,
    is_usable_name,
    merge_types,
    same_type,
    storable_type,
)
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.storage.masking import mask_rows
from kvq_batch.storage.redact import summarize_error
from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import CATALOG, CATALOG_PREFIX

DERIVED_COLUMNS = ("first_run_id", "last_run_id")
"""Columns that the view `catalog` adds."""

_RESERVED = frozenset((*CATALOG.names, *DERIVED_COLUMNS, *ARROW_COLUMNS))


def stored_columns(catalog: pa.Table, known: pa.Schema) -> dict[str, pa.ChunkedArray]:
    """Return the user's columns of `catalog` by their names in the table `catalog`, whose schema is `known`.

    A column has the type in `known` if that can hold its values, otherwise a type that can hold those of both. A new
    column without any value that decides its type is left out.

    Raises:
        SpecError: a column that cannot be stored, or two columns with one name in the table.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    sources: dict[str, str] = {fold_name(name): name for name in CATALOG.names}
    for name in catalog.column_names:
        if name in CATALOG_COLUMNS:
            continue
        if not is_usable_name(name):
            raise SpecError(
                f"catalog column {name!r}: a name needs a character, and none of them may be NUL; rename it"
            )
        stored = stored_name(name, known.names)
        other = sources.setdefault(fold_name(stored), name)
        if other != name:
            raise SpecError(
                f"catalog column {name!r} is not unique: {other!r} is stored as {stored!r}, too; rename one"
            )
        index = known.get_field_index(stored)
        try:
            column = _stored_values(catalog.column(name), known.field(index).type if index >= 0 else None)
        except LossyConversionError as error:
            raise SpecError(
                f"catalog column {name!r} ({catalog.column(name).type}) cannot be stored: "
                f"{summarize_error(error, 200)}; cast it or remove it"
            ) from error
        if column is not None:
            columns[stored] = column
    return columns


def stored_name(name: str, known: Collection[str]) -> str:
    """Return the name of a user's column in the table, which has the columns `known`. Names have no case."""
    reserved = {fold_name(column) for column in _RESERVED}
    stored = f"{CATALOG_PREFIX}{name}" if fold_name(name) in reserved else name
    return next((other for other in known if fold_name(other) == fold_name(stored)), stored)


def known_types(known: pa.Schema) -> dict[str, pa.DataType]:
    """Return the types of the user's columns in the table `catalog` by their names in the catalog (`fold_name`)."""
    types = {fold_name(field.name): field.type for field in known if field.name not in CATALOG.names}
    unprefixed = {name.removeprefix(CATALOG_PREFIX): kind for name, kind in types.items()}
    reserved = {name: kind for name, kind in unprefixed.items() if name in map(fold_name, _RESERVED)}
    return {**types, **reserved}


def _stored_values(values: pa.ChunkedArray, known: pa.DataType | None) -> pa.ChunkedArray | None:
    """Return the values in the type of the table, or in a wider one; None if nothing decides the type yet."""
    own = storable_type(values.type)
    base = None if known is None else storable_type(known)
    if own is None or base is None:
        candidates = [kind for kind in (own, base) if kind is not None]
    else:
        candidates = [base, merge_types(base, own)]
    if not candidates:
        return None
    for kind in candidates:
        try:
            return convert(values, kind)
        except LossyConversionError:
            continue
    return convert(values, TEXT)


# Columns of the user are compared under numbers, so that none of their names can be mistaken for one of ours.
_CHANGED = """
WITH newest AS (SELECT * FROM known WHERE catalog = $catalog
    QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY commit_seq DESC) = 1)
SELECT t.row_index FROM today t LEFT JOIN newest k ON k.video_id = t.video_id
WHERE k.video_id IS NULL OR NOT k.in_catalog {differs}
ORDER BY t.row_index
"""

_REMOVED = """
SELECT video_id, arg_max(uri, commit_seq) AS uri, arg_max(content_id, commit_seq) AS content_id
FROM known k WHERE catalog = $catalog AND {in_shard}
GROUP BY video_id HAVING arg_max(in_catalog, commit_seq) AND video_id NOT IN (SELECT video_id FROM today)
ORDER BY video_id
"""

_KEYS = ("video_id", "catalog", "in_catalog", "run_id", "commit_seq")
"""Columns that do not make a row differ."""


def catalog_changes(tables: Tables | None, catalog: pa.Table, catalog_name: str, shard: Shard = WHOLE) -> pa.Table:
    """Return the rows for `Writer.write_catalog`: new, changed and removed videos (`in_catalog` false).

    `catalog` has the columns that `make_plan` needs and any others, and only the videos of `shard`. A column has
    another type than in the table if the one of the table cannot hold all values: the writer converts the table.

    Raises:
        SpecError: a column that cannot be stored, or whose name is not unique.
    """
    check_catalog(catalog)
    known = CATALOG.arrow() if tables is None else tables.arrow_schema("catalog")
    today = _to_rows(catalog, catalog_name, stored_columns(catalog, known))
    if tables is None or not tables.delta("catalog").file_uris():
        return today
    with connect() as connection, translate_read_errors(tables.uri):
        dataset = tables.dataset("catalog")
        today = _register_known(connection, dataset, today)
        differs = _register_today(connection, today, dataset.schema)
        indices = connection.execute(_CHANGED.format(differs=differs), {"catalog": catalog_name}).fetchall()
        query = _REMOVED.format(in_shard=shard_condition(shard))
        removed = connection.execute(query, {"catalog": catalog_name}).fetchall()
    return pa.concat_tables(
        [today.take(pa.array([row[0] for row in indices], pa.int64())), _removed_rows(removed, today, catalog_name)]
    )


def _to_rows(catalog: pa.Table, catalog_name: str, others: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """Return `catalog` as rows of the table, without run and commit: our columns first, then the `others`."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for field in CATALOG.row_schema():
        if field.name == "catalog":
            columns[field.name] = pa.repeat(pa.scalar(catalog_name, field.type), catalog.num_rows)
        elif field.name == "in_catalog":
            columns[field.name] = pa.repeat(pa.scalar(True), catalog.num_rows)
        else:
            columns[field.name] = catalog.column(field.name).cast(field.type)
    # As the writer stores them: the signature of an address changes every night.
    return mask_rows(pa.table({**columns, **others}))


def _register_known(connection: duckdb.DuckDBPyConnection, known: pads.Dataset, today: pa.Table) -> pa.Table:
    """Register the rows of the table as `known`, with the types of `today`. Return `today` with types that fit both."""
    names = known.schema.names
    changed = [
        name
        for name in today.column_names
        if name in names and not same_type(known.schema.field(name).type, today.schema.field(name).type)
    ]
    rows: pads.Dataset | pa.Table = known
    if changed:
        rows = known.to_table(columns={name: pc.field(name) for name in names})
    for name in changed:
        index, kind = rows.schema.get_field_index(name), today.schema.field(name).type
        try:
            values = convert(rows.column(name), kind)
        except LossyConversionError:
            values = convert(rows.column(name), TEXT)
            today = today.set_column(today.schema.get_field_index(name), name, convert(today.column(name), TEXT))
        rows = rows.set_column(index, name, values)
    connection.register("known_rows", rows)
    numbered = [f'"{_escape(name)}" AS {_number("known", known.schema, name)}' for name in names if name not in _KEYS]
    connection.execute(
        f"CREATE TEMP VIEW known AS SELECT {', '.join([*_KEYS, 'uri', 'content_id', *numbered])} FROM known_rows"
    )
    return today


def _register_today(connection: duckdb.DuckDBPyConnection, today: pa.Table, known: pa.Schema) -> str:
    """Register `today`. Return the SQL condition, beginning with OR, that a row differs from its row in `known`."""
    columns = {"video_id": today.column("video_id"), "row_index": pa.array(range(today.num_rows), pa.int64())}
    conditions = []
    for name in today.column_names:
        if name in _KEYS:
            continue
        number = _number("today", today.schema, name)
        columns[number] = today.column(name)
        is_new = name not in known.names
        known_value = "NULL" if is_new else f"k.{_number('known', known, name)}"
        conditions.append(f"t.{number} IS DISTINCT FROM {known_value}")
    gone = [name for name in known.names if name not in (*_KEYS, *today.column_names)]
    conditions += [f"k.{_number('known', known, name)} IS NOT NULL" for name in gone]
    connection.register("today", pa.table(columns))
    return "".join(f" OR {condition}" for condition in conditions)


def _number(table: str, schema: pa.Schema, name: str) -> str:
    return f"{table}_{schema.get_field_index(name)}"


def _removed_rows(removed: Sequence[tuple[Any, ...]], today: pa.Table, catalog_name: str) -> pa.Table:
    columns = {field.name: pa.nulls(len(removed), field.type) for field in today.schema}
    for index, name in enumerate(("video_id", "uri", "content_id")):
        columns[name] = pa.array([row[index] for row in removed], pa.string())
    columns["in_catalog"] = pa.repeat(pa.scalar(False), len(removed))
    columns["catalog"] = pa.repeat(pa.scalar(catalog_name), len(removed))
    return pa.table(columns)


def _escape(name: str) -> str:
    return name.replace('"', '""')
