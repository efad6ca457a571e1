"""The catalog of a job: every video with its id, its address, and all that the catalog's owner says of it.

Whatever a catalog comes from, it leaves here as one table with our columns first and the owner's after them, or not at
all: what is wrong with it is said before anything starts. This module opens no video.
"""

import posixpath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.selection import indices_that_match
from kvq_batch.catalog.source import read_source
from kvq_batch.config.job import Catalog
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.listing import VIDEO_EXTENSIONS, split_glob
from kvq_batch.storage.options import StorageOptions, absolute, display_uri, display_uris
from kvq_batch.storage.redact import summary
from kvq_batch.tables.table_files import check_extension, write_table

__all__ = ["CANONICAL", "catalog_root", "read_catalog", "resolve_content_ids", "write_catalog"]

CANONICAL = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("content_id", pa.string()),
        ("size_bytes", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
    ]
)
"""Our columns, in the order in which they stand before the owner's."""

_TEXTS = ("video_id", "uri", "content_id")
_REQUIRED = ("video_id", "uri")
_SHOWN = 5

CATALOG_COLUMNS = ("video_id", "uri", "content_id", "size_bytes", "start_s", "end_s")


def catalog_root(spec: Catalog) -> str:
    """Where the ids of this catalog are unique: its file, or the folder or fixed part of the glob that is listed."""
    return display_uri(absolute(split_glob(spec.source).root))


def read_catalog(spec: Catalog, options: StorageOptions, extensions: frozenset[str] = VIDEO_EXTENSIONS) -> pa.Table:
    """The videos of the catalog: the columns of CANONICAL, then all columns of the source under their own names.

    A canonical column is taken from the source's column that `spec.columns` names, or else from the one of the same
    name; an optional one that is not there is null. Addresses are absolute; rows stand in the order of the source.
    `extensions` are those of the files that a listing takes.

    Raises SpecError for a source that cannot be read or is empty, for unknown or clashing columns, for ids and
    addresses that are missing or stand twice, for stretches that end before they start, and for a bad `where`.
    """
    name = display_uri(spec.source)
    columns = {field.name: getattr(spec.columns, field.name) or field.name for field in CANONICAL}
    raw, folder = read_source(spec.source, tuple(columns[text] for text in _TEXTS), options, extensions)
    if raw.num_rows == 0:
        raise SpecError(f"{name}: the catalog has no row; add videos or name another")
    if folder is None:
        columns = {field.name: field.name for field in CANONICAL}
    _check_names(name, raw, columns, spec)
    table = _canonical(name, raw, columns)
    rows = pa.array(range(1, table.num_rows + 1), pa.int64())
    if spec.where is not None:
        kept = indices_that_match(table, spec.where, f"{name}: catalog.where")
        table, rows = table.take(kept), rows.take(kept)
        if table.num_rows == 0:
            raise SpecError(f"{name}: no row meets catalog.where = {spec.where!r}; widen the condition")
    table = table.combine_chunks()
    _check_present(name, table, rows)
    _check_stretches(name, table, rows)
    if folder is not None:
        table = _set(table, "uri", _absolute_uris(table["uri"].combine_chunks(), folder))
    if spec.id_prefix:
        table = _set(table, "video_id", pc.binary_join_element_wise(pa.scalar(spec.id_prefix), table["video_id"], ""))
    _check_unique(name, table)
    return table


def write_catalog(table: pa.Table, out: str, options: StorageOptions | None = None) -> None:
    """Writes a catalog as .parquet, .csv, .jsonl or .ndjson; `read_catalog` finds the same videos in it.

    Optional columns without a value are left out; addresses are written without signatures. Raises SpecError.
    """
    check_extension(out)
    empty = [n for n in CANONICAL.names if n in table.column_names and table[n].null_count == table.num_rows]
    table = table.drop_columns([n for n in empty if n not in _REQUIRED])
    table = _set(table, "uri", display_uris(table["uri"]))
    write_table(table, out, options)


def _check_names(name: str, raw: pa.Table, columns: dict[str, str], spec: Catalog) -> None:
    existing = ", ".join(raw.column_names)
    folded: dict[str, str] = {}
    for column in raw.column_names:
        twin = folded.setdefault(column.lower(), column)
        if raw.column_names.count(column) > 1 or twin != column:
            raise SpecError(f"{name}: columns {twin!r} and {column!r} differ in nothing that SQL sees; rename one")
    for ours, theirs in columns.items():
        if theirs not in raw.column_names and (ours in _REQUIRED or theirs != ours):
            raise SpecError(f"{name}: no column {theirs!r} for catalog.columns.{ours}; there are: {existing}")
        if folded.get(ours, theirs) != theirs:
            raise SpecError(
                f"{name}: column {folded[ours]!r} would be taken for our {ours!r}, which comes from {theirs!r}; rename "
                f"it, or set catalog.columns.{ours} = {folded[ours]!r}"
            )


