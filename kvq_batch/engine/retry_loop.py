"""The retry loop of a run: send open tasks through the pipeline until each is closed, with commits in between.

    attempt 1      all tasks, in blocks of the pipeline's usual size
    attempts 2...  tasks with a transient failure, and tasks that never came back; each video alone

An attempt ends when the pipeline ends. Tasks that are then neither closed nor failed have lost their worker. A thread
reads the pipeline, so that commits keep their interval and a stop takes effect while a slow block is being processed.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Protocol

import pyarrow as pa

from kvq_batch.domain.errors import FatalError, KvqBatchError
from kvq_batch.engine.executor.base import Cancel
from kvq_batch.engine.run_recorder import State
from kvq_batch.engine.stopping import StopCondition
from kvq_batch.engine.work_tracker import Observer, WorkTracker
from kvq_batch.storage.redact import summarize_error
from kvq_batch.tables.lease import Lease

_LOG = logging.getLogger(__name__)

POLL_S = 0.2
"""Longest time that the driver waits before it checks the clock and the stop condition."""

CANCEL_TIMEOUT_S = 30.0

Pipeline = Callable[[pa.Table, bool, Cancel], Iterator[pa.Table]]
"""Yields result tables for the items, in any order; True runs each item alone."""


class Recorder(Protocol):
    """The part of `RunRecorder` that the retry loop uses."""

    def note_result(self) -> None: ...

    def commit_when_due(self, observer: Observer) -> None: ...

    def commit(self, observer: Observer) -> None: ...

    def close(self, state: State, message: str = "") -> object: ...


class _End:
    """Marks the end of the pipeline's results."""


@contextmanager
def record_failure_on_error(recorder: Recorder) -> Iterator[None]:
    """Close the run as `failed` with the reason if the block raises any error: it must not look active afterwards."""
    with ExitStack() as stack:
        stack.push(partial(_record_failure, recorder))
        yield


def _record_failure(
    recorder: Recorder, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
) -> None:
    # An interrupted run is closed by the next one: a second Ctrl-C means at once.
    if not isinstance(error, Exception):
        return
    reason = str(error) if isinstance(error, KvqBatchError) else f"{type(error).__name__}: {summarize_error(error)}"
    try:
        recorder.close("failed", reason)
    except FatalError as second:
        # The storage itself may be broken; the first error says why the run ended.
        error.add_note(f"the failure of the run could not be recorded: {second}")


@contextmanager
def _commit_on_error(tracker: WorkTracker, recorder: Recorder, observer: Observer) -> Iterator[None]:
    """Commit finished results if the block raises, while observers can still report them."""
    try:
        yield
    except KvqBatchError as error:
        tracker.abort()
        try:
            recorder.commit(observer)
        except FatalError as second:
            error.add_note(f"finished results could not be committed: {second}")
        raise


def run_attempts(
    tracker: WorkTracker,
    recorder: Recorder,
    pipeline: Pipeline,
    lease: Lease,
    observer: Observer,
    stop: StopCondition,
    has_new_preemptions: Callable[[], bool],
) -> None:
    """Run attempts until every task is closed or `stop` is set, and commit the results.

    `has_new_preemptions` returns whether nodes were preempted since its last call.

    Raises:
        FatalError: the circuit breaker tripped, the lease was lost, or the storage or the pipeline failed.
    """
    with _commit_on_error(tracker, recorder, observer):
        attempt = 0
        # `max_attempts` grows by one with each attempt in which nodes were preempted.
        while attempt < tracker.max_attempts:
            attempt += 1
            items = tracker.open_items(attempt)
            if not items.num_rows or stop.is_set():
                return
            is_alone = attempt > 1
            if is_alone:
                _LOG.info("retrying %d video(s), each alone (attempt %d)", items.num_rows, attempt)
            cancel = Cancel()
            for table in _read_in_thread(pipeline(items, is_alone, cancel), cancel, stop):
                if table is not None:
                    tracker.add(table)
                    recorder.note_result()
                    observer.progressed(tracker)
                if tracker.breaker.cause:
                    raise FatalError(f"stopped: {tracker.breaker.cause}. Fix the cause and start the job again.")
                lease.check()
                recorder.commit_when_due(observer)
            if stop.is_set():
                tracker.abort()
            else:
                was_preempted = has_new_preemptions()
                num_lost = tracker.finish_attempt(attempt, was_preempted)
                if num_lost:
                    reason = "nodes were preempted" if was_preempted else "their worker died"
                    _LOG.warning("%d result(s) never came back: %s", num_lost, reason)
            recorder.commit(observer)


def _read_in_thread(tables: Iterator[pa.Table], cancel: Cancel, stop: StopCondition) -> Iterator[pa.Table | None]:
    """Yield the tables, which a thread reads; yield None after `POLL_S` without one; end early when `stop` is set.

    At the end the pipeline is cancelled and its thread has ended: Ray must not be shut down while it is read.
    """
    arrived: queue.Queue[pa.Table | KvqBatchError | _End] = queue.Queue(maxsize=64)

    def put(value: pa.Table | KvqBatchError | _End) -> None:
        while not cancel.is_set():
            try:
                arrived.put(value, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def read() -> None:
        try:
            for table in tables:
                put(table)
            put(_End())
        except KvqBatchError as error:
            put(error)

    reader = threading.Thread(target=read, name="pipeline", daemon=True)
    reader.start()
    try:
        while not stop.is_set():
            try:
                value = arrived.get(timeout=POLL_S)
            except queue.Empty:
                if not reader.is_alive() and arrived.empty():
                    raise FatalError("The thread that reads the pipeline died; see the traceback above.") from None
                yield None
                continue
            if isinstance(value, _End):
                return
            if isinstance(value, KvqBatchError):
                raise value
            yield value
    finally:
        cancel.set()
        reader.join(timeout=CANCEL_TIMEOUT_S)
