"""Changes of a catalog since the last run, as rows to append to the `catalog` table.

A row is appended only if something in it changed. A video that was removed gets a last row with `in_catalog` false; the
history stays. All columns of the user's catalog are kept (`stored_columns`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from kvq_batch.catalog.reader import check_catalog
from kvq_batch.catalog.selection import shard_condition
from kvq_batch.catalog.stored_columns import stored_columns
from kvq_batch.domain.column_types import TEXT, LossyConversionError, convert, same_type
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.storage.masking import mask_rows
from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import CATALOG

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
