"""Reads the raw rows of a catalog from a Parquet, CSV or JSONL file, a Delta table, or a listing of videos.

Types are kept, except that columns with ids and addresses are always read as text: "007" stays "007". The rows are
checked in `catalog.reader`.

For CSV and JSONL Arrow guesses the types; columns that are text elsewhere are read as text. Arrow accepts more than a
catalog can mean: bytes that are not UTF-8 become binary columns, and a header with another delimiter becomes one
column. Such files are either read as they were meant, or rejected with a sentence that names what is wrong.
"""

import codecs
import csv
import io
import logging
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from kvq_batch.domain.column_types import TEXT, convert, fold_name, merge_types, storable_type
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.errors import known_errors
from kvq_batch.storage.lake_tables import find_lake_tables, read_delta_table
from kvq_batch.storage.listing import (
    VIDEO_EXTENSIONS,
    LeftOut,
    Pattern,
    glob_to_regex,
    list_file,
    list_files,
    no_videos_error,
    split_glob,
)
from kvq_batch.storage.objects import open_file
from kvq_batch.storage.options import (
    StorageOptions,
    absolute,
    display_uri,
    filesystem,
    is_http,
    is_local,
    is_s3,
    join,
    local_path,
    translate_storage_errors,
)
from kvq_batch.storage.redact import summarize_error

KnownTypes = Mapping[str, pa.DataType]
"""Types of columns in the table, by their folded names (`fold_name`)."""

_BLOCK_BYTES = 16 * 2**20
_HEAD_BYTES = 2**20
_DELIMITERS = ",;\t|"
_SAVE = "save the file as UTF-8"


def read_csv(file: Any, name: str, known: KnownTypes) -> pa.Table:
    """Return the rows of a CSV file. The delimiter (, ; tab |) is the one that gives most known columns.

    Raises:
        SpecError: with `name`: the file is not text in UTF-8 or UTF-16.
        ArrowInvalid: a row does not have the columns of the header.
    """
    file, start = _text(file, name)
    header, delimiter = _header(file.read(_HEAD_BYTES), name, known)
    texts = [column for column in header if _is_text(known.get(fold_name(column)))]
    file.seek(start)
    table = _parse_csv(file, delimiter, texts)
    # What is stored as text is stored as written in the file.
    more = [field.name for field in table.schema if _becomes_text(field.type, known.get(fold_name(field.name)))]
    if more:
        file.seek(start)
        table = _parse_csv(file, delimiter, [*texts, *more])
    for field in table.schema:
        if pa.types.is_binary(field.type):
            row = next(i for i, value in enumerate(table[field.name].to_pylist(), 1) if not _is_utf8(value))
            raise SpecError(f"{name}: column {field.name!r} is not UTF-8 in row {row} (Latin-1?); {_SAVE}")
    return table


def _becomes_text(guessed: pa.DataType, known: pa.DataType | None) -> bool:
    """Return whether a column is stored as text, although its values look like something else."""
    if pa.types.is_string(guessed) or pa.types.is_binary(guessed):
        return False
    kinds = [storable_type(kind) or pa.null() for kind in (guessed, known or pa.null())]
    return bool(merge_types(*kinds) == TEXT)


def _parse_csv(file: Any, delimiter: str, texts: list[str]) -> pa.Table:
    return pyarrow.csv.read_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        # Keys of object stores may contain line breaks.
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        # Only an empty field is null: a film may have the title "NA".
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(texts, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )


def read_jsonl(file: Any, name: str, known: KnownTypes) -> pa.Table:
    """Return the rows of a file of JSON objects.

    Raises:
        SpecError: with `name`: the file is not text in UTF-8 or UTF-16, or does not begin with an object.
        ArrowInvalid: a value is not valid JSON, or has another type than the values before it.
    """
    file, start = _text(file, name)
    head = file.read(_HEAD_BYTES).lstrip()
    # Arrow crashes on a file of nulls.
    if head and not head.startswith(b"{"):
        raise SpecError(f"{name}: expected JSON objects, one per line, found {head[:1].decode(errors='replace')!r}")
    file.seek(start)
    table = _parse_json(file, None)
    # Arrow takes texts for times if all of them look like times. While it guesses the types of items, it drops nulls
    # at the start of lists. So it parses again, with types in place of guesses and of null types.
    meant = {field.name: _without_times(field.type, known.get(fold_name(field.name))) for field in table.schema}
    parsed = pa.schema([(name, _without_nulls(kind)) for name, kind in meant.items()])
    if parsed == table.schema and not any(map(_has_list, table.schema.types)):
        return table
    file.seek(start)
    table = _parse_json(file, parsed)
    return pa.table({name: convert(table[name], kind) for name, kind in meant.items()})


