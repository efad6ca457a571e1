"""Brings one video to a local path, and vouches for which bytes they are.

A decoder wants a file that it can seek in, so remote objects are copied to a scratch folder, one at a time per caller,
and removed whatever happens; local files are read where they lie. This module decodes nothing and looks at no byte.
"""

import os
import random
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from fsspec.asyn import sync

from kvq_batch.domain.errors import FetchError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.io.listing import content_id_of, stat_content_id
from kvq_batch.io.redact import summary
from kvq_batch.io.storage import (
    FOREIGN_ERRORS,
    StorageOptions,
    Trouble,
    display_uri,
    filesystem,
    is_local,
    is_s3,
    protocol,
    trouble,
)

CHUNK_BYTES = 4 * 2**20
MAX_PAUSE_S = 8.0

_CHECKED_TOKENS = ("etag:", "version:", "stat:", "ukey:")
_RETRIED: tuple[Trouble, ...] = ("timeout", "unreachable")
_FOLDER = "kvq-batch-fetch"


@dataclass(frozen=True, slots=True)
class LocalVideo:
    """A video on this machine's disk while the block of `Fetcher.fetch` lasts.

    `content_id` names the bytes that are there, with the cut ("#t=...") that was asked for; `seconds` is what fetching
    took; `stamp` is the state in which a file that is read in place was found, None for a copy.
    """

    path: Path
    size_bytes: int
    seconds: float
    content_id: str
    stamp: str | None = None

    def confirm(self) -> None:
        """Returns if the bytes are still those that were found; to be called after the last read.

        Only a file that is read in place can change under the reader. Raises FetchError "content_changed".
        """
        if self.stamp is None:
            return
        try:
            now = stat_content_id(self.path.stat())
        except OSError as error:
            raise FetchError("content_changed", f"{self.path} went away while it was read") from error
        if now != self.stamp:
            raise FetchError("content_changed", f"{self.path} changed while it was read; the next run takes it anew")


