"""Brings one video to a local path, and vouches for which bytes they are.

A decoder wants a file that it can seek in, so remote objects are copied to a scratch folder, one at a time per caller,
and removed whatever happens; local files are read where they lie. This module decodes nothing and looks at no byte.
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

from kvq_batch.domain.errors import FetchError, TransientError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.storage.errors import FOREIGN_ERRORS, HINTS, classify_error, told
from kvq_batch.storage.listing import object_facts, stat_content_id
from kvq_batch.storage.objects import ObjectStream, changed, open_object
from kvq_batch.storage.options import StorageOptions, display_uri, filesystem, is_local
from kvq_batch.storage.retry import RetryPolicy

_CHECKED_TOKENS = ("etag:", "version:", "stat:", "ukey:")
_FOLDER = "kvq-batch-fetch"


@dataclass(frozen=True, slots=True)
class LocalVideo:
    """A video on this machine's disk while the block of `Fetcher.fetch` lasts.

    `content_id` names the bytes that are there, with the cut ("#t=...") that was asked for; `seconds` is what fetching
    took, in so many `attempts`; `stamp` is the state in which a file that is read in place was found, None for a copy.
    """

    path: Path
    size_bytes: int
    seconds: float
    content_id: str
    attempts: int = 1
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


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches videos into folders of its own below `scratch`; picklable, and safe in several threads.

    What may pass is tried again with `patience`. An object whose bytes come more slowly than `least_bytes_per_s`, on
    average since `options.read_timeout_s`, is given up like one that does not come at all.
    """

    options: StorageOptions
    scratch: Path
    max_file_bytes: int
    patience: RetryPolicy = field(default_factory=RetryPolicy)
    least_bytes_per_s: int = 16 * 2**10

    @contextmanager
    def fetch(self, uri: str, content_id: str = UNKNOWN_CONTENT, size_bytes: int | None = None) -> Iterator[LocalVideo]:
        """The video at `uri`, readable at a local path inside the block; a fetched copy is gone after it.

        Where `content_id` is a token of ours, bytes that it does not name are never handed out. A length other than
        `size_bytes`, where given, is believed only if the store confirms it.

        Raises: FetchError, with the codes missing, forbidden, credentials_expired, no_credentials, not_a_file,
        content_changed, timeout, too_slow, unreachable, wrong_length, damaged, unreadable, scratch_full (all of them
        may pass), and empty_file, file_too_large (permanent).
        """
        started = time.perf_counter()
        wanted, mark, cut = content_id.partition("#t=")
        expected = wanted if wanted.startswith(_CHECKED_TOKENS) else None
        if is_local(uri):
            path, found_bytes, actual = self._in_place(uri, expected)
            named = (wanted if _is_foreign(wanted) else actual) + mark + cut
            yield LocalVideo(path, found_bytes, time.perf_counter() - started, named, stamp=actual)
            return
        path = self._scratch_file(uri)
        try:
            found_bytes, actual, attempts = self._with_patience(uri, expected, size_bytes, path)
            named = (wanted if _is_foreign(wanted) else actual) + mark + cut
            yield LocalVideo(path, found_bytes, time.perf_counter() - started, named, attempts)
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
            raise changed(uri, expected, actual)
        return path, status.st_size, actual

    def _with_patience(
        self, uri: str, expected: str | None, size_bytes: int | None, path: Path
    ) -> tuple[int, str, int]:
        """Size and token of the object, whose bytes are then in `path`, and the attempts that it took."""
        attempts = 0

        def copy(attempt: int) -> tuple[int, str, int]:
            nonlocal attempts
            attempts = attempt
            return *self._copy(uri, expected, size_bytes, path), attempt

        try:
            return self.patience.repeat(copy)
        except FOREIGN_ERRORS as error:
            raise _failure(uri, error, attempts) from error
        except _SpoiltError as error:
            raise FetchError(error.code, f"{display_uri(uri)}: {error.text}{_after(attempts)}") from error

    def _copy(self, uri: str, expected: str | None, size_bytes: int | None, path: Path) -> tuple[int, str]:
        # Once a time: it is `patience` that repeats, and counts.
        options = replace(self.options, attempts=1)
        stream = open_object(uri, options, expected)
        try:
            if expected and expected != stream.content_id:
                raise changed(uri, expected, stream.content_id)
            if stream.size_bytes:
                self._check_size(uri, stream.size_bytes)
            found_bytes = self._save(uri, stream, path)
        finally:
            stream.close()
        if stream.size_bytes is not None and found_bytes != stream.size_bytes:
            raise _SpoiltError("unreachable", f"{found_bytes} of {stream.size_bytes} bytes arrived")
        if size_bytes is not None and found_bytes != size_bytes:
            # A catalog may be wrong, and so may an answer: the store is asked once more, in another way.
            stored_bytes = object_facts(uri, options)[1]
            if stored_bytes is not None and stored_bytes != found_bytes:
                raise _SpoiltError("wrong_length", f"the store sent {found_bytes} bytes and has {stored_bytes}")
        self._check_size(uri, found_bytes)
        return found_bytes, stream.content_id

    def _save(self, uri: str, stream: ObjectStream, path: Path) -> int:
        """How many bytes came, all of them in `path`."""
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
                if seconds > self.options.read_timeout_s and found_bytes < seconds * self.least_bytes_per_s:
                    raise _SpoiltError("too_slow", f"only {found_bytes} bytes came in {seconds:.0f} s")
        return found_bytes

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


class _SpoiltError(TransientError):
    """An answer that came and is not whole; `code` is that of the failure that it becomes if it stays so."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return self.text


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


def _failure(uri: str, error: BaseException, attempts: int = 1) -> FetchError:
    """What a foreign exception means for this one video."""
    kind = classify_error(error)
    if kind == "changed":
        return FetchError("content_changed", f"{display_uri(uri)} is not what the plan saw; the next run takes it anew")
    code = {"no_bucket": "missing", "other": "unreadable", "full": "unreadable"}.get(kind, kind)
    return FetchError(code, f"{display_uri(uri)}: {HINTS[kind]} ({told(error)}{_after(attempts)})")


def _after(attempts: int) -> str:
    return f", {attempts} times" if attempts > 1 else ""
