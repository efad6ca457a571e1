"""A run: the plan's open pairs through the pipeline, round by round, every result committed by this one process.

    round 1      everything, in blocks of one score batch
    round 2...   what may pass this time, and suspects (pairs that never came back), each video alone

A round ends when the pipeline does; what is then neither scored nor failed lost its worker. The reader of the
pipeline is a thread, so that commits keep their rhythm and a stop is heard while a slow block is on its way. This
module knows neither decoding nor models.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from kvq_batch.domain.errors import FatalError, KvqBatchError
from kvq_batch.domain.identity import new_run_id
from kvq_batch.engine.books import RunBooks
from kvq_batch.engine.breaker import Breaker
from kvq_batch.engine.budget import StopSign
from kvq_batch.engine.cluster import ray_cluster
from kvq_batch.engine.decode_worker import DecodeSettings, DecodeWorker
from kvq_batch.engine.ledger import Ledger, first_items
from kvq_batch.engine.observer import Observer, SilentObserver
from kvq_batch.engine.pipeline import Cancel, Stage, blocks_of, results
from kvq_batch.engine.planning import JobPlan, plan_again
from kvq_batch.engine.remains import no_remains
from kvq_batch.engine.succession import close_dead_runs
from kvq_batch.engine.summary import RunSummary
from kvq_batch.io.lease import Holder, Lease, hold
from kvq_batch.io.storage import StorageOptions
from kvq_batch.io.tables import Tables
from kvq_batch.io.writer import Writer

POLL_S = 0.2
"""How long the driver sleeps at most before it looks at the clock and at `stop`."""


CANCEL_TIMEOUT_S = 30.0


class _End:
    """The last thing that the reader of the pipeline hands over."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says of a run beside its job.

    `decode_worker` is the decoding stage's class (a subclass may name another task for its children); `stop` is set
    to end the run early.
    """

    address: str | None = None
    decode_worker: type[DecodeWorker] = DecodeWorker
    stop: threading.Event | None = None


def run_job(plan: JobPlan, observer: Observer | None = None, options: RunOptions = RunOptions()) -> RunSummary:
    """Score what `plan` names and return what came of it; everything finished is committed, whatever ends the run.

    Raises:
        FatalError: the breaker tripped, the tables were taken over, the store or Ray failed.
        SpecError: another run is at work on the tables, or the cluster cannot be used.
    """
    started, observer = datetime.now(UTC), observer or SilentObserver()
    storage, holder = StorageOptions.from_spec(plan.job.storage), Holder.this_process(new_run_id(), plan.job.name)
    with hold(plan.job.tables, storage, holder, observer.told) as lease:
        writer = Writer(Tables.create(plan.job.tables, storage), holder.run_id)
        for sentence in close_dead_runs(writer):
            observer.told(sentence)
        # Older writers are refused from here on, so that what the tables hold now is all that this run has not done.
        if writer.previous_seq != plan.known_seq:
            plan = plan_again(plan, observer.told)
        return _run(plan, writer, lease, observer, options, started)


def _run(
    plan: JobPlan, writer: Writer, lease: Lease, observer: Observer, options: RunOptions, started: datetime
) -> RunSummary:
    budget = plan.job.budget
    items = first_items(plan.plan.pairs, plan.models.models, budget.max_videos)
    ledger = Ledger(items, plan.models.models, plan.job.run.max_attempts, Breaker.from_spec(plan.job.run))
    books = RunBooks.open(plan, ledger, writer)
    stop = StopSign(
        options.stop or threading.Event(), budget.deadline_after(started), budget.max_cost, lambda: books.cost
    )
    observer.started(books.run_id, items.num_rows)
    try:
        if items.num_rows:
            with no_remains(plan.job.decode), ray_cluster(plan.job, options.address):
                _rounds(plan, ledger, books, lease, observer, options, stop)
    except KvqBatchError as error:
        ledger.give_up()
        try:
            books.commit(observer)
            books.close("failed", str(error))
        except FatalError as second:
            # The store itself may be what broke; the first error says why the run ended.
            error.add_note(f"what was finished could not be committed: {second}")
        raise
    if stop.cause is not None and ledger.num_open:
        summary = books.close("stopped", stop.cause)
    elif books.num_left_out:
        summary = books.close("stopped", f"budget.max_videos = {budget.max_videos} are done")
    else:
        summary = books.close("finished")
    summary.check()
    return summary


def _rounds(
    plan: JobPlan,
    ledger: Ledger,
    books: RunBooks,
    lease: Lease,
    observer: Observer,
    options: RunOptions,
    stop: StopSign,
) -> None:
    decode = DecodeSettings.of(plan.job, plan.models.requests)
    block_size = max(model.section.batch_size for model in plan.models.models)
    for attempt in range(1, plan.job.run.max_attempts + 1):
        items = ledger.open_items(attempt)
        if not items.num_rows or stop.is_set():
            return
        if attempt > 1:
            observer.told(f"trying {items.num_rows} video(s) again, each alone (attempt {attempt})")
        blocks = blocks_of(items, block_size if attempt == 1 else 1)
        pool = Stage(options.decode_worker, decode, plan.job.decode.workers)
        cancel = Cancel()
        for table in _stream(results(blocks, pool, plan.models, attempt > 1, cancel), cancel, stop):
            if table is not None:
                ledger.add(table)
                books.note_result()
                observer.progressed(ledger)
            if ledger.breaker.cause:
                raise FatalError(f"stopped: {ledger.breaker.cause}. Mend the cause and start the job again")
            lease.check()
            books.commit_when_due(observer)
        if stop.is_set():
            ledger.give_up()
        else:
            lost = ledger.settle(attempt)
            if lost:
                observer.told(f"{lost} result(s) never came back: their worker died")
        books.commit(observer)


def _stream(source: Iterator[pa.Table], cancel: Cancel, stop: StopSign) -> Iterator[pa.Table | None]:
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
