"""Reads the raw rows of a catalog from a Parquet, CSV or JSONL file, a Delta table, or a listing of videos.

Types are kept, except that columns with ids and addresses are always read as text: "007" stays "007". The rows are
checked in `catalog.reader`.
"""

import logging
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kvq_batch.catalog.text_files import KnownTypes, read_csv, read_jsonl
from kvq_batch.domain.column_types import fold_name
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
