"""The Delta tables below one address: create, open, refresh, and read as Arrow datasets.

Datasets are built here and not with `DeltaTable.to_pyarrow_dataset`. deltalake 1.6 turns missing statistics of a column
into `column >= null`, and Arrow then drops the data file from every query that filters by this column (measured: a data
file with a column that was added later returned no row). The datasets built here carry only what is known: the
partition, and the bounds of the two key columns.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler

from kvq_batch.domain.column_types import is_readable_column
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.storage.options import (
    StorageOptions,
    absolute,
    delta_options,
    display_uri,
    filesystem,
    is_local,
    join,
    translate_storage_errors,
)
from kvq_batch.tables.schemas import ADDED_TABLES, FORMAT_VERSION, TABLES, TableSchema, find_schema
from kvq_batch.tables.transactions import progress_of, shard_count

BOUNDED_COLUMNS = ("video_id", "commit_seq")
"""Key columns. They are never null, and only for them the log has bounds of each data file."""

FORMAT_KEY = "kvq_batch.format_version"
"""Table property with the version of the table format, set when a table is created. Tables without it are version 1."""

CHECKPOINT_EVERY = 20
"""Commits between checkpoints of a log. A commit reads the log since the last checkpoint: with delta-rs' default of 100
it takes twice as long on average (51-86 ms against 30-46, 600 commits on a local disk)."""

_ADD_ATTEMPTS = 10

_CREATED_LAST = [schema.name for schema in TABLES if schema.name not in ADDED_TABLES][-1]
"""If this table exists, those before it exist too: several drivers may start at the same time without tables."""

_DAMAGED_LOG = re.compile(r"Json error: ([^\n]*)")

_UNSUPPORTED_FEATURES = {"columnMapping", "deletionVectors"}


@dataclass(frozen=True, slots=True)
class LoggedFile:
    """A data file as listed in the log: its unescaped path below the table, and statistics of its rows.

    `num_rows` is None if the log has no row count, and `low` and `high` lack columns without bounds.
    """

    path: str
    size_bytes: int
    num_rows: int | None
    partition: Mapping[str, str]
    low: Mapping[str, Any]
    high: Mapping[str, Any]


class Tables:
    """All tables below one address (a folder or s3:// prefix), each at the table version that was loaded last.

    Tables of another format version are rejected when they are loaded, before a row is read or written.
    """

    def __init__(self, uri: str, options: StorageOptions, deltas: dict[str, DeltaTable]) -> None:
        self.uri = uri
        self.options = options
        self._deltas = deltas

    @classmethod
    def open(cls, uri: str, options: StorageOptions | None = None) -> Self:
        """Open the tables at their newest version.

        Raises:
            SpecError: a table is missing, out of reach, or of another format version, or a column has another type.
                `ADDED_TABLES` may be missing.
        """
        uri, options = absolute(uri), options or StorageOptions()
        deltas: dict[str, DeltaTable] = {}
        for schema in TABLES:
            delta = _load(uri, schema.name, options)
            if delta is None and schema.name in ADDED_TABLES and deltas:
                continue
            if delta is None:
                raise SpecError(
                    f"{display_uri(uri)}: there are no tables here ({schema.name!r} is missing). Correct the address, "
                    "or create tables with `kvq-batch run` or `kvq-batch score`."
                )
            deltas[schema.name] = delta
        tables = cls(uri, options, deltas)
        for schema in tables.schemas:
            tables._missing_columns(schema)
        return tables

    @classmethod
    def open_if_any(cls, uri: str, options: StorageOptions | None = None) -> Self | None:
        """Open the tables. Return None if they do not exist, or another process is creating them.

        Raises:
            SpecError: one of them is missing although a later one exists, one is of another format version, or the
                folder holds Delta tables that are not ours.
        """
        if _load(absolute(uri), _CREATED_LAST, options or StorageOptions()) is None:
            # A run would create tables there.
            _check_root(absolute(uri), options or StorageOptions())
            check_format_version(uri, options)
            return None
        return cls.open(uri, options)

    @classmethod
    def create(cls, uri: str, options: StorageOptions | None = None) -> Self:
        """Open the tables. Create missing ones, and add columns that this release added.

        Raises:
            SpecError: the address is out of reach, a table is of another format version, or a column has another type.
        """
        uri, options = absolute(uri), options or StorageOptions()
        _check_root(uri, options)
        # All are loaded first: tables of another format are rejected before one is created beside them.
        loaded = {schema.name: _load(uri, schema.name, options) for schema in TABLES}
        tables = cls(uri, options, {})
        for schema in TABLES:
            delta = loaded[schema.name]
            if delta is None:
                with translate_storage_errors(uri):
                    delta = _create(uri, schema, options)
            tables._deltas[schema.name] = delta
            tables.add_columns(schema.name, tables._missing_columns(schema))
        return tables

    @property
    def schemas(self) -> tuple[TableSchema, ...]:
        """Schemas of the tables that exist."""
        return tuple(schema for schema in TABLES if schema.name in self._deltas)

    def delta(self, name: str) -> DeltaTable:
        """Return the loaded `DeltaTable` of `name`. Raises: SpecError if the table does not exist yet."""
        delta = self._deltas.get(find_schema(name).name)
        if delta is None:
            raise SpecError(f"{display_uri(self.uri)}: table {name!r} does not exist yet. The next run creates it.")
        return delta

    def arrow_schema(self, name: str) -> pa.Schema:
        """Return the schema in the log, with descriptions; of a table that does not exist yet, the one of `schemas`."""
        if name not in self._deltas:
            return find_schema(name).arrow()
        return pa.schema(self.delta(name).schema().to_arrow())

    def refresh(self, *names: str) -> None:
        """Load new commits of the named tables, or of all.

        Raises:
            SpecError: a table is out of reach, or was changed to another format version.
        """
        for name in (name for name in names or self._deltas if name in self._deltas):
            with translate_storage_errors(join(self.uri, name)):
                self.delta(name).update_incremental()
            _check_format(self.uri, name, self.delta(name))

    def progress(self, shard: Shard = WHOLE) -> Mapping[str, int]:
        """Return {application id: newest `commit_seq`} of all writers that may have written videos of `shard`.

        Two results are equal exactly if none of these writers committed in between. One number is not enough: writers
        of disjoint shards commit at the same time, and the one with the older epoch may commit last.
        """
        newest: dict[str, int] = {}
        counts = {shard_count(delta) for delta in self._deltas.values()}
        for delta in self._deltas.values():
            for name, commit_seq in progress_of(delta, shard, counts).items():
                newest[name] = max(newest.get(name, 0), commit_seq)
        return newest

    def last_commit_seq(self, shard: Shard = WHOLE) -> int:
        """Return the highest `commit_seq` of these writers, or 0 before the first commit."""
        return max(self.progress(shard).values(), default=0)

    def add_columns(self, name: str, fields: Sequence[pa.Field]) -> None:
        """Add missing columns, nullable. They are null in older data files. Raises: SpecError if out of reach."""
        with translate_storage_errors(join(self.uri, name)):
            for attempt in range(_ADD_ATTEMPTS):
                known = self.arrow_schema(name)
                missing = [field for field in fields if known.get_field_index(field.name) < 0]
                if not missing:
                    return
                delta = self.delta(name)
                try:
                    delta.alter.add_columns(list(Schema.from_arrow(pa.schema(missing)).fields))
                except CommitFailedError:
                    # The driver of another shard reads the same catalog and may have added them first.
                    if attempt + 1 == _ADD_ATTEMPTS:
                        raise
                delta.update_incremental()

    def data_files(self, name: str) -> list[LoggedFile]:
        """Return the data files of the loaded version, without those that compaction replaced."""
        if name not in self._deltas:
            return []
        partition_by = find_schema(name).partition_by
        return [
            LoggedFile(
                # Paths in the log are URL-encoded. delta-rs also escapes the '@' in the names of files it writes.
                path=unquote(action["path"]),
                size_bytes=action["size_bytes"],
                num_rows=action.get("num_records"),
                partition={column: action[f"partition.{column}"] for column in partition_by},
                low={c: action[f"min.{c}"] for c in BOUNDED_COLUMNS if action.get(f"min.{c}") is not None},
                high={c: action[f"max.{c}"] for c in BOUNDED_COLUMNS if action.get(f"max.{c}") is not None},
            )
            for action in pa.table(self.delta(name).get_add_actions(flatten=True)).to_pylist()
        ]

    def dataset(self, name: str, only: Collection[LoggedFile] | None = None) -> pads.Dataset:
        """Return a dataset over all data files of the loaded version, or over `only`, in the schema of the table.

        Columns of `schemas` that the table lacks are null. Columns that cannot be read are left out.

        Raises: SpecError for an unsupported Delta feature.
        """
        schema = self._complete_schema(name)
        if name not in self._deltas:
            return pads.dataset(schema.empty_table())
        delta = self.delta(name)
        unsupported = _UNSUPPORTED_FEATURES & set(delta.protocol().reader_features or ())
        if unsupported:
            raise SpecError(
                f"{display_uri(self.uri)}: table {name!r} uses Delta features that kvq-batch cannot read: "
                f"{', '.join(sorted(unsupported))}. Rewrite it without them."
            )
        files = self.data_files(name) if only is None else only
        file_system = self._arrow_filesystem(name, files)
        parquet = pads.ParquetFileFormat(default_fragment_scan_options=pads.ParquetFragmentScanOptions(pre_buffer=True))
        fragments = [
            parquet.make_fragment(file.path, filesystem=file_system, partition_expression=_guarantee(file))
            for file in files
        ]
        return pads.FileSystemDataset(fragments, schema, parquet, file_system)

    def open_data_file(self, name: str, file: LoggedFile) -> pa.NativeFile:
        """Open a data file for reading by range. The caller closes it."""
        return self._arrow_filesystem(name, [file]).open_input_file(file.path)

    def table_filesystem(self, name: str) -> tuple[Any, str]:
        """Return the fsspec file system and the folder of the table."""
        return filesystem(join(self.uri, name), self.options)

    def _arrow_filesystem(self, name: str, files: Collection[LoggedFile]) -> pafs.FileSystem:
        sizes = {file.path: file.size_bytes for file in files}
        handler = DeltaStorageHandler(self.delta(name).table_uri, delta_options(self.uri, self.options), sizes)
        return pafs.PyFileSystem(handler)

    def _complete_schema(self, name: str) -> pa.Schema:
        schema = self.arrow_schema(name)
        missing = [field for field in find_schema(name).arrow() if schema.get_field_index(field.name) < 0]
        # Earlier releases stored columns that no query can read. `tables check` reports them.
        readable = [field for field in schema if is_readable_column(field.name)]
        return pa.schema([*readable, *missing], schema.metadata)

    def _missing_columns(self, schema: TableSchema) -> list[pa.Field]:
        """Return the columns of this release that the table lacks. Raises: SpecError if one has another type."""
        have = self.arrow_schema(schema.name)
        missing = []
        for field in schema.arrow():
            index = have.get_field_index(field.name)
            if index < 0:
                missing.append(field)
            elif have.field(index).type != field.type:
                raise SpecError(
                    f"{display_uri(self.uri)}: column {field.name!r} of table {schema.name!r} has type "
                    f"{have.field(index).type}, expected {field.type}. The tables were not written by this release of "
                    "kvq-batch. Choose another address."
                )
        return missing


def check_format_version(uri: str, options: StorageOptions | None = None) -> None:
    """Check the format of the tables below `uri`, if there are any. Raises: SpecError for another format version."""
    for schema in TABLES:
        _load(absolute(uri), schema.name, options or StorageOptions())


def _load(uri: str, name: str, options: StorageOptions) -> DeltaTable | None:
    """Load a table of our format version, or return None if it does not exist."""
    address = join(uri, name)
    with translate_storage_errors(uri):
        if is_local(uri):
            file_system, path = filesystem(address, options)
            # DeltaTable would create the folder of a missing local table.
            if not file_system.isdir(path):
                return None
        try:
            delta = DeltaTable(address, storage_options=delta_options(uri, options) or None)
        except TableNotFoundError:
            return None
        except DeltaError as error:
            # delta-rs has no class for it.
            if (damage := _DAMAGED_LOG.search(str(error))) is None:
                raise
            raise SpecError(
                f"{display_uri(address)}: an entry of the Delta log is damaged ({damage[1].strip()}). Restore the "
                "newest files of its _delta_log from a backup or from older versions of the objects."
            ) from error
    _check_format(uri, name, delta)
    return delta


def _check_root(uri: str, options: StorageOptions) -> None:
    """Raises: SpecError if the folder of the tables is itself a Delta table: its owner would delete ours as unknown."""
    # Not `DeltaTable.is_deltatable`: it holds the interpreter lock during its requests.
    with translate_storage_errors(uri):
        file_system, path = filesystem(uri, options)
        is_table = file_system.isdir(f"{path}/_delta_log")
    if is_table:
        raise SpecError(f"{display_uri(uri)} is itself a Delta table. Name another folder or prefix for the tables.")


def _check_format(uri: str, name: str, delta: DeltaTable) -> None:
    found = delta.metadata().configuration.get(FORMAT_KEY, "1")
    if found == str(FORMAT_VERSION):
        return
    if all(field.name != "commit_seq" for field in delta.schema().fields):
        raise SpecError(
            f"{display_uri(join(uri, name))} is a Delta table that kvq-batch did not write. Name another folder or "
            "prefix for the tables."
        )
    is_newer = not found.isdecimal() or int(found) > FORMAT_VERSION
    action = (
        "They were written by a newer kvq-batch. Upgrade kvq-batch."
        if is_newer
        else "They were written by an earlier kvq-batch and cannot be converted. Score into an empty folder or prefix."
    )
    raise SpecError(
        f"{display_uri(uri)}: the tables have format version {found} (found in table {name!r}), this kvq-batch "
        f"supports version {FORMAT_VERSION}. {action}"
    )


def _create(uri: str, schema: TableSchema, options: StorageOptions) -> DeltaTable:
    """Create a table, or return the one that another process created at the same time."""
    try:
        delta = DeltaTable.create(
            join(uri, schema.name),
            schema.arrow(),
            mode="ignore",
            partition_by=list(schema.partition_by),
            name=schema.name,
            configuration={"delta.checkpointInterval": str(CHECKPOINT_EVERY), FORMAT_KEY: str(FORMAT_VERSION)},
            raise_if_key_not_exists=False,
            storage_options=delta_options(uri, options) or None,
        )
    except DeltaError:
        found = _load(uri, schema.name, options)
        if found is None:
            raise
        return found
    _check_format(uri, schema.name, delta)
    return delta


def _guarantee(file: LoggedFile) -> pc.Expression:
    """Return what holds for every row of a data file, as an Arrow expression, so that queries can skip the file."""
    conditions = [pc.field(name) == value for name, value in file.partition.items()]
    for name in file.low.keys() & file.high.keys():
        conditions += [pc.field(name) >= file.low[name], pc.field(name) <= file.high[name]]
    if not conditions:
        return pc.scalar(True)
    expression = conditions[0]
    for condition in conditions[1:]:
        expression = expression & condition
    return expression
