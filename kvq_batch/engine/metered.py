"""Workers of any stage that also tell how long they were starting, busy and waiting.

One place for all stages, around the worker and not in it. What a worker was given and what it makes pass through
untouched; this module knows nothing of either. Seconds of the last ten seconds before a worker's end may never be told.
"""

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

import pyarrow as pa

from kvq_batch.engine.telemetry import WORKER_SECONDS, Telemetry


class _Metered:
    """A callable for Ray Data around an instance of `worker`."""

    worker: ClassVar[type]
    tags: ClassVar[Mapping[str, str]]

    def __init__(self, settings: object) -> None:
        self._telemetry = Telemetry(self.tags)
        self._since = time.perf_counter()
        self._worker: Any = self.worker(settings)
        self._spent("starting")

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        self._spent("waiting")
        made = self._worker(rows)
        tables = iter((made,)) if isinstance(made, pa.Table) else made
        del made
        # A list, so that nothing here holds the frames of a table that was handed on.
        while table := [*islice(tables, 1)]:
            self._spent("busy")
            yield table.pop()
            self._spent("waiting")
        self._spent("busy")

    def _spent(self, state: str) -> None:
        now = time.perf_counter()
        self._telemetry.add(WORKER_SECONDS, now - self._since, state=state)
        self._since = now


def metered(worker: type, tags: Mapping[str, str]) -> type:
    """A class that works as `worker` does and is called like it, which is how Ray names its processes."""
    return type(worker.__name__, (_Metered,), {"worker": worker, "tags": dict(tags)})
