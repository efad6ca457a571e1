"""Listings of folders, prefixes and globs, with sizes and content ids, at a thousand objects per request.

A content id is a typed change token. An ETag takes precedence over a version, because a listing reports only the ETag,
and a video must have the same id whether it was listed or requested on its own.
"""

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.storage.errors import RetryPolicy, known_errors
from kvq_batch.storage.http import http_info
from kvq_batch.storage.options import (
    StorageOptions,
    display_uri,
    filesystem,
    is_http,
    is_local,
    is_s3,
    local_path,
    translate_storage_errors,
)

VIDEO_EXTENSIONS = frozenset(
    [
        *("264", "265", "266", "3g2", "3gp", "3gpp", "amv", "asf", "av1", "avc", "avi", "dif", "divx", "dv", "evo"),
        *("f4v", "flv", "gxf", "h261", "h263", "h264", "h265", "h266", "hevc", "ivf", "m1v", "m2p", "m2t", "m2ts"),
        *("m2v", "m4v", "mjpeg", "mjpg", "mk3d", "mkv", "mov", "mp4", "mp4v", "mpe", "mpeg", "mpg", "mpv", "mts"),
        *("mxf", "nsv", "nut", "obu", "ogm", "ogv", "qt", "rm", "rmvb", "tod", "trp", "ts", "vob", "vc1", "vvc"),
        *("webm", "wmv", "wtv", "y4m"),
    ]
)

_GLOB = re.compile(r"(?P<wildcard>[*?\[])")
_HTTP_GLOB = re.compile(r"^[^?]*?(?P<wildcard>[*\[])")
_BATCH_ROWS = 10_000
_MAX_RETRY_AFTER_S = 10.0
_NUM_EXAMPLES = 3
_NUM_ENDINGS = 8
_OTHER_ENDINGS = "files with other endings"

LISTING_SCHEMA = pa.schema([("path", pa.string()), ("content_id", pa.string()), ("size_bytes", pa.int64())])
"""`path` is absolute for local files, and the path in the fsspec file system ("bucket/key") for others."""


def stat_content_id(status: os.stat_result) -> str:
    """Return `stat:<size>-<mtime in ns>` of a local file."""
    return f"stat:{status.st_size}-{status.st_mtime_ns}"


def content_id_of(info: Mapping[str, Any]) -> str:
    """Return the content id in the metadata that an fsspec file system reports; UNKNOWN_CONTENT if it has none.

    `etag:` without quotes; otherwise `version:`; otherwise `ukey:`, a digest of the size and any checksums and times.
    """
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return f"etag:{str(etag).removeprefix('W/').strip(chr(34))}"
    version = info.get("VersionId") or info.get("generation")
    if version and version != "null":
        return f"version:{version}"
    found = [f"{name}={info[name]}" for name in _CHANGE_FIELDS if info.get(name)]
    if not found:
        return UNKNOWN_CONTENT
    text = "\n".join([f"size={info.get('size')}", *found])
    return f"ukey:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


_CHANGE_FIELDS = (
    "Content-MD5", "content-md5", "md5", "md5Hash", "checksum", "Digest", "mtime", "LastModified", "Last-Modified",
    "last_modified", "updated", "modified", "created",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pattern:
    """A source in two parts: the folder or prefix to list, and the glob for the rest of a path (None: everything)."""

    root: str
    glob: str | None


def split_glob(source: str) -> Pattern:
    """Split a glob at its first wildcard. An existing local file or folder with such a name is not a glob.

    In http addresses, '?' begins a query.
    """
    wildcard = (_HTTP_GLOB if is_http(source) else _GLOB).search(source)
    if wildcard is None:
        return Pattern(source, None)
    with translate_storage_errors(source):
        if is_local(source) and local_path(source).exists():
            return Pattern(source, None)
    fixed = source[: wildcard.start("wildcard")]
    root = fixed.rpartition("/")[0]
    return Pattern(root or ("/" if fixed.startswith("/") else "."), source[len(root) :].lstrip("/"))


def glob_to_regex(glob: str) -> str:
    """Return the regular expression (for re and RE2) that matches the whole paths of `glob`.

    `*` and `?` match within a folder, `**/` matches any number of folders, `[...]` a character in a set and `[!...]`
    one that is not in it.
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


class LeftOut:
    """What a listing leaves out and why: counts with the first examples, for one line of a log."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        return "; ".join(
            f"{num} {reason} ({', '.join(self._examples[reason])})" for reason, num in self._counts.items()
        )

    def add(self, reason: str, name: str) -> None:
        """Count one file or folder that is left out for `reason`, in the plural."""
        self._counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < _NUM_EXAMPLES:
            examples.append(name if name.isprintable() else ascii(name))
        elif len(examples) == _NUM_EXAMPLES:
            examples.append("...")

    def add_endings(self, names: pa.ChunkedArray) -> None:
        """Count files that are left out because of the endings of their names; the examples are the endings."""
        endings = pc.struct_field(pc.extract_regex(names, pattern=r"\.(?P<ending>[^./\s]{1,10})$"), "ending")
        endings = pc.fill_null(pc.utf8_lower(endings), "")
        counts = sorted(pc.value_counts(endings).to_pylist(), key=lambda count: (-count["counts"], count["values"]))
        if counts:
            self._counts[_OTHER_ENDINGS] += len(names)
            examples = [
                f"{'.' + count['values'] if count['values'] else 'none'}: {count['counts']}" for count in counts
            ]
            self._examples[_OTHER_ENDINGS] = examples[:_NUM_ENDINGS] + ["..."] * (len(examples) > _NUM_ENDINGS)


