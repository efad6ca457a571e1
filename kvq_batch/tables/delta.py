"""The Delta tables below one address: made, opened, refreshed, and read as Arrow datasets.

Datasets are put together here and not by `DeltaTable.to_pyarrow_dataset`: deltalake 1.6 turns the absent statistics of
a column into `column >= null`, and Arrow then drops the part from every query that filters by that column (measured: a
part with a later added column gave no row). Ours promise only what is known: the partition, and the bounds of the two
keys. This module does not write rows; that is the writer's.
"""

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
from kvq_batch.tables.schemas import ADDED_TABLES, TABLES, TableSchema, find_schema
from kvq_batch.tables.transactions import progress_of, shard_count

BOUNDED_COLUMNS = ("video_id", "commit_seq")
"""Never null, and the only columns of which parts carry bounds."""

CHECKPOINT_EVERY = 20
"""Commits between checkpoints of a log. A commit reads the log since the last one: with delta-rs' default of 100 it
costs twice as much on average (51-86 ms against 30-46, 600 commits on a local disk)."""

_ADD_ATTEMPTS = 10

_MADE_LAST = [schema.name for schema in TABLES if schema.name not in ADDED_TABLES][-1]
"""Where this one stands, so do those before it: several drivers may start on a place without tables."""

_UNREADABLE_FEATURES = {"columnMapping", "deletionVectors"}


@dataclass(frozen=True, slots=True)
class LoggedFile:
    """A part as the log tells of it: its true path below the table, and what is promised of its rows.

    `num_rows` is None, and a column has no bound, where the log does not say.
    """

    path: str
    size_bytes: int
    num_rows: int | None
    partition: Mapping[str, str]
    low: Mapping[str, Any]
    high: Mapping[str, Any]


