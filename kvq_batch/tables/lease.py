"""Who may write: one owner at a time for the tables below one address, or one for each of several disjoint shards.

    on a local path    an exclusive lock on `lease.json`, which the kernel frees when its owner dies
    on s3://           the object `lease.json`, made and renewed by conditional writes, `LIFE_S` to live

The owner of a shard has a lease of its own beside that one, `lease-2-of-4.json`. Everybody first takes their own, and
then looks whether anyone lives whom it excludes: of two that start together both may be refused, and one always is.

Nobody's clock is compared with anybody else's: an owner lives as long as its object is seen to change. A lease spares
two runs each other's work, and tells them of each other; what keeps an owner out that was paused beyond its lease is
the log of each table (`Writer`), not this module.

The leases that may stand beside tables: one for the whole, one for each shard that was ever worked off alone.

This module says what they are called and which are there; who holds one is `tables/lease.py`'s.
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
from typing import Any, Self

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.storage.errors import FOREIGN_ERRORS
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
_STEM = "lease"
_SHARD_FILE = re.compile(r"lease-(\d+)-of-(\d+)\.json")


def file_of(shard: Shard) -> str:
    """Name of the lease of `shard`, beside the tables."""
    return FILE if shard == WHOLE else f"{_STEM}-{shard.number}-of-{shard.count}.json"


def known_shards(uri: str, options: StorageOptions) -> list[Shard]:
    """Shards that have, or had, a lease here."""
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


def excluded(uri: str, options: StorageOptions, shard: Shard) -> list[Shard]:
    """The others that have, or had, a lease here, and may not be at work beside `shard`."""
    return [other for other in known_shards(uri, options) if other != shard and shard.excludes(other)]


LIFE_S = 30.0
"""A lease that nobody renewed for so long is free."""

RENEW_EVERY_S = 10.0

_LOOK_EVERY_S = 2.0
_WATCHED_AT_ONCE = 16
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that holds, or held last, the right to write. `boot_id` and `born` tell its process from a later one
    of the same number; `taken_at` is UTC, by the holder's own clock."""

    run_id: str
    job: str
    host: str
    boot_id: str
    pid: int
    born: int
    taken_at: datetime

    @classmethod
    def this_process(cls, run_id: str, job: str) -> Self:
        pid = os.getpid()
        return cls(run_id, job, socket.gethostname(), _boot_id(), pid, _born(pid) or 0, datetime.now(UTC))

    @property
    def is_dead_here(self) -> bool:
        """Whether its process was one of this machine and is gone. False says nothing about another machine."""
        if self.boot_id != _boot_id() or self.host != socket.gethostname():
            return False
        return _born(self.pid) != self.born

    def __str__(self) -> str:
        return (
            f"run {self.run_id} of job {self.job!r} (process {self.pid} on {self.host}, "
            f"since {self.taken_at:%Y-%m-%dT%H:%M:%SZ})"
        )


def read_holder(uri: str, options: StorageOptions) -> Holder | None:
    """Who holds the tables below `uri`, as far as their leases tell, of several the first to come; None for nobody.

    On s3:// a holder whose lease ran out without a word is still named: only waiting would tell it from a live one.
    Raises: SpecError where the place is out of reach.
    """
    uri = absolute(uri)
    with translate_storage_errors(uri):
        if is_local(uri):
            found = [_look(uri, shard)[1] for shard in known_shards(uri, options)]
        else:
            stored = [ConditionalObject(join(uri, file_of(s)), options).read() for s in known_shards(uri, options)]
            found = [_parse(text, uri) for text, _ in filter(None, stored)]
            found = [holder for holder in found if holder and not holder.is_dead_here]
    return min(filter(None, found), key=lambda holder: holder.taken_at, default=None)


def _look(uri: str, shard: Shard) -> tuple[bool, Holder | None]:
    """Whether the local lease of `shard` is held, and by whom, where the owner has said so already."""
    with local_path(join(uri, file_of(shard))).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, _parse(file.read(), uri)
        return False, None


class Lease:
    """The right to write, held. Made by `hold`."""

    def __init__(self, uri: str, holder: Holder) -> None:
        self.uri = uri
        self.holder = holder
        self.successor: str | None = None

    def check(self) -> None:
        """Raises: FatalError where another run is known to have taken over."""
        if self.successor is not None:
            raise FatalError(
                f"{display_uri(self.uri)}: {self.successor} has taken over these tables, as this run did not renew "
                f"its lease for {LIFE_S:.0f} s; run {self.holder.run_id} ends, what it committed stays"
            )


@contextmanager
def hold(uri: str, options: StorageOptions, holder: Holder, shard: Shard = WHOLE) -> Iterator[Lease]:
    """The lease of `shard` of the tables below `uri` for `holder`, released at the end.

    A dead owner on this machine is followed at once; any other is watched for up to `LIFE_S`, and a warning says why.

    Raises:
        SpecError: another run that this shard excludes is at work there, or the place cannot be written.
    """
    uri = absolute(uri)
    if is_local(uri):
        with _local(uri, holder, shard) as lease:
            yield lease
    elif is_s3(uri):
        with _s3(uri, options, holder, shard) as lease:
            yield lease
    else:
        raise SpecError(f"{display_uri(uri)}: tables stand on a local path or on s3://, where a lease can be taken")


