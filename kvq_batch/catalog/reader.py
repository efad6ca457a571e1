"""Reads the catalog of a job as one table: a row per video, with our columns first and all others after them.

The catalog is validated completely, so that errors in it are reported before anything starts.
"""

import posixpath

import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.catalog.selection import matching_indices
from kvq_batch.catalog.source import KnownTypes, read_source
from kvq_batch.config.job import Catalog
from kvq_batch.domain.column_types import fold_name, is_usable_name
from kvq_batch.domain.errors import SpecError, shorten_list
from kvq_batch.storage.listing import VIDEO_EXTENSIONS, split_glob
from kvq_batch.storage.masking import mask_rows
from kvq_batch.storage.options import StorageOptions, absolute, display_uri
from kvq_batch.storage.redact import summarize_error
from kvq_batch.tables.table_files import check_extension, write_table

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
"""Our columns, in the order in which they precede the catalog's own."""

_TEXTS = ("video_id", "uri", "content_id")
_REQUIRED = ("video_id", "uri")

CATALOG_COLUMNS: tuple[str, ...] = tuple(CANONICAL.names)


def catalog_root(spec: Catalog) -> str:
    """Return the scope in which the ids of this catalog are unique: its file, folder, or fixed part of the glob."""
    return display_uri(absolute(split_glob(spec.source).root))


def read_catalog(
    spec: Catalog,
    options: StorageOptions,
    extensions: frozenset[str] = VIDEO_EXTENSIONS,
    known: KnownTypes | None = None,
) -> pa.Table:
    """Return the videos of the catalog: the columns of CANONICAL, then all columns of the source under their names.

    A canonical column is read from the column that `spec.columns` names, otherwise from the one with the same name; a
    missing optional one is null. Addresses are absolute. Secrets in all other columns are masked, also in ids. Rows
    keep the order of the source. `extensions` are those of the files that a listing includes. Columns that are text
    in `known` are read as text where the format has no types.

    Raises:
        SpecError: the source cannot be read or is empty, columns are missing, unnamed or ambiguous, ids or addresses
            are missing or repeated, a segment ends before it starts, or `where` is invalid.
    """
    name = display_uri(spec.source)
    columns = {field.name: getattr(spec.columns, field.name) or field.name for field in CANONICAL}
    texts = {fold_name(columns[text]): pa.string() for text in _TEXTS}
    raw, folder = read_source(spec.source, {**(known or {}), **texts}, options, extensions)
    if raw.num_rows == 0:
        raise SpecError(f"{name}: the catalog has no rows; add videos or use another catalog")
    if folder is None:
        columns = {field.name: field.name for field in CANONICAL}
    _check_names(name, raw, columns, spec)
    table = _canonical(name, raw, columns)
    rows = pa.array(range(1, table.num_rows + 1), pa.int64())
    if spec.where is not None:
        kept = matching_indices(table, spec.where, f"{name}: catalog.where")
        table, rows = table.take(kept), rows.take(kept)
        if table.num_rows == 0:
            raise SpecError(f"{name}: no row matches catalog.where = {spec.where!r}; widen the condition")
    table = table.combine_chunks()
    _check_present(name, table, rows)
    _check_segments(name, table, rows)
    if folder is not None:
        table = _set(table, "uri", _absolute_uris(table["uri"].combine_chunks(), folder))
    if spec.id_prefix:
        table = _set(table, "video_id", pc.binary_join_element_wise(pa.scalar(spec.id_prefix), table["video_id"], ""))
    # Addresses keep their signatures, which fetching needs.
    table = mask_rows(table, keep=("uri",))
    _check_unique(name, table)
    return table


def write_catalog(table: pa.Table, out: str, options: StorageOptions | None = None) -> None:
    """Write a catalog as .parquet, .csv, .jsonl or .ndjson, which `read_catalog` reads as the same videos.

    Omits optional columns without a value. Secrets are masked, such as the signatures of addresses.

    Raises:
        SpecError: another extension, or a file that cannot be written.
    """
    check_extension(out)
    empty = [n for n in CANONICAL.names if n in table.column_names and table[n].null_count == table.num_rows]
    table = table.drop_columns([n for n in empty if n not in _REQUIRED])
    write_table(mask_rows(table), out, options)


def _check_names(name: str, raw: pa.Table, columns: dict[str, str], spec: Catalog) -> None:
    existing = ", ".join(raw.column_names)
    folded: dict[str, str] = {}
    for number, column in enumerate(raw.column_names, 1):
        if not is_usable_name(column):
            reason = "has a name with a NUL character" if column else "has no name (pandas writes its index like this)"
            raise SpecError(f"{name}: column {number} of {len(raw.column_names)} {reason}; name it or remove it")
        twin = folded.setdefault(fold_name(column), column)
        if raw.column_names.count(column) > 1 or twin != column:
            raise SpecError(f"{name}: columns {twin!r} and {column!r} have the same name in SQL; rename one")
    for ours, theirs in columns.items():
        if theirs not in raw.column_names and (ours in _REQUIRED or theirs != ours):
            raise SpecError(f"{name}: no column {theirs!r} for catalog.columns.{ours}; the columns are: {existing}")
        if folded.get(ours, theirs) != theirs:
            raise SpecError(
                f"{name}: column {folded[ours]!r} has the reserved name {ours!r}, which is read from {theirs!r}; "
                f"rename it, or set catalog.columns.{ours} = {folded[ours]!r}"
            )