class Tables:
    """All tables below one address, local or s3://, each at the version that was last loaded."""

    def __init__(self, uri: str, options: StorageOptions, deltas: dict[str, DeltaTable]) -> None:
        self.uri = uri
        self.options = options
        self._deltas = deltas

    @classmethod
    def open(cls, uri: str, options: StorageOptions | None = None) -> Self:
        """The tables as they stand; one that an earlier version did not make yet has no rows.

        Raises: SpecError where one is missing or out of reach.
        """
        uri, options = absolute(uri), options or StorageOptions()
        deltas: dict[str, DeltaTable] = {}
        for schema in TABLES:
            delta = _load(uri, schema.name, options)
            if delta is None and schema.name in ADDED_TABLES and deltas:
                continue
            if delta is None:
                raise SpecError(
                    f"{display_uri(uri)}: there are no tables here ({schema.name!r} is missing); correct the address, "
                    "or make them with `kvq-batch run` or `kvq-batch score`"
                )
            deltas[schema.name] = delta
        return cls(uri, options, deltas)

    @classmethod
    def open_if_any(cls, uri: str, options: StorageOptions | None = None) -> Self | None:
        """The tables, or None where they were never made, or somebody else is just making them.

        Raises: SpecError where one is missing of those that are made before others.
        """
        if _load(absolute(uri), _MADE_LAST, options or StorageOptions()) is None:
            return None
        return cls.open(uri, options)

    @classmethod
    def create(cls, uri: str, options: StorageOptions | None = None) -> Self:
        """The tables, made where they are missing, and given the columns that a newer version of ours added.

        Raises: SpecError where the place is out of reach, or a column there has another type than ours.
        """
        uri, options = absolute(uri), options or StorageOptions()
        tables = cls(uri, options, {})
        for schema in TABLES:
            delta = _load(uri, schema.name, options)
            if delta is None:
                with translate_storage_errors(uri):
                    delta = _make(uri, schema, options)
            tables._deltas[schema.name] = delta
            tables._upgrade(schema)
        return tables

    @property
    def schemas(self) -> tuple[TableSchema, ...]:
        """The tables that are there."""
        return tuple(schema for schema in TABLES if schema.name in self._deltas)

    def delta(self, name: str) -> DeltaTable:
        """The loaded `DeltaTable` of `name`. Raises: SpecError where an earlier version did not make it yet."""
        delta = self._deltas.get(find_schema(name).name)
        if delta is None:
            raise SpecError(f"{display_uri(self.uri)}: table {name!r} is not made yet; the next run makes it")
        return delta

    def arrow_schema(self, name: str) -> Any:
        """pa.Schema of the table as its log has it now, comments included; ours where it is not made yet."""
        if name not in self._deltas:
            return find_schema(name).arrow()
        return pa.schema(self.delta(name).schema().to_arrow())

    def refresh(self, *names: str) -> None:
        """Loads what was committed since; all tables where none is named. Raises: SpecError where out of reach."""
        for name in (name for name in names or self._deltas if name in self._deltas):
            with translate_storage_errors(join(self.uri, name)):
                self.delta(name).update_incremental()

    def progress(self, shard: Shard = WHOLE) -> Mapping[str, int]:
        """How far all who could have written results of `shard`'s videos have come, by their application ids.

        Two of these are equal exactly where nothing was committed in between by any of them. It is no single number:
        writers of disjoint shards commit at the same time, and the one of the older epoch may be the last.
        """
        newest: dict[str, int] = {}
        counts = {shard_count(delta) for delta in self._deltas.values()}
        for delta in self._deltas.values():
            for name, commit_seq in progress_of(delta, shard, counts).items():
                newest[name] = max(newest.get(name, 0), commit_seq)
        return newest

    def last_commit_seq(self, shard: Shard = WHOLE) -> int:
        """The highest `commit_seq` of those, 0 before the first; of the whole: that any table's log knows."""
        return max(self.progress(shard).values(), default=0)

    def add_columns(self, name: str, fields: Sequence[Any]) -> None:
        """Adds nullable columns (pa.Field) where they are missing; old parts read as null there.

        Raises: SpecError where out of reach.
        """
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
                    # The driver of another shard, which reads the same catalog, may just have added them.
                    if attempt + 1 == _ADD_ATTEMPTS:
                        raise
                delta.update_incremental()

    def parts(self, name: str) -> list[LoggedFile]:
        """The parts of the loaded version; files that compaction has replaced are none of them."""
        if name not in self._deltas:
            return []
        partition_by = find_schema(name).partition_by
        return [
            LoggedFile(
                # The log has paths as URLs; parts that delta-rs writes itself have an escaped '@' in their true names.
                path=unquote(action["path"]),
                size_bytes=action["size_bytes"],
                num_rows=action.get("num_records"),
                partition={column: action[f"partition.{column}"] for column in partition_by},
                low={c: action[f"min.{c}"] for c in BOUNDED_COLUMNS if action.get(f"min.{c}") is not None},
                high={c: action[f"max.{c}"] for c in BOUNDED_COLUMNS if action.get(f"max.{c}") is not None},
            )
            for action in pa.table(self.delta(name).get_add_actions(flatten=True)).to_pylist()
        ]

    def dataset(self, name: str, only: Collection[LoggedFile] | None = None) -> Any:
        """pyarrow.dataset.Dataset over the parts of the loaded version, in the table's schema.

        Files that compaction has replaced are no part of it; columns of ours that the next run will add are null.
        Raises: SpecError where the table has a feature that would be misread.
        """
        schema = self._whole_schema(name)
        if name not in self._deltas:
            return pads.dataset(schema.empty_table())
        delta = self.delta(name)
        unreadable = _UNREADABLE_FEATURES & set(delta.protocol().reader_features or ())
        if unreadable:
            raise SpecError(f"table {name!r} has {', '.join(sorted(unreadable))}, which this version cannot read")
        parts = self.parts(name) if only is None else only
        file_system = self._arrow_filesystem(name, parts)
        form = pads.ParquetFileFormat(default_fragment_scan_options=pads.ParquetFragmentScanOptions(pre_buffer=True))
        fragments = [
            form.make_fragment(part.path, filesystem=file_system, partition_expression=_promise(part)) for part in parts
        ]
        return pads.FileSystemDataset(fragments, schema, form, file_system)

    def open_part(self, name: str, part: LoggedFile) -> Any:
        """The file of `part` for reading by range, as pyarrow.NativeFile; to be closed."""
        return self._arrow_filesystem(name, [part]).open_input_file(part.path)

    def part_filesystem(self, name: str) -> tuple[Any, str]:
        """fsspec file system and path below which the parts of `name` stand."""
        return filesystem(join(self.uri, name), self.options)

    def _arrow_filesystem(self, name: str, parts: Collection[LoggedFile]) -> Any:
        sizes = {part.path: part.size_bytes for part in parts}
        handler = DeltaStorageHandler(self.delta(name).table_uri, delta_options(self.uri, self.options), sizes)
        return pafs.PyFileSystem(handler)

    def _whole_schema(self, name: str) -> Any:
        schema = self.arrow_schema(name)
        missing = [field for field in find_schema(name).arrow() if schema.get_field_index(field.name) < 0]
        return pa.schema([*schema, *missing], schema.metadata)

    def _upgrade(self, schema: TableSchema) -> None:
        have = self.arrow_schema(schema.name)
        missing = []
        for field in schema.arrow():
            index = have.get_field_index(field.name)
            if index < 0:
                missing.append(field)
            elif have.field(index).type != field.type:
                raise SpecError(
                    f"{display_uri(self.uri)}: column {field.name!r} of table {schema.name!r} is "
                    f"{have.field(index).type} there and {field.type} here; "
                    "these tables belong to another version of kvq-batch"
                )
        self.add_columns(schema.name, missing)


def _load(uri: str, name: str, options: StorageOptions) -> DeltaTable | None:
    """The table, or None where there is none."""
    address = join(uri, name)
    with translate_storage_errors(uri):
        if is_local(uri):
            file_system, path = filesystem(address, options)
            # Opening a missing local table makes its folder; asking must leave no trace.
            if not file_system.isdir(path):
                return None
        try:
            return DeltaTable(address, storage_options=delta_options(uri, options) or None)
        except TableNotFoundError:
            return None


def _make(uri: str, schema: TableSchema, options: StorageOptions) -> DeltaTable:
    """A new table, or the one that somebody else made at the same moment."""
    try:
        return DeltaTable.create(
            join(uri, schema.name),
            schema.arrow(),
            mode="ignore",
            partition_by=list(schema.partition_by),
            name=schema.name,
            configuration={"delta.checkpointInterval": str(CHECKPOINT_EVERY)},
            storage_options=delta_options(uri, options) or None,
        )
    except DeltaError:
        made = _load(uri, schema.name, options)
        if made is None:
            raise
        return made


def _promise(part: LoggedFile) -> Any:
    """What holds for every row of a part, as an Arrow expression, so that whole parts can be left out."""
    claims = [pc.field(name) == value for name, value in part.partition.items()]
    for name in part.low.keys() & part.high.keys():
        claims += [pc.field(name) >= part.low[name], pc.field(name) <= part.high[name]]
    if not claims:
        return pc.scalar(True)
    expression = claims[0]
    for claim in claims[1:]:
        expression = expression & claim
    return expression