@contextmanager
def _local(uri: str, holder: Holder, shard: Shard) -> Iterator[Lease]:
    path = local_path(join(uri, file_of(shard)))
    with translate_storage_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not truncated on opening: until the lock is ours, what stands there is another's name.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _refused(uri, _parse(file.read(), uri)) from error
        with translate_storage_errors(uri):
            _parse(file.read(), uri)
            _overwrite(file, _text(holder, 0))
        try:
            with translate_storage_errors(uri):
                for other in excluded(uri, StorageOptions(), shard):
                    is_held, owner = _look(uri, other)
                    if is_held:
                        raise _refused(uri, owner)
            yield Lease(uri, holder)
        finally:
            # The file stays: a lock on a file that another opened and we removed would protect nothing.
            file.truncate(0)


@contextmanager
def _s3(uri: str, options: StorageOptions, holder: Holder, shard: Shard) -> Iterator[Lease]:
    with translate_storage_errors(uri):
        stored = ConditionalObject(join(uri, file_of(shard)), options)
        tag = _take(stored, uri, holder)
    lease = Lease(uri, holder)
    done = threading.Event()
    renewal = _Renewal(stored, lease, tag)
    thread = threading.Thread(target=renewal.keep, args=(done,), name="lease", daemon=True)
    thread.start()
    try:
        with translate_storage_errors(uri):
            others = [ConditionalObject(join(uri, file_of(s)), options) for s in excluded(uri, options, shard)]
            if others:
                # Watched at the same time: after a night of many shards, each may have to be seen running out.
                with ThreadPoolExecutor(_WATCHED_AT_ONCE) as pool:
                    list(pool.map(lambda other: _make_way(other, uri), others))
        yield lease
    finally:
        done.set()
        thread.join()
        renewal.release()


def _make_way(stored: ConditionalObject, uri: str) -> None:
    """Returns once nobody holds this lease, which is not ours; what ran out is given back for its owner, who so learns
    of it. Raises: SpecError where its owner lives."""
    while True:
        found = stored.read()
        owner = _parse(found[0], uri) if found else None
        if found is None or owner is None:
            return
        if (owner.is_dead_here or _expires(stored, found[1], owner, uri)) and stored.write(b"", found[1]):
            return


def _take(stored: ConditionalObject, uri: str, holder: Holder) -> str:
    """The tag of the object that says it is ours."""
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
    """Watches a lease for its whole life: whether it ran out, or else was given back. Raises: SpecError if renewed."""
    _LOG.warning("waiting up to %.0f s: %s may still be at work on these tables", LIFE_S, owner)
    end = time.monotonic() + LIFE_S
    while time.monotonic() < end:
        time.sleep(_LOOK_EVERY_S)
        found = stored.read()
        if found is None:
            return False
        if found[1] != tag:
            now = _parse(found[0], uri)
            if now is None:
                return False
            raise _refused(uri, now)
    return True


class _Renewal:
    """Renews an S3 lease until told to stop, or until another owner is seen."""

    def __init__(self, stored: ConditionalObject, lease: Lease, tag: str) -> None:
        self._stored = stored
        self._lease = lease
        self._tag = tag
        self._count = 0

    def keep(self, done: threading.Event) -> None:
        while not done.wait(RENEW_EVERY_S) and self._lease.successor is None:
            self._write(_text(self._lease.holder, self._count + 1))

    def release(self) -> None:
        """Says that nobody holds it; where that cannot be said, the lease runs out by itself."""
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
        except FOREIGN_ERRORS:
            # A store that is away for a moment costs nothing; for longer, commits fail and say so.
            return
        if found is not None and found[0] == text:
            # The write had landed, and its answer was lost.
            self._tag = found[1]
            return
        owner = _parse(found[0], self._lease.uri) if found else None
        if owner is None or owner.run_id != self._lease.holder.run_id:
            self._lease.successor = str(owner or "another run")
        else:
            self._tag = found[1] if found else self._tag


def _refused(uri: str, owner: Holder | None) -> SpecError:
    return SpecError(
        f"{display_uri(uri)}: {owner or 'another run'} is at work on these tables; wait for its end or stop it, then "
        "start this one again"
    )


def _text(holder: Holder, count: int) -> bytes:
    """The lease as it is written; `count` makes every renewal another object."""
    fields = asdict(holder) | {"taken_at": holder.taken_at.isoformat(), "renewals": count}
    return json.dumps(fields, indent=1).encode()


def _parse(text: bytes, uri: str) -> Holder | None:
    """Who wrote `text`; None for a lease that was given back. Raises: SpecError for anything that is no lease."""
    if not text.strip():
        return None
    try:
        fields = json.loads(text)
        fields.pop("renewals")
        return Holder(**fields | {"taken_at": datetime.fromisoformat(fields["taken_at"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SpecError(
            f"{display_uri(join(uri, FILE))}: is no lease of ours ({summarize_error(error)}); remove it if no run is "
            "at work"
        ) from error


def _overwrite(file: Any, text: bytes) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def _born(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None where there is no such process, or it is a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
