"""Reads the raw rows of a catalog from a Parquet, CSV or JSONL file, or from a listing of a folder, prefix or glob.

Types are kept, except that columns with ids and addresses are always read as text: "007" stays "007". The rows are
checked in `catalog.reader`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.listing import (
    VIDEO_EXTENSIONS,
    Pattern,
    glob_to_regex,
    list_file,
    list_files,
    no_videos_error,
    split_glob,
)
from kvq_batch.storage.options import (
    StorageOptions,
    absolute,
    display_uri,
    filesystem,
    is_local,
    is_s3,
    local_path,
    translate_storage_errors,
)
from kvq_batch.storage.redact import summarize_error

CATALOG_EXTENSIONS = ("parquet", "csv", "jsonl", "ndjson")
_BLOCK_BYTES = 16 * 2**20
_PRIVATE = r"(?s)(?:^|/)\.|(?:^|/)_[^/]*(?:/.*)?\.parquet$"


def read_source(
    source: str, names: tuple[str, ...], options: StorageOptions, extensions: frozenset[str] = VIDEO_EXTENSIONS
) -> tuple[pa.Table, str | None]:
    """Return all rows of `source`, and the folder that its relative addresses start from (None for a listing).

    The columns `names` are read as text. `extensions` are those of the files that a listing includes. A listing has the
    columns video_id, uri, content_id and size_bytes.

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
                f"{', '.join(f'.{name}' for name in CATALOG_EXTENSIONS)}, or a folder, prefix or glob of videos"
            )
        return _read_file(source, extension, names, options), absolute(source).rpartition("/")[0]
    return _read_folder(source, pattern, names, options, extensions)


def _is_file(source: str, extension: str, extensions: frozenset[str], options: StorageOptions) -> bool:
    if is_local(source):
        if not local_path(source).exists():
            raise SpecError(f"{source}: no such file or folder; correct the address")
        return local_path(source).is_file()
    if extension in CATALOG_EXTENSIONS:
        # Spark writes folders with names like x.parquet.
        with translate_storage_errors(source):
            file_system, path = filesystem(source, options)
            is_folder = bool(file_system.isdir(path))
        return not is_folder
    return extension in extensions


def _read_folder(
    source: str, pattern: Pattern, names: tuple[str, ...], options: StorageOptions, extensions: frozenset[str]
) -> tuple[pa.Table, str | None]:
    root = absolute(pattern.root)
    listing = list_files(root, options)
    start = len(_listed_root(root, options))
    relative = pc.utf8_slice_codeunits(listing["path"], start)
    known_extension = rf"(?i)\.(?:{'|'.join(sorted(extensions))}|parquet)$"
    is_kept = pc.match_substring_regex(relative, pattern=known_extension)
    if pattern.glob is not None:
        is_kept = pc.and_(is_kept, pc.match_substring_regex(relative, pattern=glob_to_regex(pattern.glob)))
    # Skips hidden files and folders, and Parquet files of query engines (_delta_log, _temporary).
    is_kept = pc.and_not(is_kept, pc.match_substring_regex(relative, pattern=_PRIVATE))
    listing, relative = listing.filter(is_kept), relative.filter(is_kept)
    is_parquet = pc.ends_with(relative, ".parquet")
    num_parquet = pc.sum(is_parquet).as_py() or 0
    if num_parquet == 0:
        if listing.num_rows == 0:
            raise no_videos_error(source)
        return _listing(root, relative, listing), None
    if num_parquet < listing.num_rows:
        raise SpecError(f"{display_uri(source)}: contains both videos and Parquet files; select one kind with a glob")
    uris = [_to_uri(root, path, options) for path in listing["path"].to_pylist()]
    tables = [_read_file(uri, "parquet", names, options) for uri in uris]
    with _translate_arrow_errors(source):
        table = pa.concat_tables(tables, promote_options="permissive")
    return table, root


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
        ids, uris = pa.array([root.rstrip("/").rpartition("/")[2]]), pa.array([absolute(root)])
    else:
        ids, uris = relative, pc.binary_join_element_wise(pa.scalar(root.rstrip("/")), relative, "/")
    return pa.table({
        "video_id": ids, "uri": uris, "content_id": listing["content_id"], "size_bytes": listing["size_bytes"]
    })  # fmt: skip


def _extension(source: str) -> str:
    name = source.rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else ""


def _read_file(uri: str, extension: str, names: tuple[str, ...], options: StorageOptions) -> pa.Table:
    readers: dict[str, Callable[[Any], pa.Table]] = {
        "parquet": lambda file: pq.read_table(file),
        "csv": lambda file: _read_csv(file, names),
        "jsonl": lambda file: _read_jsonl(file, names),
        "ndjson": lambda file: _read_jsonl(file, names),
    }
    with translate_storage_errors(uri):
        file_system, path = filesystem(uri, options)
        with file_system.open(path, "rb") as file, _translate_arrow_errors(uri):
            table = readers[extension](file)
    return table


@contextmanager
def _translate_arrow_errors(uri: str) -> Iterator[None]:
    """Translate exceptions of Arrow's readers into a SpecError with the address."""
    try:
        yield
    except pa.ArrowException as error:
        message = f"{display_uri(uri)}: cannot be read as a catalog: {summarize_error(error, 300)}"
        raise SpecError(message) from error


def _read_csv(file: Any, names: tuple[str, ...]) -> pa.Table:
    return pyarrow.csv.read_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        # Keys of object stores may contain line breaks.
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        # Only an empty field is null: a film may have the title "NA".
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )


def _read_jsonl(file: Any, names: tuple[str, ...]) -> pa.Table:
    blocks = pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)
    names = tuple(dict.fromkeys(names))
    schema = pa.schema([(name, pa.string()) for name in names])
    try:
        table = pyarrow.json.read_json(
            file, blocks, pyarrow.json.ParseOptions(explicit_schema=schema, newlines_in_values=True)
        )
    except pa.ArrowInvalid:
        # The ids may be JSON numbers, and then all of them are.
        file.seek(0)
        return pyarrow.json.read_json(file, blocks, pyarrow.json.ParseOptions(newlines_in_values=True))
    # Columns of the explicit schema are present even if no line has them.
    absent = [name for name in names if table[name].null_count == table.num_rows]
    return table.drop_columns(absent)
