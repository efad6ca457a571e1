"""Fetches one video to a local path and verifies its content id.

Decoders need a seekable file, so a remote object is copied to a scratch folder, one at a time per caller, and the copy
is always removed. Local files are read in place.
"""

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvq_batch.domain.errors import FetchError, SpecError, TransientError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.storage.errors import RetryPolicy, classify_error, explain_error, foreign_errors, known_errors
from kvq_batch.storage.listing import stat_content_id, stat_object
from kvq_batch.storage.objects import ObjectStream, content_changed_error, open_object
from kvq_batch.storage.options import StorageOptions, display_uri, is_http, is_local, local_path

_CHECKED_TOKENS = ("etag:", "version:", "stat:", "ukey:")


@dataclass(frozen=True, slots=True)
class LocalVideo:
    """A video on the local disk, inside the block of `Fetcher.fetch`.

    `content_id` identifies the bytes, with the requested segment ("#t=..."). Fetching took `seconds` and `attempts`.
    `initial_stat` is the `stat:` content id of a file that is read in place when it was opened; None for a copy.
    """

    path: Path
    size_bytes: int
    seconds: float
    content_id: str
    attempts: int = 1
    initial_stat: str | None = None

    def check_unchanged(self) -> None:
        """Check, after the last read, that the file has not changed. Only a file that is read in place can change.

        Raises:
            FetchError: `content_changed`.
        """
        if self.initial_stat is None:
            return
        try:
            now = stat_content_id(self.path.stat())
        except OSError as error:
            raise FetchError("content_changed", f"{self.path} was removed while it was read") from error
        if now != self.initial_stat:
            raise FetchError("content_changed", f"{self.path} changed while it was read; the next run scores it again")


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches videos into its own folders below `scratch`; picklable and thread-safe.

    Transient errors are retried with `retry_policy`. A transfer fails if, after `options.read_timeout_s`, its average
    speed is below `min_bytes_per_s`.
    """

    options: StorageOptions
    scratch: Path
    max_file_bytes: int
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    min_bytes_per_s: int = 16 * 2**10

    @contextmanager
    def fetch(self, uri: str, content_id: str = UNKNOWN_CONTENT, size_bytes: int | None = None) -> Iterator[LocalVideo]:
        """Yield the video at `uri` at a local path. A copy is removed at the end of the block.

        If `content_id` is a token that we can check, bytes with another one are never returned. A length other than
        `size_bytes` (if given) is accepted only if the store confirms it.

        Raises:
            FetchError: with the code missing, bad_address, forbidden, credentials_expired, no_credentials, not_a_file,
                content_changed, timeout, too_slow, unreachable, wrong_length, damaged, unreadable or scratch_full (all
                transient), or empty_file or file_too_large (permanent).
        """
        started = time.perf_counter()
        planned, mark, segment = content_id.partition("#t=")
        expected = planned if planned.startswith(_CHECKED_TOKENS) else None
        if is_local(uri):
            path, found_bytes, actual = self._in_place(uri, expected)
            named = (planned if _is_foreign(planned) else actual) + mark + segment
            yield LocalVideo(path, found_bytes, time.perf_counter() - started, named, initial_stat=actual)
            return
        path = self._scratch_file(uri)
        try:
            found_bytes, actual, attempts = self._copy_with_retries(uri, expected, size_bytes, path)
            named = (planned if _is_foreign(planned) else actual) + mark + segment
            yield LocalVideo(path, found_bytes, time.perf_counter() - started, named, attempts)
        finally:
            path.unlink(missing_ok=True)
            # Fails, as intended, while another thread has a file in the folder of this process.
            with suppress(OSError):
                path.parent.rmdir()

    def _in_place(self, uri: str, expected: str | None) -> tuple[Path, int, str]:
        try:
            with known_errors():
                path = local_path(uri)
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    raise FetchError("not_a_file", f"{uri} is a folder or a device; use the address of a video file")
                with path.open("rb"):
                    pass
        except foreign_errors() as error:
            raise _failure(uri, error) from error
        self._check_size(uri, status.st_size)
        actual = stat_content_id(status)
        if expected and expected != actual:
            raise content_changed_error(uri, expected, actual)
        return path, status.st_size, actual

    def _copy_with_retries(
        self, uri: str, expected: str | None, size_bytes: int | None, path: Path
    ) -> tuple[int, str, int]:
        """Copy the object to `path`. Returns its size and content id, and the number of attempts."""
        attempts = 0

        def copy(attempt: int) -> tuple[int, str, int]:
            nonlocal attempts
            attempts = attempt
            return *self._copy(uri, expected, size_bytes, path), attempt

        try:
            return self.retry_policy.run(copy)
        except foreign_errors() as error:
            raise _failure(uri, error, attempts) from error
        except _BadResponseError as error:
            raise FetchError(error.code, f"{display_uri(uri)}: {error.text}{_after(attempts)}") from error
        except SpecError as error:
            raise FetchError("bad_address", str(error)) from error

    def _copy(self, uri: str, expected: str | None, size_bytes: int | None, path: Path) -> tuple[int, str]:
        # One attempt per request: `retry_policy` retries and counts.
        options = replace(self.options, attempts=1)
        stream = open_object(uri, options, expected)
        try:
            if expected and expected != stream.content_id:
                raise content_changed_error(uri, expected, stream.content_id)
            if stream.size_bytes:
                self._check_size(uri, stream.size_bytes)
            found_bytes = self._save(uri, stream, path)
        finally:
            stream.close()
        if stream.size_bytes is not None and found_bytes != stream.size_bytes:
            raise _BadResponseError("unreachable", f"{found_bytes} of {stream.size_bytes} bytes arrived")
        if size_bytes is not None and found_bytes != size_bytes:
            # The catalog may be wrong, and so may the response: check with a separate request.
            stored_bytes = stat_object(uri, options)[1]
            if stored_bytes is not None and stored_bytes != found_bytes:
                raise _BadResponseError("wrong_length", f"the store sent {found_bytes} of {stored_bytes} bytes")
        self._check_size(uri, found_bytes)
        return found_bytes, stream.content_id

    def _save(self, uri: str, stream: ObjectStream, path: Path) -> int:
        """Write the stream to `path` and return the number of bytes."""
        with _scratch_errors(path.parent):
            target = path.open("wb")
        with target:
            found_bytes, started = 0, time.monotonic()
            while chunk := stream.read():
                found_bytes += len(chunk)
                self._check_size(uri, found_bytes)
                with _scratch_errors(path.parent):
                    target.write(chunk)
                    target.flush()
                seconds = time.monotonic() - started
                if seconds > self.options.read_timeout_s and found_bytes < seconds * self.min_bytes_per_s:
                    raise _BadResponseError("too_slow", f"only {found_bytes} bytes arrived in {seconds:.0f} s")
        return found_bytes

    def _check_size(self, uri: str, size_bytes: int) -> None:
        if size_bytes == 0:
            raise FetchError("empty_file", f"{display_uri(uri)} is empty", permanent=True)
        if size_bytes > self.max_file_bytes:
            limit = f"limits.max_file_bytes is {self.max_file_bytes}"
            raise FetchError(
                "file_too_large", f"{display_uri(uri)} has {size_bytes} bytes or more; {limit}", permanent=True
            )

    def _scratch_file(self, uri: str) -> Path:
        own = _user_folder(self.scratch)
        folder = own / str(os.getpid())
        # Some containers are recognized by their extension alone: keep a harmless one.
        extension = re.search(r"\.[A-Za-z0-9]{1,8}$", uri.partition("?")[0] if is_http(uri) else uri)
        for _ in range(3):
            # Another thread may remove the empty folder in between.
            with suppress(FileNotFoundError), _scratch_errors(folder):
                # Several users may share the scratch folder.
                own.mkdir(0o700, parents=True, exist_ok=True)
                if own.lstat().st_uid != os.getuid():
                    raise FetchError("scratch_full", f"{own} belongs to another user; set decode.scratch")
                folder.mkdir(0o700, exist_ok=True)
                handle, name = tempfile.mkstemp(suffix=extension.group() if extension else "", dir=folder)
                os.close(handle)
                return Path(name)
        raise FetchError("scratch_full", f"{folder} is removed repeatedly by another process; set decode.scratch")


class _BadResponseError(TransientError):
    """An incomplete or wrong response; `code` is the code of the FetchError after the last attempt."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return self.text


