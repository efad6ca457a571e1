"""The raw rows of a catalog, from whatever it is: a Parquet, CSV or JSONL file, or files that lie below a folder.

Types are kept as they are, except that texts which name things are never read as numbers or dates: "007" stays "007".
This module checks no row; `catalog` does.
"""

from collections.abc import Callable
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
    glob_expression,
    list_below,
    list_file,
    no_videos,
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
from kvq_batch.storage.redact import summary

CATALOG_EXTENSIONS = ("parquet", "csv", "jsonl", "ndjson")
_BLOCK_BYTES = 16 * 2**20
_PRIVATE = r"(?s)(?:^|/)\.|(?:^|/)_[^/]*(?:/.*)?\.parquet$"


def read_source(
    source: str, names: tuple[str, ...], options: StorageOptions, extensions: frozenset[str] = VIDEO_EXTENSIONS
) -> tuple[pa.Table, str | None]:
    """All rows and columns of `source`, and the folder at which its relative addresses start (None for a listing).

    `names` are the columns to be read as text; `extensions` are those of the files that a listing takes. A
    listing has the columns video_id, uri, content_id and size_bytes.
    Raises SpecError for what is missing, unreadable, of unknown kind, or without a video.
    """
    pattern = split_glob(source)
    extension = _extension(source)
    if pattern.glob is None and _is_file(source, extension, extensions, options):
        if extension in extensions:
            return _listing(source, "", list_file(source, options)), None
        if extension not in CATALOG_EXTENSIONS:
            raise SpecError(
                f"{display_uri(source)}: a catalog ends in {', '.join(f'.{name}' for name in CATALOG_EXTENSIONS)}, "
                f"or is a folder, prefix or glob of videos; rename it or name another"
            )
        return _read_file(source, extension, names, options), absolute(source).rpartition("/")[0]
    return _read_folder(source, pattern, names, options, extensions)


def _is_file(source: str, extension: str, extensions: frozenset[str], options: StorageOptions) -> bool:
    if is_local(source):
        if not local_path(source).exists():
            raise SpecError(f"{source}: there is no such file or folder; correct the address")
        return local_path(source).is_file()
    if extension in CATALOG_EXTENSIONS:
        # Spark writes folders that are called x.parquet.
        with translate_storage_errors(source):
            file_system, path = filesystem(source, options)
            is_folder = bool(file_system.isdir(path))
        return not is_folder
    return extension in extensions


def _read_folder(
    source: str, pattern: Pattern, names: tuple[str, ...], options: StorageOptions, extensions: frozenset[str]
) -> tuple[pa.Table, str | None]:
    root = absolute(pattern.root)
    listing = list_below(root, options)
    start = len(_listed_root(root, options))
    relative = pc.utf8_slice_codeunits(listing["path"], start)
    kept = rf"(?i)\.(?:{'|'.join(sorted(extensions))}|parquet)$"
    is_kept = pc.match_substring_regex(relative, pattern=kept)
    if pattern.glob is not None:
        is_kept = pc.and_(is_kept, pc.match_substring_regex(relative, pattern=glob_expression(pattern.glob)))
    # Hidden files and folders are nobody's videos; those with '_' are the engines' own (_delta_log, _temporary).
    is_kept = pc.and_not(is_kept, pc.match_substring_regex(relative, pattern=_PRIVATE))
    listing, relative = listing.filter(is_kept), relative.filter(is_kept)
    is_part = pc.ends_with(relative, ".parquet")
    num_parts = pc.sum(is_part).as_py() or 0
    if num_parts == 0:
        if listing.num_rows == 0:
            raise no_videos(source)
        return _listing(root, relative, listing), None
    if num_parts < listing.num_rows:
        raise SpecError(f"{display_uri(source)}: holds both videos and Parquet files; name one kind with a glob")
    parts = [_address(root, path, options) for path in listing["path"].to_pylist()]
    tables = [_read_file(part, "parquet", names, options) for part in parts]
    with _unreadable(source):
        table = pa.concat_tables(tables, promote_options="permissive")
    return table, root


def _listed_root(root: str, options: StorageOptions) -> str:
    """What all paths of a listing of `root` begin with, the slash included."""
    path = filesystem(root, options)[1].rstrip("/")
    return f"{path}/"


def _address(root: str, path: str, options: StorageOptions) -> str:
    if is_local(root):
        return path
    return f"s3://{path}" if is_s3(root) else str(filesystem(root, options)[0].unstrip_protocol(path))


def _listing(root: str, relative: Any, listing: pa.Table) -> pa.Table:
    """A catalog of what was listed; `relative` "" stands for a source that is itself the only video."""
    if isinstance(relative, str):
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
        with file_system.open(path, "rb") as file, _unreadable(uri):
            table = readers[extension](file)
    return table


class _unreadable:
    """Turns Arrow's complaint about a file into a SpecError that names it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pa.ArrowException):
            name = display_uri(self._uri)
            raise SpecError(f"{name}: cannot be read as a catalog: {summary(error, 300)}") from error


def _read_csv(file: Any, names: tuple[str, ...]) -> pa.Table:
    return pyarrow.csv.read_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        # Keys of object stores may hold line breaks.
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        # Only nothing is null: a film may be called "NA".
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
        # Names may be numbers there, and then all of them are.
        file.seek(0)
        return pyarrow.json.read_json(file, blocks, pyarrow.json.ParseOptions(newlines_in_values=True))
    # A column of the explicit schema is there even if no line has it.
    absent = [name for name in names if table[name].null_count == table.num_rows]
    return table.drop_columns(absent)
