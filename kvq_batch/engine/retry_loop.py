"""The rounds of a run: open pairs through a pipeline until each is closed, with commits in between.

    round 1      everything, in blocks as the pipeline likes them
    round 2...   what may pass this time, and suspects (pairs that never came back), each item alone

A round ends when the pipeline does; what is then neither closed nor failed lost its worker. The reader of the pipeline
is a thread, so that commits keep their rhythm and a stop is heard while a slow block is on its way. This module knows
neither what is made nor how.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pyarrow as pa

from kvq_batch.domain.errors import FatalError, KvqBatchError
from kvq_batch.engine.observer import Observer
from kvq_batch.engine.pipeline import Cancel
from kvq_batch.engine.stopping import StopCondition
from kvq_batch.engine.summary import State
from kvq_batch.engine.work_tracker import WorkTracker
from kvq_batch.tables.lease import Lease

POLL_S = 0.2
"""How long the driver sleeps at most before it looks at the clock and at `stop`."""

CANCEL_TIMEOUT_S = 30.0

Pipeline = Callable[[pa.Table, bool, Cancel], Iterator[pa.Table]]
"""Result tables of some items, in any order; True where each item is to run alone."""


class Recorder(Protocol):
    """Whoever commits what the account has ready."""

    def note_result(self) -> None: ...

    def commit_when_due(self, observer: Observer) -> None: ...

    def commit(self, observer: Observer) -> None: ...

    def close(self, state: State, message: str = "") -> object: ...


class _End:
    """The last thing that the reader of the pipeline hands over."""


@contextmanager
def record_failure_on_error(recorder: Recorder) -> Iterator[None]:
    """Whatever breaks inside, the run's last row says why it ended."""
    try:
        yield
    except KvqBatchError as error:
        try:
            recorder.close("failed", str(error))
        except FatalError as second:
            # The store itself may be what broke; the first error says why the run ended.
            error.add_note(f"that the run failed could not be written down: {second}")
        raise


@contextmanager
def _commit_on_error(tracker: WorkTracker, recorder: Recorder, observer: Observer) -> Iterator[None]:
    """Whatever breaks inside, what is finished is committed, while those who watch the run can still tell of it."""
    try:
        yield
    except KvqBatchError as error:
        tracker.abort()
        try:
            recorder.commit(observer)
        except FatalError as second:
            error.add_note(f"what was finished could not be committed: {second}")
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
    """Runs rounds until every pair of `account` is closed, or `stop` is set; what came back is committed.

    `has_new_preemptions` says whether the cluster lost machines by somebody's order since it was last asked.

    Raises:
        FatalError: the breaker tripped, the lease was lost, the store or the pipeline failed.
    """
    with _commit_on_error(tracker, recorder, observer):
        attempt = 0
        while attempt < tracker.max_attempts:
            attempt += 1
            items = tracker.open_items(attempt)
            if not items.num_rows or stop.is_set():
                return
            is_alone = attempt > 1
            if is_alone:
                observer.told(f"trying {items.num_rows} video(s) again, each alone (attempt {attempt})")
            cancel = Cancel()
            for table in _stream(pipeline(items, is_alone, cancel), cancel, stop):
                if table is not None:
                    tracker.add(table)
                    recorder.note_result()
                    observer.progressed(tracker)
                if tracker.breaker.cause:
                    raise FatalError(f"stopped: {tracker.breaker.cause}. Mend the cause and start the job again")
                lease.check()
                recorder.commit_when_due(observer)
            if stop.is_set():
                tracker.abort()
            else:
                was_preempted = has_new_preemptions()
                lost = tracker.finish_attempt(attempt, was_preempted)
                if lost:
                    why = "machines were taken back" if was_preempted else "their worker died"
                    observer.told(f"{lost} result(s) never came back: {why}")
            recorder.commit(observer)


def _stream(source: Iterator[pa.Table], cancel: Cancel, stop: StopCondition) -> Iterator[pa.Table | None]:
    """Tables of `source` as a thread reads them, None every `POLL_S` without one; ends early when `stop` is set.

    However it ends, `source` is cancelled and its thread gone: Ray must not be shut down under it.
    """
    arrived: queue.Queue[pa.Table | KvqBatchError | _End] = queue.Queue(maxsize=64)

    def hand_over(thing: pa.Table | KvqBatchError | _End) -> None:
        while not cancel.is_set():
            try:
                arrived.put(thing, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def read() -> None:
        try:
            for table in source:
                hand_over(table)
            hand_over(_End())
        except KvqBatchError as error:
            hand_over(error)

    reader = threading.Thread(target=read, name="pipeline", daemon=True)
    reader.start()
    try:
        while not stop.is_set():
            try:
                thing = arrived.get(timeout=POLL_S)
            except queue.Empty:
                if not reader.is_alive() and arrived.empty():
                    raise FatalError("the pipeline's reader ended without a word; see the traceback above") from None
                yield None
                continue
            if isinstance(thing, _End):
                return
            if isinstance(thing, KvqBatchError):
                raise thing
            yield thing
    finally:
        cancel.set()
        reader.join(timeout=CANCEL_TIMEOUT_S)
