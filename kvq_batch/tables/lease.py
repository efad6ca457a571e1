"""Leases: only one run at a time may write the tables below one address, or one per disjoint catalog shard.

    on a local path    an exclusive lock on `lease.json`; the kernel frees it when its owner exits
    on s3://           the object `lease.json`, created and renewed by conditional writes, valid for `LEASE_DURATION_S`

The owner of a catalog shard has its own lease, such as `lease-2-of-4.json`. A run first takes its own lease and then
checks whether a run that it conflicts with is alive. Of two that start together both may be rejected, and at least one
is.

Clocks of machines are not compared: an owner is alive as long as its object changes. A lease prevents two runs from
doing the same work, and reports each to the other. A run that was paused longer than its lease is kept out by the log
of each table (`transactions`), not by the lease.
"""

import fcntl
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.storage.errors import foreign_errors
from kvq_batch.storage.objects import ConditionalObject, list_names
from kvq_batch.storage.options import (
    StorageOptions,
    absolute,
    display_uri,
    is_local,
    is_s3,
    join,
    local_path,
    translate_storage_errors,
)
from kvq_batch.storage.redact import summarize_error

FILE = "lease.json"

LEASE_DURATION_S = 30.0
"""A lease that is not renewed for this long is free."""

RENEW_EVERY_S = 10.0