class _Stream(Protocol):
    """An open remote object: its announced size, its token, and its bytes in order."""

    size_bytes: int | None
    content_id: str

    def read(self) -> bytes: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches videos into folders of its own below `scratch`; picklable, and safe in several threads.

    `attempts` counts the first one; pauses between them double from `backoff_s`, with jitter, up to MAX_PAUSE_S.
    """

    options: StorageOptions
    scratch: Path
    max_file_bytes: int
    attempts: int = 4
    backoff_s: float = 0.5
    pause: Callable[[float], None] = time.sleep

    @contextmanager
    def fetch(self, uri: str, content_id: str = UNKNOWN_CONTENT) -> Iterator[LocalVideo]:
        """The video at `uri`, readable at a local path inside the block; a fetched copy is gone after it.

        Where `content_id` is a token of ours, bytes that it does not name are never handed out.

        Raises: FetchError, with the codes missing, forbidden, no_credentials, not_a_file, content_changed, timeout,
        unreachable, unreadable, scratch_full (all of them may pass), and empty_file, file_too_large (permanent).
        """
        started = time.perf_counter()
        wanted, mark, cut = content_id.partition("#t=")
        expected = wanted if wanted.startswith(_CHECKED_TOKENS) else None
        if is_local(uri):
            path, size_bytes, actual = self._in_place(uri, expected)
            named = wanted if _is_foreign(wanted) else actual
            yield LocalVideo(path, size_bytes, time.perf_counter() - started, named + mark + cut, actual)
            return
        path = self._scratch_file(uri)
        try:
            size_bytes, actual = self._with_retries(uri, lambda: self._copy(uri, expected, path))
            named = wanted if _is_foreign(wanted) else actual
            yield LocalVideo(path, size_bytes, time.perf_counter() - started, named + mark + cut)
        finally:
            path.unlink(missing_ok=True)
            # The folder of this process goes with its last file; another thread may have just put one there.
            with suppress(OSError):
                path.parent.rmdir()

    def _in_place(self, uri: str, expected: str | None) -> tuple[Path, int, str]:
        path = Path(filesystem(uri, self.options)[1])
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise FetchError("not_a_file", f"{uri} is a folder or a device; name a video file")
            with path.open("rb"):
                pass
        except FOREIGN_ERRORS as error:
            raise _failure(uri, error) from error
        self._check_size(uri, status.st_size)
        actual = stat_content_id(status)
        if expected and expected != actual:
            raise _changed(uri, expected, actual)
        return path, status.st_size, actual

    def _with_retries(self, uri: str, copy: Callable[[], tuple[int, str]]) -> tuple[int, str]:
        for attempt in range(1, self.attempts + 1):
            try:
                return copy()
            except FOREIGN_ERRORS as error:
                if trouble(error) not in _RETRIED or attempt == self.attempts:
                    raise _failure(uri, error) from error
            except _ShortReadError as error:
                if attempt == self.attempts:
                    raise FetchError("unreachable", f"{display_uri(uri)}: {error}") from error
            self.pause(min(MAX_PAUSE_S, self.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _copy(self, uri: str, expected: str | None, path: Path) -> tuple[int, str]:
        """Size and token of the object, whose bytes are then in `path`."""
        stream = self._open(uri, expected)
        try:
            if expected and expected != stream.content_id:
                raise _changed(uri, expected, stream.content_id)
            if stream.size_bytes is not None:
                self._check_size(uri, stream.size_bytes)
            with _scratch_errors(path.parent):
                target = path.open("wb")
            with target:
                size_bytes = 0
                while chunk := stream.read():
                    size_bytes += len(chunk)
                    self._check_size(uri, size_bytes)
                    with _scratch_errors(path.parent):
                        target.write(chunk)
                        target.flush()
            if stream.size_bytes is not None and size_bytes != stream.size_bytes:
                raise _ShortReadError(f"{size_bytes} of {stream.size_bytes} bytes arrived")
            self._check_size(uri, size_bytes)
            return size_bytes, stream.content_id
        finally:
            stream.close()

    def _open(self, uri: str, expected: str | None) -> _Stream:
        file_system, path = filesystem(uri, self.options)
        if is_s3(uri):
            return _S3Stream(file_system, uri, path, expected)
        return _AnyStream(file_system, uri, path)

    def _check_size(self, uri: str, size_bytes: int) -> None:
        if size_bytes == 0:
            raise FetchError("empty_file", f"{display_uri(uri)} holds no byte", permanent=True)
        if size_bytes > self.max_file_bytes:
            limit = f"limits.max_file_bytes is {self.max_file_bytes}"
            raise FetchError(
                "file_too_large", f"{display_uri(uri)} has {size_bytes} bytes or more; {limit}", permanent=True
            )

    def _scratch_file(self, uri: str) -> Path:
        folder = self.scratch / _FOLDER / str(os.getpid())
        # Some containers are told from others by their name alone: keep a harmless ending.
        ending = re.search(r"\.[A-Za-z0-9]{1,8}$", filesystem(uri, self.options)[1])
        for _ in range(3):
            # Another thread may remove the empty folder in between.
            with suppress(FileNotFoundError), _scratch_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(suffix=ending.group() if ending else "", dir=folder)
                os.close(handle)
                return Path(name)
        raise FetchError("scratch_full", f"{folder} goes away again and again; see decode.scratch")


def _is_foreign(token: str) -> bool:
    """A token of the catalog's own cannot be compared with what the store says, and stays the video's identity."""
    return token != UNKNOWN_CONTENT and not token.startswith(_CHECKED_TOKENS)


def sweep_dead(scratch: Path) -> int:
    """Number of folders removed below `scratch`: those that dead processes of this machine have left."""
    swept = 0
    for folder in (scratch / _FOLDER).glob("[0-9]*"):
        if folder.name.isdigit() and not _is_alive(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)
            swept += 1
    return swept


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _ShortReadError(Exception):
    """Fewer or more bytes arrived than were announced."""


class _S3Stream:
    """One conditional GetObject, read in chunks from the caller's thread, so that its disk never holds up the loop."""

    def __init__(self, file_system: Any, uri: str, path: str, expected: str | None) -> None:
        bucket, _, key = path.partition("/")
        if not key:
            raise FetchError("not_a_file", f"{display_uri(uri)} is a bucket; name a video file")
        arguments = {"Bucket": bucket, "Key": key}
        kind, _, token = (expected or "").partition(":")
        if kind == "etag":
            arguments["IfMatch"] = f'"{token}"'
        elif kind == "version":
            arguments["VersionId"] = token
        self._loop = file_system.loop
        try:
            answer = file_system.call_s3("get_object", **arguments)
        except FileNotFoundError:
            if file_system.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/", MaxKeys=1).get("KeyCount"):
                raise FetchError("not_a_file", f"{display_uri(uri)} is a prefix; name a video file") from None
            raise
        self._body = answer["Body"]
        self.size_bytes: int | None = answer.get("ContentLength")
        self.content_id = expected if expected and kind == "version" else content_id_of(answer)

    def read(self) -> bytes:
        return bytes(sync(self._loop, self._body.read, CHUNK_BYTES))

    def close(self) -> None:
        # An answer that was not read to its end is cut off, in the loop that owns its connection.
        self._loop.call_soon_threadsafe(self._body.close)


class _AnyStream:
    """An object of any other fsspec file system; what it tells of itself is asked again when the last byte is read."""

    def __init__(self, file_system: Any, uri: str, path: str) -> None:
        info = file_system.info(path)
        if info.get("type") == "directory":
            raise FetchError("not_a_file", f"{display_uri(uri)} is a folder; name a video file")
        self._file_system, self._uri, self._path = file_system, uri, path
        self.size_bytes: int | None = info.get("size")
        self.content_id = content_id_of(info)
        # One answer read to its end: in blocks, a server that knows no ranges cannot be read (fsspec: ValueError).
        whole = {"block_size": 0} if protocol(uri) in ("http", "https") else {}
        self._file: BinaryIO = file_system.open(path, "rb", **whole)

    def read(self) -> bytes:
        chunk = self._file.read(CHUNK_BYTES)
        if not chunk:
            now = content_id_of(self._file_system.info(self._path))
            if now != self.content_id:
                raise _changed(self._uri, self.content_id, now)
        return chunk

    def close(self) -> None:
        self._file.close()


@contextmanager
def _scratch_errors(folder: Path) -> Iterator[None]:
    """Keeps errors of our own disk apart from those of the store; a missing folder is left to the caller."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror}; see decode.scratch"
        raise FetchError("scratch_full", message) from error


def _failure(uri: str, error: BaseException) -> FetchError:
    """What a foreign exception means for this one video."""
    kind = trouble(error)
    if kind == "changed":
        return FetchError("content_changed", f"{display_uri(uri)} is not what the plan saw; the next run takes it anew")
    code = {"no_bucket": "missing", "other": "unreadable"}.get(kind, kind)
    return FetchError(code, f"{display_uri(uri)}: {summary(error, 300)}")


def _changed(uri: str, expected: str, actual: str) -> FetchError:
    return FetchError("content_changed", f"{display_uri(uri)} is {actual}, the plan saw {expected}; take it anew")