def _canonical(name: str, raw: pa.Table, columns: dict[str, str]) -> pa.Table:
    arrays = [_column(name, raw, columns[field.name], field) for field in CANONICAL]
    further = [column for column in raw.column_names if column.lower() not in CANONICAL.names]
    return pa.table([*arrays, *(raw[column] for column in further)], names=[*CANONICAL.names, *further])


def _column(name: str, raw: pa.Table, theirs: str, field: pa.Field) -> Any:
    if theirs not in raw.column_names:
        return pa.nulls(raw.num_rows, field.type)
    values = raw[theirs]
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if field.name == "video_id" and (pa.types.is_floating(kind) or pa.types.is_nested(kind)):
        raise SpecError(f"{name}: column {theirs!r} is {kind}, which names nothing for sure; store video ids as text")
    try:
        values = values.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SpecError(f"{name}: column {theirs!r} is no {field.type}: {summary(error, 200)}") from error
    if field.name == "content_id":
        # An empty token would make every video look unchanged.
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
    return values


def _check_present(name: str, table: pa.Table, rows: pa.Array) -> None:
    for column in _REQUIRED:
        is_missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(table[column]), ""), True)
        if pc.any(is_missing).as_py():
            raise SpecError(f"{name}: no {column} in {_rows(is_missing, rows)}; fill it in or leave the rows out")


def _check_stretches(name: str, table: pa.Table, rows: pa.Array) -> None:
    start, end = pc.fill_null(table["start_s"], 0.0), table["end_s"]
    is_sound = pc.and_(pc.and_(pc.is_finite(start), pc.greater_equal(start, 0.0)), pc.less(start, float("inf")))
    is_sound = pc.and_(is_sound, pc.fill_null(pc.and_(pc.is_finite(end), pc.greater(end, start)), pc.is_null(end)))
    if not pc.all(is_sound).as_py():
        raise SpecError(
            f"{name}: start_s and end_s need 0 <= start < end, in seconds; see {_rows(pc.invert(is_sound), rows)}"
        )


def _check_unique(name: str, table: pa.Table) -> None:
    ids = table["video_id"]
    if pc.count_distinct(ids).as_py() == table.num_rows:
        return
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    first = ", ".join(repr(value) for value in repeated[:_SHOWN].to_pylist())
    raise SpecError(
        f"{name}: {len(repeated)} video ids stand more than once, first {first}; make them unique, or map "
        f"catalog.columns.video_id to a column that is"
    )


def _rows(mask: Any, rows: pa.Array) -> str:
    """The first few row numbers (from 1, without the header) at which `mask` is true."""
    found = rows.filter(mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"row {', '.join(str(row) for row in found[:_SHOWN].to_pylist())}{more}"


def _absolute_uris(uris: Any, folder: str) -> Any:
    """Relative addresses start at `folder`; '..' is resolved by us, because object stores know no such thing."""
    is_relative = pc.invert(pc.match_substring_regex(uris, pattern=r"^(?:/|~|[A-Za-z][A-Za-z0-9+.-]*://)"))
    if not pc.any(is_relative).as_py():
        return uris
    joined = pc.binary_join_element_wise(pa.scalar(folder), uris, "/")
    is_crooked = pc.and_(is_relative, pc.match_substring_regex(joined, pattern=r"/\.\.?(?:/|$)"))
    if pc.any(is_crooked).as_py():
        scheme, separator, path = folder.rpartition("://")
        crooked = pc.filter(uris, is_crooked).to_pylist()
        straight = [scheme + separator + posixpath.normpath(posixpath.join(path, uri)) for uri in crooked]
        joined = pc.replace_with_mask(joined, is_crooked, pa.array(straight, pa.string()))
    return pc.if_else(is_relative, joined, uris)


def _set(table: pa.Table, column: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values)


def check_catalog(catalog: Any) -> None:
    """Raises: SpecError for a missing column, a null or repeated video id, or a null content id."""
    missing = [name for name in CATALOG_COLUMNS if name not in catalog.column_names]
    if missing:
        raise SpecError(f"the catalog has no column {', '.join(missing)}")
    ids = catalog.column("video_id")
    if ids.null_count:
        raise SpecError(f"the catalog has {ids.null_count} rows without a video id")
    contents = catalog.column("content_id")
    if contents.null_count:
        nameless = ids.filter(pc.is_null(contents))[0].as_py()
        raise SpecError(f"video {nameless!r} has no content id, so nobody could tell when it changes")
    if pc.count_distinct(ids).as_py() != catalog.num_rows:
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise SpecError(f"video id {repeated['values']!r} stands {repeated['counts']} times in the catalog")