def _has_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or (pa.types.is_struct(kind) and any(_has_list(field.type) for field in kind))


def _parse_json(file: Any, schema: pa.Schema | None) -> pa.Table:
    return pyarrow.json.read_json(
        file,
        pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        pyarrow.json.ParseOptions(explicit_schema=schema, newlines_in_values=True),
    )


def _without_times(found: pa.DataType, known: pa.DataType | None) -> pa.DataType:
    """Return `found` with text in place of the times that are text in `known`."""
    types = pa.types
    if known is None:
        return found
    if types.is_timestamp(found) and types.is_string(known):
        return known
    if types.is_list(found) and types.is_list(known):
        return pa.list_(_without_times(found.value_type, known.value_type))
    if types.is_struct(found) and types.is_struct(known):
        theirs = {field.name: field.type for field in known}
        return pa.struct([(field.name, _without_times(field.type, theirs.get(field.name))) for field in found])
    return found


def _without_nulls(found: pa.DataType) -> pa.DataType:
    """Return `found` with text in place of the null types in lists and structs."""
    types = pa.types
    if types.is_list(found):
        return pa.list_(pa.string() if types.is_null(found.value_type) else _without_nulls(found.value_type))
    if types.is_struct(found):
        kinds = {field.name: field.type for field in found}
        return pa.struct(
            [(name, pa.string() if types.is_null(kind) else _without_nulls(kind)) for name, kind in kinds.items()]
        )
    return found


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and pa.types.is_string(kind)


def _text(file: Any, name: str) -> tuple[Any, int]:
    """Return `file`, or its text in UTF-8, positioned after a byte order mark, and that position."""
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if head.startswith(codecs.BOM_UTF8):
        file.seek(len(codecs.BOM_UTF8))
        return file, len(codecs.BOM_UTF8)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return io.BytesIO(file.read().decode("utf-16").encode()), 0
        except UnicodeError as error:
            raise SpecError(f"{name}: is not valid UTF-16: {error}; {_SAVE}") from error
    if b"\0" in head:
        raise SpecError(f"{name}: has NUL bytes, so it is not text in UTF-8; {_SAVE}")
    return file, 0


def _header(head: bytes, name: str, known: KnownTypes) -> tuple[list[str], str]:
    """Return the names in the header of a CSV file, and its delimiter."""

    def num_known(delimiter: str) -> int:
        return sum(fold_name(column) in known for column in headers[delimiter])

    text = head.decode(errors="surrogateescape")
    headers = {}
    for delimiter in _DELIMITERS:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            headers[delimiter] = next((row for row in rows if row), [])
        except csv.Error as error:
            raise SpecError(f"{name}: the header cannot be read: {error}") from error
    delimiter = max(_DELIMITERS, key=num_known)
    for number, column in enumerate(headers[delimiter], 1):
        if not _is_encodable(column):
            raise SpecError(f"{name}: the name of column {number} is not UTF-8 (Latin-1?); {_SAVE}")
    return headers[delimiter], delimiter


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _is_encodable(text: str) -> bool:
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False


_LOG = logging.getLogger(__name__)

CATALOG_EXTENSIONS = ("parquet", "csv", "jsonl", "ndjson")
_COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "xz": "xz"}
_TEXT_FILE = re.compile(r"(?i)\.(csv|jsonl|ndjson)\.(gz|bz2|xz)$")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_PRIVATE = r"(?s)(?:^|/)\.|(?:^|/)_[^/]*(?:/.*)?\.parquet$"


def read_source(
    source: str, known: KnownTypes, options: StorageOptions, extensions: frozenset[str] = VIDEO_EXTENSIONS
) -> tuple[pa.Table, str | None]:
    """Return all rows of `source`, and the folder that its relative addresses start from (None for a listing).

    Columns that are text in `known` are read as text where the format has no types. `extensions` are those of the
    files that a listing includes. A listing has the columns video_id, uri, content_id and size_bytes.

    Raises:
        SpecError: the source does not exist, cannot be read, has an unknown format, or contains no video.
    """
    pattern = split_glob(source)
    extension = _extension(source)
    if pattern.glob is None and _is_file(source, extension, extensions, options):
        if extension in extensions:
            return _listing(source, None, list_file(source, options)), None
        if extension not in CATALOG_EXTENSIONS:
            raise SpecError(
                f"{display_uri(source)}: unknown catalog format: expected a file that ends in "
                f"{', '.join(f'.{name}' for name in CATALOG_EXTENSIONS)} (text also with .gz, .bz2 or .xz), or a "
                "folder, prefix or glob of videos"
            )
        return _read_file(source, extension, known, options), absolute(_without_query(source)).rpartition("/")[0]
    return _read_folder(source, pattern, known, options, extensions)


