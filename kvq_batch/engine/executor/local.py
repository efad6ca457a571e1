"""The local executor: the stages run in threads of this process, connected by bounded queues; no Ray.

    blocks -> threads of stage 1 -> queue -> threads of stage 2 -> ... -> queue -> the driver

A decoding worker has a child process of its own, so a video that crashes or hangs its decoder costs one video, as on
Ray. A model runs in this process: if it crashes the process, the run ends, and the next one continues it.

A model on the CPU uses the cores that the decoders leave: before each call its threads are set by how busy the decoders
have been (`_Cores`), and calls are kept short.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial
from math import inf
from typing import Any

import pyarrow as pa

from kvq_batch.domain.errors import DeviceLostError, FatalError, KvqBatchError
from kvq_batch.domain.machine import num_cores
from kvq_batch.engine.executor.base import Cancel, Executor, PipelineSpec, PipelineStage
from kvq_batch.storage.redact import redact

_LOG = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 256 * 2**20
"""Bytes that wait between two stages before the first of them pauses: 13 clips of 32 frames of 448 x 448."""

POLL_S = 0.1
"""Longest time until a waiting thread notices that the run was cancelled."""


CALL_S = 1.0
"""Seconds that a call of a model on the CPU should take, if clips are not longer: then its threads are set again."""

MIN_WINDOW_S = 0.5
"""Shortest time over which it is measured how busy the decoders are."""


@contextmanager
def local_executor() -> Iterator[Executor]:
    """Yield an executor; workers are built when they are first needed and closed at the end."""
    with ExitStack() as stack:
        yield _LocalExecutor(stack)


class _LocalExecutor:
    """Implements `Executor`. Keeps idle workers, so that later attempts do not load a model again."""

    exports_metrics = False

    def __init__(self, stack: ExitStack) -> None:
        self.num_cores = num_cores()
        self._stack = stack
        self._idle: dict[int, list[Any]] = {}
        self._lock = threading.Lock()

    def has_new_preemptions(self) -> bool:
        """See `Executor.has_new_preemptions`: a process is not preempted without its run."""
        return False

    def results(
        self, blocks: Sequence[pa.Table], spec: PipelineSpec, is_alone: bool, cancel: Cancel
    ) -> Iterator[pa.Table]:
        """See `Executor.results`. Ends early when `cancel` is set."""
        execution = _Execution(cancel, _Cores(self.num_cores))
        queue = _Queue(execution.is_stopped)
        for block in blocks:
            queue.put(block)
        queue.producer_ended()
        for index, stage in enumerate(spec.stages):
            num_threads = min(stage.workers.max, self.num_cores, len(blocks))
            max_rows = 1 if is_alone or not index else stage.batch_size
            next_stage = spec.stages[min(index + 1, len(spec.stages) - 1)]
            max_bytes = max(MAX_QUEUED_BYTES, spec.batch_bytes)
            following = _Queue(execution.is_stopped, 2 * next_stage.batch_size, max_bytes, num_threads)
            for number in range(num_threads):
                work = partial(self._work, index, stage, queue, following, max_rows, execution)
                execution.start(work, name=f"{stage.name}-{stage.model or number}")
            queue = following
        try:
            while (table := queue.get(1)) is not None:
                yield table
        finally:
            execution.stop()
            self._close_if_cancelled(cancel)
            execution.join()
        if execution.error is not None:
            raise execution.error

    def _work(
        self, index: int, stage: PipelineStage, queue: "_Queue", following: "_Queue", max_rows: int, run: "_Execution"
    ) -> None:
        """Run one worker of the stage until its input ends or the execution is stopped."""
        try:
            worker = self._take_worker(index, stage)
            num_rows = 1 if stage.uses_free_cores else max_rows
            while (table := queue.get(num_rows)) is not None:
                started = time.monotonic()
                if stage.uses_free_cores:
                    worker.set_num_threads(run.cores.free())
                _call(worker, stage, table, following, nullcontext if index else run.cores.busy)
                if stage.uses_free_cores:
                    row_s = max(1e-6, time.monotonic() - started) / table.num_rows
                    num_rows = min(max_rows, max(1, int(CALL_S / row_s)))
                del table
            with self._lock:
                self._idle[index].append(worker)
        except KvqBatchError as error:
            run.fail(FatalError(f"a worker failed: {error}"))
        except Exception as error:  # noqa: BLE001 - the worker's outermost frame: no worker can be built
            _LOG.debug("a worker of stage %s cannot start", stage.name, exc_info=True)
            run.fail(FatalError(f"a worker failed: {type(error).__name__}: {redact(str(error))}"))
        finally:
            following.producer_ended()

    def _take_worker(self, index: int, stage: PipelineStage) -> Any:
        with self._lock:
            idle = self._idle.setdefault(index, [])
            if idle:
                return idle.pop()
        worker = stage.worker(stage.settings)
        with self._lock:
            self._stack.callback(worker.close)
        return worker

    def _close_if_cancelled(self, cancel: Cancel) -> None:
        # A worker in the middle of a long video ends only with its child process.
        if cancel.is_set():
            with self._lock:
                self._idle.clear()
                self._stack.close()


def _call(
    worker: Any,
    stage: PipelineStage,
    table: pa.Table,
    following: "_Queue",
    working: Callable[[], AbstractContextManager[None]],
) -> None:
    """Call the worker and pass its results on. After an exception the rest of the table's results are missing.

    `working` is entered while the worker works, not while it waits for room in the next queue.
    """
    try:
        with working():
            output = worker(table)
        with closing(_one(output) if isinstance(output, pa.Table) else output) as tables:
            del output
            while True:
                with working():
                    result = next(tables, _END)
                if result is _END or (result is not None and not following.put(result)):
                    return
                del result
    except DeviceLostError as error:
        # There is no other process to retry in.
        raise FatalError(f"{error}; start the job again, and on Ray (--executor ray) if it happens often") from error
    except Exception as error:  # noqa: BLE001 - the worker's outermost frame: the driver retries what is missing
        _LOG.warning("stage %s failed: %s: %s", stage.name, type(error).__name__, redact(str(error)))
        _LOG.debug("traceback", exc_info=True)


_END = object()


def _one(table: pa.Table) -> Generator[pa.Table]:
    yield table


class _Cores:
    """Counts how busy the decoders are, and so how many cores they leave to the models.

    A model that is faster than decoding gets one thread, because the decoders keep all cores busy. KVQ, which takes
    much longer than decoding, gets all cores, because the decoders wait for room in its queue.
    """

    def __init__(self, num_cores: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_cores = num_cores
        self._clock = clock
        self._lock = threading.Lock()
        self._num_busy = 0
        self._busy_s = 0.0
        self._counted_at = clock()
        self._asked: tuple[float, float] | None = None
        self._num_free = num_cores

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a decoder as busy during the block."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def free(self) -> int:
        """Return the cores that decoders left since the last call, at least one; all of them at the first call.

        Threads that have no core sleep, so that too many for one call cost little.
        """
        with self._lock:
            self._add_up()
            now = self._counted_at
            if self._asked is None:
                self._asked = now, self._busy_s
            elif now - self._asked[0] >= MIN_WINDOW_S:
                num_busy = (self._busy_s - self._asked[1]) / (now - self._asked[0])
                self._num_free = max(1, round(self._num_cores - num_busy))
                self._asked = now, self._busy_s
            return self._num_free

    def _count(self, change: int) -> None:
        with self._lock:
            self._add_up()
            self._num_busy += change

    def _add_up(self) -> None:
        now = self._clock()
        self._busy_s += self._num_busy * (now - self._counted_at)
        self._counted_at = now


class _Execution:
    """The threads of one call of `results`, and the first error that ends it."""

    def __init__(self, cancel: Cancel, cores: _Cores) -> None:
        self.cores = cores
        self._cancel = cancel
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self.error: FatalError | None = None

    def is_stopped(self) -> bool:
        return self._stopped.is_set() or self._cancel.is_set()

    def start(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def fail(self, error: FatalError) -> None:
        self.error = self.error or error
        self.stop()

    def stop(self) -> None:
        self._stopped.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


class _Queue:
    """Tables between two stages, bounded by rows and bytes. A table larger than the bounds passes alone."""

    def __init__(
        self,
        is_stopped: Callable[[], bool],
        max_rows: float = inf,
        max_bytes: float = inf,
        num_producers: int = 1,
    ) -> None:
        self._is_stopped = is_stopped
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._num_producers = num_producers
        self._tables: deque[pa.Table] = deque()
        self._num_rows = 0
        self._num_bytes = 0
        self._changed = threading.Condition()

    def put(self, table: pa.Table) -> bool:
        """Add the table as soon as there is room; return False if the execution was stopped before."""
        with self._changed:
            while self._is_full():
                if self._is_stopped():
                    return False
                self._changed.wait(POLL_S)
            self._tables.append(table)
            self._num_rows += table.num_rows
            self._num_bytes += table.nbytes
            self._changed.notify_all()
        return not self._is_stopped()

    def get(self, max_rows: int) -> pa.Table | None:
        """Return the waiting tables, joined up to `max_rows` rows; None after the last one or if stopped."""
        with self._changed:
            while not self._tables:
                if not self._num_producers or self._is_stopped():
                    return None
                self._changed.wait(POLL_S)
            if self._is_stopped():
                return None
            taken = [self._take()]
            num_rows = taken[0].num_rows
            while self._tables and num_rows + self._tables[0].num_rows <= max_rows:
                taken.append(self._take())
                num_rows += taken[-1].num_rows
            self._changed.notify_all()
        # Without a copy: a column of pixels has one chunk for each row.
        return taken[0] if len(taken) == 1 else pa.concat_tables(taken)

    def producer_ended(self) -> None:
        """Note that one producer ended; after the last one `get` returns None."""
        with self._changed:
            self._num_producers -= 1
            self._changed.notify_all()

    def _take(self) -> pa.Table:
        table = self._tables.popleft()
        self._num_rows -= table.num_rows
        self._num_bytes -= table.nbytes
        return table

    def _is_full(self) -> bool:
        if not self._tables:
            return False
        return self._num_rows >= self._max_rows or self._num_bytes >= self._max_bytes
