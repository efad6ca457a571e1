"""What lies in a folder, prefix or glob, and by which token its bytes are known: one listing, never N questions.

A listing tells names, sizes and change tokens of a thousand objects per request. This module opens no object.

Content ids: an entity tag comes before a version, because a listing tells the one and not the other, and a video must
have the same id whichever way it was asked.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.storage.options import (
    StorageOptions,
    display_uri,
    filesystem,
    is_local,
    is_s3,
    local_path,
    translate_storage_errors,
)

VIDEO_EXTENSIONS = frozenset(
    [
        *("3g2", "3gp", "asf", "avi", "f4v", "flv", "h264", "h265", "hevc", "ivf", "m2ts", "m2v", "m4v", "mjpeg"),
        *("mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "obu", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
    ]
)

_GLOB = re.compile(r"[*?\[]")
_BATCH_ROWS = 10_000

LISTING_SCHEMA = pa.schema([("path", pa.string()), ("content_id", pa.string()), ("size_bytes", pa.int64())])
"""`path` is absolute for local files, and "bucket/key" (whatever the file system calls it) for others."""


def stat_content_id(status: os.stat_result) -> str:
    """`stat:<size>-<mtime in ns>` of a local file."""
    return f"stat:{status.st_size}-{status.st_mtime_ns}"


def content_id_of(info: Mapping[str, Any]) -> str:
    """The typed change token in what an fsspec file system tells of an object; UNKNOWN_CONTENT where it tells none.

    `etag:` without quotes; else `version:`; else `ukey:`, a digest of size and whatever checksum or time there is.
    """
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return f"etag:{str(etag).removeprefix('W/').strip(chr(34))}"
    version = info.get("VersionId") or info.get("generation")
    if version and version != "null":
        return f"version:{version}"
    told = [f"{name}={info[name]}" for name in _TELLING if info.get(name)]
    if not told:
        return UNKNOWN_CONTENT
    text = "\n".join([f"size={info.get('size')}", *told])
    return f"ukey:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


_TELLING = (
    "Content-MD5", "content-md5", "md5", "md5Hash", "checksum", "Digest", "mtime", "LastModified", "Last-Modified",
    "last_modified", "updated", "modified", "created",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pattern:
    """A source cut in two: the folder or prefix to list, and what the rest of a path must match (None: anything)."""

    root: str
    glob: str | None


def split_glob(source: str) -> Pattern:
    """The fixed part of a glob and its rest. A local file or folder that bears such a name is taken as it is."""
    if not _GLOB.search(source) or (is_local(source) and local_path(source).exists()):
        return Pattern(source, None)
    fixed = source[: _GLOB.search(source).start()]  # type: ignore[union-attr]
    root = fixed.rpartition("/")[0]
    return Pattern(root or ("/" if fixed.startswith("/") else "."), source[len(root) :].lstrip("/"))


def glob_expression(glob: str) -> str:
    """The regular expression (for re and RE2) of whole paths that `glob` means.

    `*` and `?` stay within a folder, `**/` is any number of folders, `[...]` a character of a set, `[!...]` none.
    """
    parts: list[str] = []
    position = 0
    while position < len(glob):
        character = glob[position]
        closing = glob.find("]", position + 2) if character == "[" else -1
        if glob.startswith("**/", position):
            parts.append("(?:.*/)?")
            position += 2
        elif glob.startswith("**", position):
            parts.append(".*")
            position += 1
        elif character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif closing > 0:
            members = glob[position + 1 : closing].replace("\\", "\\\\")
            parts.append(f"[^{members[1:]}]" if members.startswith("!") else f"[{members}]")
            position = closing
        else:
            parts.append(re.escape(character))
        position += 1
    return f"(?s)^(?:{''.join(parts)})$"


def list_below(root: str, options: StorageOptions) -> pa.Table:
    """Every file below a folder or prefix, in LISTING_SCHEMA, sorted by path; empty where there is none.

    Raises SpecError where the store refuses; a local folder that does not exist is refused too.
    """
    with translate_storage_errors(root):
        table = tabulate(_local_files(root) if is_local(root) else _remote_files(root, options))
    assert table is not None
    return table.sort_by("path")


def tabulate(files: Iterator[tuple[str, str, int | None]], most: int | None = None) -> pa.Table | None:
    """`files` as a table in LISTING_SCHEMA, as they come; None where there are more than `most`."""
    batches, num_rows = [], 0
    while rows := list(islice(files, _BATCH_ROWS)):
        num_rows += len(rows)
        if most is not None and num_rows > most:
            return None
        columns = list(zip(*rows, strict=True))
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTING_SCHEMA, strict=True)]
        batches.append(pa.record_batch(arrays, schema=LISTING_SCHEMA))
    return pa.Table.from_batches(batches, LISTING_SCHEMA)


def _local_files(root: str) -> Iterator[tuple[str, str, int]]:
    folders = [str(local_path(root))]
    if not Path(folders[0]).is_dir():
        raise SpecError(f"{root}: there is no such folder; correct the address")
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    # A link to nothing, or a file that went away meanwhile.
                    continue
                if not entry.path.isprintable():
                    _check_text(entry.path)
                if stat.S_ISREG(status.st_mode):
                    yield entry.path, stat_content_id(status), status.st_size


def _check_text(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise SpecError(f"{path!r}: the name is not UTF-8, which tables cannot hold; rename the file") from error


def _remote_files(root: str, options: StorageOptions) -> Iterator[tuple[str, str, int | None]]:
    file_system, path = filesystem(root, options)
    if is_s3(root):
        yield from s3_files(file_system, path)
        return
    for name, info in file_system.find(path, detail=True).items():
        yield str(name), content_id_of(info), info.get("size")


def s3_files(file_system: Any, path: str) -> Iterator[tuple[str, str, int]]:
    """Page by page: s3fs' own `find` holds a dictionary of every object of the prefix at once."""
    bucket, _, prefix = path.partition("/")
    arguments = {"Bucket": bucket, "Prefix": prefix and f"{prefix}/"}
    while True:
        answer = file_system.call_s3("list_objects_v2", **arguments)
        for item in answer.get("Contents", []):
            if not item["Key"].endswith("/"):
                yield f"{bucket}/{item['Key']}", content_id_of(item), item["Size"]
        if not answer.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = answer["NextContinuationToken"]


def no_videos(source: str) -> SpecError:
    """The refusal of a listing in which no video is."""
    known = " ".join(sorted(VIDEO_EXTENSIONS))
    return SpecError(f"{display_uri(source)}: no video file there; known extensions are: {known}")


def object_facts(uri: str, options: StorageOptions) -> tuple[str, int | None]:
    """Content id and size of one object, by one request. Raises what the store raises (`storage.FOREIGN_ERRORS`)."""
    if is_local(uri):
        status = os.stat(local_path(uri))
        return stat_content_id(status), status.st_size
    file_system, path = filesystem(uri, options)
    if is_s3(uri):
        bucket, _, key = path.partition("/")
        # Not s3fs' own `info`: that lists, where there is no such object, to find out whether it is a folder.
        answer = file_system.call_s3("head_object", Bucket=bucket, Key=key)
        return content_id_of(answer), answer["ContentLength"]
    info = file_system.info(path)
    return content_id_of(info), info.get("size")


def list_file(uri: str, options: StorageOptions) -> pa.Table:
    """One object in LISTING_SCHEMA. Raises SpecError where there is none, or the store refuses."""
    with translate_storage_errors(uri):
        content_id, size_bytes = object_facts(uri, options)
    return pa.table([[filesystem(uri, options)[1]], [content_id], [size_bytes]], schema=LISTING_SCHEMA)