def _is_file(source: str, extension: str, extensions: frozenset[str], options: StorageOptions) -> bool:
    if is_local(source):
        with translate_storage_errors(source):
            if not local_path(source).exists():
                raise SpecError(f"{source}: no such file or folder; correct the address")
            return local_path(source).is_file()
    if is_http(source):
        # There are no folders, and asking would fetch the whole file.
        return extension in (*CATALOG_EXTENSIONS, *extensions)
    if extension in CATALOG_EXTENSIONS:
        # Spark writes folders with names like x.parquet.
        with translate_storage_errors(source):
            file_system, path = filesystem(source, options)
            with known_errors():
                is_folder = bool(file_system.isdir(path))
        return not is_folder
    return extension in extensions


def _read_folder(
    source: str, pattern: Pattern, known: KnownTypes, options: StorageOptions, extensions: frozenset[str]
) -> tuple[pa.Table, str | None]:
    root = absolute(pattern.root)
    left_out = LeftOut()
    listing = list_files(root, options, left_out)
    start = len(_listed_root(root, options))
    relative = pc.utf8_slice_codeunits(listing["path"], start)
    lake_tables = find_lake_tables(relative)
    if pattern.glob is None and lake_tables.get("") == "Delta":
        with _translate_read_errors(root):
            return read_delta_table(root, options), root
    # Skips hidden files and folders, and Parquet files of query engines (_delta_log, _temporary).
    is_kept = pc.invert(pc.match_substring_regex(relative, pattern=_PRIVATE))
    if pattern.glob is not None:
        is_kept = pc.and_(is_kept, pc.match_substring_regex(relative, pattern=glob_to_regex(pattern.glob)))
        extensions |= _chosen_extension(pattern.glob)
    known_extension = rf"(?i)\.(?:{'|'.join(sorted(extensions))}|parquet)$"
    is_known = pc.match_substring_regex(relative, pattern=known_extension)
    others = relative.filter(pc.and_not(is_kept, is_known))
    is_kept = pc.and_(is_kept, is_known)
    listing, relative = listing.filter(is_kept), relative.filter(is_kept)
    is_parquet = pc.ends_with(relative, ".parquet")
    num_parquet = pc.sum(is_parquet).as_py() or 0
    if num_parquet == 0:
        left_out.add_endings(others)
        if listing.num_rows == 0:
            raise no_videos_error(source, left_out)
    _log_left_out(source, root, listing.num_rows, left_out)
    if num_parquet == 0:
        return _listing(root, relative, listing), None
    if num_parquet < listing.num_rows:
        raise SpecError(f"{display_uri(source)}: contains both videos and Parquet files; select one kind with a glob")
    paths = relative.to_pylist()
    _check_no_lake_table(root, paths, lake_tables)
    uris = [_to_uri(root, path, options) for path in listing["path"].to_pylist()]
    tables = [_read_file(uri, "parquet", known, options) for uri in uris]
    tables = _with_partitions(tables, [_hive_partition(path) for path in paths])
    with _translate_read_errors(source):
        table = pa.concat_tables(tables, promote_options="permissive")
    return table, root


def _check_no_lake_table(root: str, paths: list[str], lake_tables: dict[str, str]) -> None:
    """Raises: SpecError if a Parquet file belongs to a table whose log decides which files count."""
    for folder, table_format in lake_tables.items():
        if any(path.startswith(folder) for path in paths):
            action = "give its folder as the source"
            if table_format != "Delta":
                action = "export its current rows to a Parquet file"
            raise SpecError(
                f"{display_uri(f'{root}/{folder}')}: is a table of {table_format}, whose log decides which Parquet "
                f"files count; {action}"
            )


def _hive_partition(path: str) -> dict[str, str | None]:
    """Return the columns that the folders of a path name: `country=DE/day=1/x.parquet`."""
    pairs = (folder.partition("=") for folder in path.split("/")[:-1])
    values = {unquote(name): unquote(value) for name, mark, value in pairs if mark and name}
    return {name: None if value == _HIVE_NULL else value for name, value in values.items()}