def list_files(root: str, options: StorageOptions, left_out: LeftOut | None = None) -> pa.Table:
    """Return every file below a folder or prefix in LISTING_SCHEMA, sorted by path.

    What cannot be listed is added to `left_out`: linked folders (they may lead back to themselves), folders and files
    that cannot be read, and names that no table can store.

    Raises:
        SpecError: the store cannot be listed, or a local folder does not exist.
    """
    left_out = LeftOut() if left_out is None else left_out
    with translate_storage_errors(root):
        found = _local_files(root, left_out) if is_local(root) else _remote_files(root, options)
        table = to_listing_table(found)
    assert table is not None
    return table.sort_by("path")


def to_listing_table(files: Iterator[tuple[str, str, int | None]], max_files: int | None = None) -> pa.Table | None:
    """Return `files` as a table in LISTING_SCHEMA, unsorted; None if there are more than `max_files`."""
    batches, num_rows = [], 0
    while rows := list(islice(files, _BATCH_ROWS)):
        num_rows += len(rows)
        if max_files is not None and num_rows > max_files:
            return None
        columns = list(zip(*rows, strict=True))
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTING_SCHEMA, strict=True)]
        batches.append(pa.record_batch(arrays, schema=LISTING_SCHEMA))
    return pa.Table.from_batches(batches, LISTING_SCHEMA)


def _local_files(root: str, left_out: LeftOut) -> Iterator[tuple[str, str, int]]:
    top = str(local_path(root))
    if not Path(top).is_dir():
        raise SpecError(f"{root}: no such folder; correct the address")
    folders, prefix = [top], f"{top.rstrip('/')}/"
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            # Removed meanwhile.
            continue
        except OSError as error:
            if folder == top:
                raise
            left_out.add(f"folders that cannot be read: {error.strerror}", folder.removeprefix(prefix))
            continue
        for entry in entries:
            name = entry.path.removeprefix(prefix)
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                status = entry.stat()
            except FileNotFoundError:
                # A file that was removed meanwhile is not worth a message.
                if entry.is_symlink():
                    left_out.add("broken links", name)
                continue
            except OSError as error:
                left_out.add(f"files that cannot be read: {error.strerror}", name)
                continue
            if stat.S_ISDIR(status.st_mode):
                left_out.add("linked folders", name)
            elif not stat.S_ISREG(status.st_mode):
                left_out.add("files that are not regular files", name)
            elif not _is_text(entry.path):
                left_out.add("files whose names are not UTF-8; rename them", name)
            else:
                yield entry.path, stat_content_id(status), status.st_size


def _is_text(path: str) -> bool:
    """Return whether tables can store the path. Bytes that are not UTF-8 are surrogates in it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _remote_files(root: str, options: StorageOptions) -> Iterator[tuple[str, str, int | None]]:
    file_system, path = filesystem(root, options)
    if is_s3(root):
        yield from s3_files(file_system, path)
        return
    with known_errors():
        found = file_system.find(path, detail=True)
    for name, info in found.items():
        yield str(name), content_id_of(info), info.get("size")


def s3_files(file_system: Any, path: str) -> Iterator[tuple[str, str, int]]:
    """Yield path, content id and size, page by page: `find` of s3fs holds a dictionary of every object in memory."""
    bucket, _, prefix = path.partition("/")
    arguments = {"Bucket": bucket, "Prefix": prefix and f"{prefix}/"}
    while True:
        page = file_system.call_s3("list_objects_v2", **arguments)
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                yield f"{bucket}/{item['Key']}", content_id_of(item), item["Size"]
        if not page.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = page["NextContinuationToken"]


def no_videos_error(source: str, left_out: LeftOut) -> SpecError:
    """Return the error for a listing without a video."""
    known = " ".join(sorted(VIDEO_EXTENSIONS))
    note = f"left out: {left_out}; " if left_out else ""
    return SpecError(f"{display_uri(source)}: no video files found; {note}known extensions are: {known}")


def stat_object(uri: str, options: StorageOptions) -> tuple[str, int | None]:
    """Return content id and size of one object, with one request and its retries.

    Raises:
        SpecError: the address cannot be opened.
        OSError: or another exception of the store (`errors.foreign_errors`).
    """
    if is_local(uri):
        with known_errors():
            status = os.stat(local_path(uri))
        return stat_content_id(status), status.st_size
    file_system, path = filesystem(uri, options)
    if is_s3(uri):
        bucket, _, key = path.partition("/")
        # Not `info` of s3fs: for a missing object it lists the prefix, to find out whether it is a folder.
        response = file_system.call_s3("head_object", Bucket=bucket, Key=key)
        return content_id_of(response), response["ContentLength"]
    if is_http(uri):
        # botocore retries on its own, aiohttp does not. Planning must not wait long for a server that asks it to.
        policy = RetryPolicy(options.attempts, max_retry_after_s=_MAX_RETRY_AFTER_S)
        info = policy.run(lambda _: http_info(file_system, path))
    else:
        with known_errors():
            info = file_system.info(path)
    return content_id_of(info), info.get("size")


def list_file(uri: str, options: StorageOptions) -> pa.Table:
    """Return one object in LISTING_SCHEMA.

    Raises:
        SpecError: the object does not exist or cannot be read.
    """
    with translate_storage_errors(uri):
        content_id, size_bytes = stat_object(uri, options)
    return pa.table([[filesystem(uri, options)[1]], [content_id], [size_bytes]], schema=LISTING_SCHEMA)