_STEM = "lease"
_SHARD_FILE = re.compile(r"lease-(\d+)-of-(\d+)\.json")
_POLL_EVERY_S = 2.0
_MAX_WATCHED = 16
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that holds a lease, or held it last.

    `boot_id` and `start_ticks` distinguish its process from a later one with the same pid. `taken_at` is in UTC, by the
    clock of the holder.
    """

    run_id: str
    job: str
    host: str
    boot_id: str
    pid: int
    start_ticks: int
    taken_at: datetime

    @classmethod
    def this_process(cls, run_id: str, job: str) -> Self:
        """Return the holder for a run of this process."""
        pid = os.getpid()
        return cls(run_id, job, socket.gethostname(), _boot_id(), pid, _start_ticks(pid) or 0, datetime.now(UTC))

    @property
    def is_dead_here(self) -> bool:
        """Whether its process ran on this machine and has exited. False for a process of another machine."""
        if self.boot_id != _boot_id() or self.host != socket.gethostname():
            return False
        return _start_ticks(self.pid) != self.start_ticks

    def __str__(self) -> str:
        return (
            f"run {self.run_id} of job {self.job!r} (process {self.pid} on {self.host}, "
            f"since {self.taken_at:%Y-%m-%dT%H:%M:%SZ})"
        )


class Lease:
    """A lease that this process holds. Created by `hold`."""

    def __init__(self, uri: str, holder: Holder) -> None:
        self.uri = uri
        self.holder = holder
        self.successor: str | None = None

    def check(self) -> None:
        """Raises: FatalError if another run is known to have taken over."""
        if self.successor is not None:
            raise FatalError(
                f"{display_uri(self.uri)}: {self.successor} has taken over these tables, because this run did not "
                f"renew its lease for {LEASE_DURATION_S:.0f} s. Run {self.holder.run_id} stops; its commits are kept."
            )


def lease_file(shard: Shard) -> str:
    """Return the name of the lease of `shard`, which is beside the tables."""
    return FILE if shard == WHOLE else f"{_STEM}-{shard.number}-of-{shard.count}.json"


def known_shards(uri: str, options: StorageOptions) -> list[Shard]:
    """Return the catalog shards that have, or had, a lease here; WHOLE for a run without shards."""
    if is_local(uri):
        names: Iterable[str] = (path.name for path in local_path(uri).glob(f"{_STEM}*"))
    else:
        names = list_names(uri, _STEM, options)
    shards = []
    for name in names:
        found = _SHARD_FILE.fullmatch(name)
        if found is not None or name == FILE:
            shards.append(Shard(int(found[1]), int(found[2])) if found else WHOLE)
    return shards


def conflicting_shards(uri: str, options: StorageOptions, shard: Shard) -> list[Shard]:
    """Return the other shards that have, or had, a lease here and must not run at the same time as `shard`."""
    return [other for other in known_shards(uri, options) if other != shard and shard.excludes(other)]


def read_holder(uri: str, options: StorageOptions) -> Holder | None:
    """Return the run that holds a lease below `uri`, the earliest if there are several, or None.

    On s3:// an expired lease counts as held: only waiting would show that its owner has crashed.
    Raises: SpecError if the address is out of reach.
    """
    uri = absolute(uri)
    with translate_storage_errors(uri):
        if is_local(uri):
            found = [_read_local(uri, shard)[1] for shard in known_shards(uri, options)]
        else:
            stored = [ConditionalObject(join(uri, lease_file(s)), options).read() for s in known_shards(uri, options)]
            found = [_parse(text, uri) for text, _ in filter(None, stored)]
            found = [holder for holder in found if holder and not holder.is_dead_here]
    return min(filter(None, found), key=lambda holder: holder.taken_at, default=None)


@contextmanager
def hold(uri: str, options: StorageOptions, holder: Holder, shard: Shard = WHOLE) -> Iterator[Lease]:
    """Hold the lease of `shard` of the tables below `uri` for `holder`, and release it at the end.

    The lease of a process of this machine that has exited is taken over at once. Any other lease is watched for up to
    `LEASE_DURATION_S`, which is logged as a warning.

    Raises:
        SpecError: a run of a conflicting shard is running, or the address cannot be written.
    """
    uri = absolute(uri)
    if is_local(uri):
        with _hold_local(uri, holder, shard) as lease:
            yield lease
    elif is_s3(uri):
        with _hold_s3(uri, options, holder, shard) as lease:
            yield lease
    else:
        raise SpecError(f"Invalid address of tables {display_uri(uri)}: expected a local path or s3://.")


@contextmanager
def _hold_local(uri: str, holder: Holder, shard: Shard) -> Iterator[Lease]:
    path = local_path(join(uri, lease_file(shard)))
    with translate_storage_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not truncated here: until we hold the lock, the file names another owner.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _held_error(uri, _parse(file.read(), uri)) from error
        with translate_storage_errors(uri):
            _parse(file.read(), uri)
            _overwrite(file, _text(holder, 0))
        try:
            with translate_storage_errors(uri):
                for other in conflicting_shards(uri, StorageOptions(), shard):
                    is_held, owner = _read_local(uri, other)
                    if is_held:
                        raise _held_error(uri, owner)
            yield Lease(uri, holder)
        finally:
            # The file is not removed: a lock on a removed file that another process opened protects nothing.
            file.truncate(0)


def _read_local(uri: str, shard: Shard) -> tuple[bool, Holder | None]:
    """Return whether the local lease of `shard` is held, and by whom if its owner has already written it."""
    with local_path(join(uri, lease_file(shard))).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, _parse(file.read(), uri)
        return False, None


@contextmanager
def _hold_s3(uri: str, options: StorageOptions, holder: Holder, shard: Shard) -> Iterator[Lease]:
    with translate_storage_errors(uri):
        stored = ConditionalObject(join(uri, lease_file(shard)), options)
        tag = _take(stored, uri, holder)
    lease = Lease(uri, holder)
    done = threading.Event()
    renewal = _Renewal(stored, lease, tag)
    thread = threading.Thread(target=renewal.run, args=(done,), name="lease", daemon=True)
    thread.start()
    try:
        with translate_storage_errors(uri):
            shards = conflicting_shards(uri, options, shard)
            others = [ConditionalObject(join(uri, lease_file(other)), options) for other in shards]
            if others:
                # Watched in parallel: after a night with many shards, each may have to be watched until it expires.
                with ThreadPoolExecutor(_MAX_WATCHED) as pool:
                    list(pool.map(lambda other: _wait_until_free(other, uri), others))
        yield lease
    finally:
        done.set()
        thread.join()
        renewal.release()


def _wait_until_free(stored: ConditionalObject, uri: str) -> None:
    """Return once nobody holds this lease of another shard.

    An expired lease is released, so that its owner notices if it is still alive. Raises: SpecError if its owner lives.
    """
    while True:
        found = stored.read()
        owner = _parse(found[0], uri) if found else None
        if found is None or owner is None:
            return
        if (owner.is_dead_here or _expires(stored, found[1], owner, uri)) and stored.write(b"", found[1]):
            return


def _take(stored: ConditionalObject, uri: str, holder: Holder) -> str:
    """Take the lease. Return the ETag of our object."""
    text = _text(holder, 0)
    while True:
        found = stored.read()
        if found is None:
            tag = stored.write(text, tag=None)
        else:
            owner = _parse(found[0], uri)
            if owner is not None and not owner.is_dead_here and not _expires(stored, found[1], owner, uri):
                continue
            tag = stored.write(text, tag=found[1])
        if tag is not None:
            return tag


def _expires(stored: ConditionalObject, tag: str, owner: Holder, uri: str) -> bool:
    """Watch a lease for its duration. Return whether it expired; False if it was released.

    Raises: SpecError if it was renewed.
    """
    _LOGGER.warning("waiting up to %.0f s: %s may still be running on these tables", LEASE_DURATION_S, owner)
    end = time.monotonic() + LEASE_DURATION_S
    while time.monotonic() < end:
        time.sleep(_POLL_EVERY_S)
        found = stored.read()
        if found is None:
            return False
        if found[1] != tag:
            now = _parse(found[0], uri)
            if now is None:
                return False
            raise _held_error(uri, now)
    return True


class _Renewal:
    """Renews an S3 lease until it is stopped or another owner is seen."""

    def __init__(self, stored: ConditionalObject, lease: Lease, tag: str) -> None:
        self._stored = stored
        self._lease = lease
        self._tag = tag
        self._count = 0

    def run(self, done: threading.Event) -> None:
        while not done.wait(RENEW_EVERY_S) and self._lease.successor is None:
            self._write(_text(self._lease.holder, self._count + 1))

    def release(self) -> None:
        """Write that nobody holds the lease. If the write fails, the lease expires."""
        if self._lease.successor is None:
            self._write(b"")

    def _write(self, text: bytes) -> None:
        try:
            self._count += 1
            tag = self._stored.write(text, self._tag)
            if tag is not None:
                self._tag = tag
                return
            found = self._stored.read()
        except foreign_errors():
            # A short outage of the store is harmless. In a longer one, commits fail with an error.
            return
        if found is not None and found[0] == text:
            # The write landed and its answer was lost.
            self._tag = found[1]
            return
        owner = _parse(found[0], self._lease.uri) if found else None
        if owner is None or owner.run_id != self._lease.holder.run_id:
            self._lease.successor = str(owner or "another run")
        else:
            self._tag = found[1] if found else self._tag


def _held_error(uri: str, owner: Holder | None) -> SpecError:
    return SpecError(
        f"{display_uri(uri)}: {owner or 'another run'} is running on these tables. Wait until it ends or stop it, then "
        "start this run again."
    )


def _text(holder: Holder, count: int) -> bytes:
    """Return the content of the lease. `count` makes each renewal a different object."""
    fields = asdict(holder) | {"taken_at": holder.taken_at.isoformat(), "renewals": count}
    return json.dumps(fields, indent=1).encode()


def _parse(text: bytes, uri: str) -> Holder | None:
    """Return the holder in the content of a lease, or None if it was released. Raises: SpecError for other content."""
    if not text.strip():
        return None
    try:
        fields = json.loads(text)
        fields.pop("renewals")
        return Holder(**fields | {"taken_at": datetime.fromisoformat(fields["taken_at"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SpecError(
            f"{display_uri(join(uri, FILE))} is not a lease of this kvq-batch ({summarize_error(error)}). "
            "Remove it if no run is using the tables."
        ) from error


def _overwrite(file: BinaryIO, text: bytes) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None if it does not exist or is a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