def _with_partitions(tables: list[pa.Table], partitions: list[dict[str, str | None]]) -> list[pa.Table]:
    """Return the tables with the columns of their folders: whole numbers if all values are, otherwise text."""
    for name in dict.fromkeys(name for partition in partitions for name in partition):
        values = [partition.get(name) for partition in partitions]
        is_number = all(value is None or _is_whole_number(value) for value in values)
        kind = pa.int64() if is_number else pa.string()
        for index, (table, value) in enumerate(zip(tables, values, strict=True)):
            # Some engines write the column into the files, too.
            if fold_name(name) not in map(fold_name, table.column_names):
                scalar = pa.scalar(int(value) if is_number and value is not None else value, kind)
                tables[index] = table.append_column(name, pa.repeat(scalar, table.num_rows))
    return tables


def _is_whole_number(text: str) -> bool:
    return re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text) is not None


def _chosen_extension(glob: str) -> frozenset[str]:
    """Return the ending that the glob itself names, as `**/*.gif` does, unless it is that of a catalog."""
    extension = _extension(glob)
    return frozenset([extension] if extension.isalnum() and extension not in CATALOG_EXTENSIONS else [])


def _log_left_out(source: str, root: str, num_videos: int, left_out: LeftOut) -> None:
    if left_out:
        _LOG.warning(
            "%s: %d files; left out: %s. To take files with another ending, use a glob such as %s",
            display_uri(source), num_videos, left_out, join(display_uri(root), "**/*.gif"),
        )  # fmt: skip


def _listed_root(root: str, options: StorageOptions) -> str:
    """Return the common start of all paths in a listing of `root`, including the slash."""
    path = filesystem(root, options)[1].rstrip("/")
    return f"{path}/"


def _to_uri(root: str, path: str, options: StorageOptions) -> str:
    if is_local(root):
        return path
    return f"s3://{path}" if is_s3(root) else str(filesystem(root, options)[0].unstrip_protocol(path))


def _listing(root: str, relative: pa.ChunkedArray | None, listing: pa.Table) -> pa.Table:
    """Return a catalog of listed files; `relative` is None if `root` is itself the only video."""
    if relative is None:
        ids, uris = pa.array([_without_query(root).rstrip("/").rpartition("/")[2]]), pa.array([absolute(root)])
    else:
        ids, uris = relative, pc.binary_join_element_wise(pa.scalar(root.rstrip("/")), relative, "/")
    return pa.table({
        "video_id": ids, "uri": uris, "content_id": listing["content_id"], "size_bytes": listing["size_bytes"]
    })  # fmt: skip


def _without_query(source: str) -> str:
    return source.partition("?")[0] if is_http(source) else source


def _extension(source: str) -> str:
    """Return the extension of the last part of an address, in lower case, without that of a compression."""
    name = _TEXT_FILE.sub(r".\1", _without_query(source).rpartition("/")[2])
    return name.rpartition(".")[2].lower() if "." in name else ""


def _read_file(uri: str, extension: str, known: KnownTypes, options: StorageOptions) -> pa.Table:
    name = display_uri(uri)
    readers: dict[str, Callable[[Any], pa.Table]] = {
        # Not `read_table`, which reads a dataset: Arrow adds columns of its own to those.
        "parquet": lambda file: pq.ParquetFile(file).read(),
        "csv": lambda file: read_csv(file, name, known),
        "jsonl": lambda file: read_jsonl(file, name, known),
        "ndjson": lambda file: read_jsonl(file, name, known),
    }
    with translate_storage_errors(uri), _translate_read_errors(uri), _open(uri, options) as file:
        table = readers[extension](file)
        # Arrow's readers of JSON and Parquet do not check that texts are UTF-8.
        table.validate(full=True)
    return table


def _open(uri: str, options: StorageOptions) -> BinaryIO:
    compressed = _TEXT_FILE.search(_without_query(uri))
    return open_file(uri, options, _COMPRESSIONS[compressed[2].lower()] if compressed else None)


@contextmanager
def _translate_read_errors(uri: str) -> Iterator[None]:
    """Translate exceptions of the readers into a SpecError with the address."""
    try:
        yield
    except (pa.ArrowException, UnicodeError, EOFError, zlib.error, lzma.LZMAError) as error:
        message = f"{display_uri(uri)}: cannot be read as a catalog: {summarize_error(error, 300)}"
        raise SpecError(message) from error
