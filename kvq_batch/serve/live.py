"""Sessions over tables that grow while they are shown."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.sandbox import QueryLimits
from kvq_batch.tables.session import Session

CHECK_INTERVAL_S = 5.0
"""New commits are looked for at most this often."""

_Answer = TypeVar("_Answer")


class LiveTables:
    """The newest session over some tables, used by one thread at a time, with a cache of answers over this version.

    The rows of the views `materialised` are computed when the session is opened (see `Session`).
    """

    def __init__(
        self, uri: str, storage: StorageOptions, limits: QueryLimits, materialised: Sequence[str] = ()
    ) -> None:
        """Raises: SpecError if there are no tables, or they are out of reach."""
        self.uri, self.storage = uri, storage
        self._limits, self._materialised = limits, materialised
        self._lock = threading.RLock()
        self._session = self._open()
        self._versions = _versions(self._session.tables)
        self._checked_at = time.monotonic()
        self._answers: dict[tuple[Any, ...], Any] = {}

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a session over the newest version. Raises: SpecError if the tables are out of reach."""
        with self._lock:
            self._refresh()
            yield self._session

    def cached(self, key: tuple[Any, ...], compute: Callable[[Session], _Answer]) -> _Answer:
        """Return `compute(session)`, which is called once for each key and version of the tables."""
        with self.session() as session:
            if key not in self._answers:
                self._answers[key] = compute(session)
            answer: _Answer = self._answers[key]
            return answer

    def close(self) -> None:
        with self._lock:
            self._session.close()

    def _open(self) -> Session:
        return Session(Tables.open(self.uri, self.storage), self._limits, materialised=self._materialised)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < CHECK_INTERVAL_S:
            return
        if _versions(Tables.open(self.uri, self.storage)) != self._versions:
            opened = self._open()
            self._session.close()
            self._session, self._versions = opened, _versions(opened.tables)
            self._answers.clear()
        self._checked_at = time.monotonic()


def _versions(tables: Tables) -> dict[str, int]:
    """Return the version of each table. Compaction changes it, too: the files that it replaced may be deleted."""
    return {schema.name: tables.delta(schema.name).version() for schema in tables.schemas}