def _is_foreign(token: str) -> bool:
    """Return whether `token` is the catalog's own: it cannot be checked with the store, and is kept as it is."""
    return token != UNKNOWN_CONTENT and not token.startswith(_CHECKED_TOKENS)


def _user_folder(scratch: Path) -> Path:
    return scratch / f"kvq-batch-fetch-{os.getuid()}"


def remove_stale_folders(scratch: Path) -> int:
    """Remove the folders below `scratch` that crashed processes of this machine left. Returns their number."""
    num_removed = 0
    for folder in _user_folder(scratch).glob("[0-9]*"):
        if folder.name.isdigit() and not _is_alive(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)
            num_removed += 1
    return num_removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _scratch_errors(folder: Path) -> Iterator[None]:
    """Translate errors of the local disk, so that they are not taken for errors of the store.

    A missing folder is left to the caller.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        message = f"cannot write to {folder}: {error.strerror}; free some space or set decode.scratch"
        raise FetchError("scratch_full", message) from error


def _failure(uri: str, error: BaseException, attempts: int = 1) -> FetchError:
    """Return the FetchError of one video for a foreign exception."""
    kind = classify_error(error)
    if kind == "changed":
        return FetchError(
            "content_changed", f"{display_uri(uri)} changed since it was planned; the next run scores it again"
        )
    code = {"no_bucket": "missing", "other": "unreadable", "full": "unreadable"}.get(kind, kind)
    return FetchError(code, f"{display_uri(uri)}: {explain_error(error, uri, _after(attempts))}")


def _after(attempts: int) -> str:
    return f", {attempts} attempts" if attempts > 1 else ""