def _canonical(name: str, raw: pa.Table, columns: dict[str, str]) -> pa.Table:
    arrays = [_column(name, raw, columns[field.name], field) for field in CANONICAL]
    others = [column for column in raw.column_names if fold_name(column) not in CANONICAL.names]
    return pa.table([*arrays, *(raw[column] for column in others)], names=[*CANONICAL.names, *others])


def _column(name: str, raw: pa.Table, theirs: str, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if theirs not in raw.column_names:
        return pa.nulls(raw.num_rows, field.type)
    values = raw[theirs]
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if field.name == "video_id" and (pa.types.is_floating(kind) or pa.types.is_nested(kind)):
        raise SpecError(f"{name}: column {theirs!r} of type {kind} cannot identify videos; store video ids as text")
    try:
        values = values.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SpecError(
            f"{name}: column {theirs!r} cannot be read as {field.type}: {summarize_error(error, 200)}"
        ) from error
    if field.name == "content_id":
        # An empty token would make every video appear unchanged.
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
    return values


def _check_present(name: str, table: pa.Table, rows: pa.Array) -> None:
    for column in _REQUIRED:
        is_missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(table[column]), ""), True)
        if pc.any(is_missing).as_py():
            raise SpecError(f"{name}: no {column} in {_row_numbers(is_missing, rows)}; fill it in or remove the rows")


def _check_segments(name: str, table: pa.Table, rows: pa.Array) -> None:
    start, end = pc.fill_null(table["start_s"], 0.0), table["end_s"]
    is_valid = pc.and_(pc.and_(pc.is_finite(start), pc.greater_equal(start, 0.0)), pc.less(start, float("inf")))
    is_valid = pc.and_(is_valid, pc.fill_null(pc.and_(pc.is_finite(end), pc.greater(end, start)), pc.is_null(end)))
    if not pc.all(is_valid).as_py():
        raise SpecError(
            f"{name}: start_s and end_s need 0 <= start < end, in seconds; see "
            f"{_row_numbers(pc.invert(is_valid), rows)}"
        )


def _check_unique(name: str, table: pa.Table) -> None:
    ids = table["video_id"]
    if pc.count_distinct(ids).as_py() == table.num_rows:
        return
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    ids_shown = shorten_list(repr(value) for value in repeated.to_pylist())
    raise SpecError(
        f"{name}: {len(repeated)} video ids are not unique: {ids_shown}; make them unique, or map "
        f"catalog.columns.video_id to a column that is"
    )


def _row_numbers(mask: pa.Array | pa.ChunkedArray, rows: pa.Array) -> str:
    """Return the first row numbers (from 1, without the header) where `mask` is true, as text."""
    found = rows.filter(mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask)
    return f"row {shorten_list(str(row) for row in found.to_pylist())}"


def _absolute_uris(uris: pa.Array, folder: str) -> pa.Array:
    """Make relative addresses absolute, based on `folder`. Resolves '..', which object stores do not."""
    is_relative = pc.invert(pc.match_substring_regex(uris, pattern=r"^(?:/|~|[A-Za-z][A-Za-z0-9+.-]*://)"))
    if not pc.any(is_relative).as_py():
        return uris
    joined = pc.binary_join_element_wise(pa.scalar(folder), uris, "/")
    has_dots = pc.and_(is_relative, pc.match_substring_regex(joined, pattern=r"/\.\.?(?:/|$)"))
    if pc.any(has_dots).as_py():
        scheme, separator, path = folder.rpartition("://")
        dotted = pc.filter(uris, has_dots).to_pylist()
        normal = [scheme + separator + posixpath.normpath(posixpath.join(path, uri)) for uri in dotted]
        joined = pc.replace_with_mask(joined, has_dots, pa.array(normal, pa.string()))
    return pc.if_else(is_relative, joined, uris)


def _set(table: pa.Table, column: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values)


def check_catalog(catalog: pa.Table) -> None:
    """Check that `catalog` has all canonical columns, unique video ids, and a content id in every row.

    Raises:
        SpecError: a missing column, a null or repeated video id, or a null content id.
    """
    missing = [name for name in CATALOG_COLUMNS if name not in catalog.column_names]
    if missing:
        raise SpecError(f"the catalog has no column {', '.join(missing)}")
    ids = catalog.column("video_id")
    if ids.null_count:
        raise SpecError(f"the catalog has {ids.null_count} rows without a video id")
    contents = catalog.column("content_id")
    if contents.null_count:
        video_id = ids.filter(pc.is_null(contents))[0].as_py()
        raise SpecError(f"video {video_id!r} has no content id, which is needed to detect changes")
    if pc.count_distinct(ids).as_py() != catalog.num_rows:
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise SpecError(f"video id {repeated['values']!r} occurs {repeated['counts']} times in the catalog")
