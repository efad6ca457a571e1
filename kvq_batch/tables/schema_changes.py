"""Changes of the columns of the table `catalog`: new ones, wider types, and removal of a column that a user made.

A new column is an entry in the log. Another type or a removed column means that every data file is written again, in
one commit that replaces all files and the schema: Delta has no other way that all readers understand. Each file is read
on its own and not as a dataset, because a column that is to be removed may be what makes the dataset unreadable.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, Schema
from deltalake.exceptions import CommitFailedError

from kvq_batch.domain.column_types import convert, merge_types, same_type, storable_type
from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.identity import new_run_id
from kvq_batch.storage.errors import RetryPolicy, explain_error, foreign_errors
from kvq_batch.storage.objects import put_file
from kvq_batch.storage.options import StorageOptions, display_uri, join, translate_storage_errors
from kvq_batch.tables.compaction import COMMIT_INFO_KEY
from kvq_batch.tables.data_files import DataFile, make_data_file
from kvq_batch.tables.delta import LoggedFile, Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.schemas import CATALOG

_COMMIT_ATTEMPTS = 10

ChangeSchema = Callable[[pa.Schema], pa.Schema]


def extend_schema(schema: pa.Schema, rows: pa.Schema) -> pa.Schema:
    """Return `schema` with types that can also hold those of `rows`, and with the new columns of `rows`."""
    fields = [
        field if index < 0 else field.with_type(_merge(field.type, rows.field(index).type))
        for field in schema
        for index in (rows.get_field_index(field.name),)
    ]
    return pa.schema([*fields, *(field for field in rows if schema.get_field_index(field.name) < 0)], schema.metadata)


def _merge(known: pa.DataType, new: pa.DataType) -> pa.DataType:
    # Earlier releases stored null types, which no value fits.
    return known if same_type(known, new) else merge_types(storable_type(known) or pa.null(), new)


def change_catalog_schema(tables: Tables, rows: pa.Schema) -> None:
    """Make the table `catalog` able to hold `rows`: add new columns, and convert those with other types.

    Raises:
        SpecError: the table is out of reach, or a data file cannot be read.
        FatalError: a data file cannot be written, or other commits keep coming first.
    """

    def change(schema: pa.Schema) -> pa.Schema:
        return extend_schema(schema, rows)

    _change(tables, change)


@dataclass(frozen=True, slots=True)
class ColumnDrop:
    """What the removal of a column writes again: the data files of the table, and their rows."""

    table: str
    column: str
    type: str
    files: int
    rows: int


def plan_drop(tables: Tables, name: str) -> ColumnDrop:
    """Return what `drop_catalog_column` would do.

    Raises: SpecError if the table `catalog` has no such column, or it is a column of kvq-batch.
    """
    if name in CATALOG.names:
        raise SpecError(f"column {name!r} of table 'catalog' is a column of kvq-batch and cannot be dropped")
    schema = tables.arrow_schema("catalog")
    if name not in schema.names:
        known = ", ".join(repr(column) for column in schema.names if column not in CATALOG.names) or "none"
        raise SpecError(f"table 'catalog' has no column {name!r}; the columns of your catalogs are: {known}")
    files = tables.data_files("catalog")
    rows = sum(file.num_rows or 0 for file in files)
    return ColumnDrop("catalog", name, str(schema.field(name).type), len(files), rows)


def drop_catalog_column(uri: str, options: StorageOptions, name: str) -> ColumnDrop:
    """Remove a user's column from the table `catalog`, with its values. Older table versions keep it until `vacuum`.

    Raises:
        SpecError: there are no tables or no such column, or another run is using the tables.
        FatalError: a data file cannot be written, or other commits keep coming first.
    """

    def change(schema: pa.Schema) -> pa.Schema:
        return pa.schema([field for field in schema if field.name != name], schema.metadata)

    with hold(uri, options, Holder.this_process(new_run_id(), "tables drop-column")):
        tables = Tables.open(uri, options)
        planned = plan_drop(tables, name)
        _change(tables, change)
    return planned


def _change(tables: Tables, change: ChangeSchema) -> None:
    """Give the table the schema `change(schema)`; write its data files again if it is not only longer."""
    for _ in range(_COMMIT_ATTEMPTS):
        tables.refresh("catalog")
        before = tables.arrow_schema("catalog")
        after = change(before)
        kept = [after.field(index) for field in before if (index := after.get_field_index(field.name)) >= 0]
        if len(kept) == len(before) and all(map(_is_same_field, before, kept)):
            tables.add_columns("catalog", after)
            return
        converted = [_converted(tables, file, after) for file in tables.data_files("catalog")]
        with translate_storage_errors(join(tables.uri, "catalog")):
            try:
                _replace_all(tables, converted, after)
            except CommitFailedError:
                # Another commit came first: its rows have to be converted, too.
                continue
        return
    raise FatalError(
        f"{display_uri(tables.uri)}: table 'catalog' gets commits faster than its columns can be changed. Start the "
        "job again when less is written."
    )


def _is_same_field(one: pa.Field, other: pa.Field) -> bool:
    return one.name == other.name and same_type(one.type, other.type)


def _converted(tables: Tables, file: LoggedFile, schema: pa.Schema) -> DataFile:
    """Return the rows of a data file in another schema, as a data file that is stored and not yet committed."""
    try:
        with tables.open_data_file("catalog", file) as source:
            rows = pq.ParquetFile(source).read()
    except (pa.ArrowException, *foreign_errors()) as error:
        raise SpecError(
            f"{display_uri(tables.uri)}: data file {file.path} cannot be read: {explain_error(error, tables.uri)}; run "
            "`kvq-batch tables check`"
        ) from error
    columns = [
        convert(rows.column(index), field.type) if index >= 0 else pa.nulls(rows.num_rows, field.type)
        for field in schema
        for index in (rows.schema.get_field_index(field.name),)
    ]
    made = make_data_file(
        pa.Table.from_arrays(columns, schema=schema.remove_metadata()),
        CATALOG,
        file.partition,
        f"{file.high.get('commit_seq', 0):016x}-converted",
    )
    try:
        put_file(join(join(tables.uri, "catalog"), made.path), made.content.to_pybytes(), tables.options, RetryPolicy())
    except foreign_errors() as error:
        raise FatalError(
            f"{display_uri(tables.uri)}: table 'catalog' cannot be written: {explain_error(error, tables.uri)}. "
            "Nothing was changed."
        ) from error
    return made


def _replace_all(tables: Tables, files: list[DataFile], schema: pa.Schema) -> None:
    """Commit `files` and `schema` in place of all data files. Raises: CommitFailedError after another commit."""
    delta = tables.delta("catalog")
    info = {"operation": "columns", "rows": sum(file.num_rows for file in files)}
    delta.create_write_transaction(
        [file.action for file in files],
        mode="overwrite",
        schema=Schema.from_arrow(schema),
        partition_by=[],
        # A later version has rows that are not in `files`.
        commit_properties=CommitProperties(custom_metadata={COMMIT_INFO_KEY: info}, max_commit_retries=0),
    )
    delta.update_incremental()
