"""A run as a Prometheus sees it: an observer that hands on what it hears, and counts it.

Counters are moved by what the driver hears anyway, by whole tables and commits and never by a video. Gauges are told
anew by a thread, because Ray forgets one that is silent for 20 s, which is less than a slow block takes. A run that
does nothing is no different: it begins, it ends, and it says how old its scores are. This module changes nothing.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from kvq_batch.engine import metrics
from kvq_batch.engine.metrics import Queues, Telemetry
from kvq_batch.engine.observer import Observer
from kvq_batch.engine.rows import Row
from kvq_batch.engine.summary import State
from kvq_batch.engine.work_tracker import Work, WorkTracker
from kvq_batch.tables.writer import Writer

REPEAT_S = 5.0
"""How often gauges are told again; Ray sends what it has every 10 s."""

_STATES: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class RunLabels:
    """What a run is to its watch.

    `closing` are the stages at which its results are made, each with its model; `failing` those at which they may fail.
    `oldest_stale_at` is the time of the oldest score that the plan replaces, None where it replaces none.
    """

    job_name: str
    closing: Sequence[Work]
    failing: Sequence[str]
    oldest_stale_at: datetime | None = None


class MetricsObserver:
    """Tells of a run while its block lasts; an exception ends the run as failed, `outcome` says how else it ended."""

    def __init__(
        self,
        run: RunLabels,
        tracker: WorkTracker,
        writer: Writer,
        queues: Queues,
        observer: Observer,
        outcome: Callable[[], State],
    ) -> None:
        self._run = run
        self._tracker = tracker
        self._writer = writer
        self._queues = queues
        self._observer = observer
        self._outcome = outcome
        self._telemetry = Telemetry({"job_name": run.job_name})
        self._seen_work: Mapping[Work, float] = {}
        self._seen_bytes = 0
        self._closing_stages = {model: stage for stage, model in run.closing}
        self._last_commit = time.time()
        self._oldest_stale = self._last_commit if run.oldest_stale_at is None else run.oldest_stale_at.timestamp()
        self._over = threading.Event()
        self._repeating = threading.Thread(target=self._repeat, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self._telemetry.add(metrics.RUNS_BEGUN, 1)
        for state in _STATES:
            self._telemetry.begin(metrics.RUNS_ENDED, state=state)
        for stage, model in self._run.closing:
            self._telemetry.begin(metrics.VIDEOS, stage=stage, model=model, outcome="scored")
            for failing in self._run.failing:
                self._telemetry.begin(metrics.VIDEOS, stage=failing, model=model, outcome="failed")
        self._repeating.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        state = "failed" if kind is not None else self._outcome()
        self._over.set()
        self._repeating.join()
        self._telemetry.add(metrics.RUNS_ENDED, 1, state=state)
        if state == "finished" and not self._tracker.num_failed:
            self._oldest_stale = time.time()
        self._tell_gauges()
        self._telemetry.set(metrics.RUN_ACTIVE, 0)

    def started(self, run_id: str, num_videos: int) -> None:
        self._observer.started(run_id, num_videos)

    def progressed(self, tracker: WorkTracker) -> None:
        work = tracker.work_s
        for (stage, model), seconds in work.items():
            more = seconds - self._seen_work.get((stage, model), 0.0)
            self._telemetry.add(metrics.WORK_SECONDS, more, stage=stage, model=model)
        self._telemetry.add(metrics.FETCHED_BYTES, tracker.fetched_bytes - self._seen_bytes)
        self._seen_work, self._seen_bytes = work, tracker.fetched_bytes
        self._observer.progressed(tracker)

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        self._last_commit = time.time()
        self._telemetry.observe(metrics.COMMIT_SECONDS, self._writer.last_commit.seconds)
        self._telemetry.add(metrics.WRITTEN_BYTES, self._writer.last_commit.size_bytes)
        # A label has no model's name; then there is one only.
        (first_model, *_) = self._closing_stages
        for model, num in Counter(row.get("model_name", first_model) for row in scores).items():
            stage = self._closing_stages[model]
            self._telemetry.add(metrics.VIDEOS, num, stage=stage, model=model, outcome="scored")
        for (stage, model, final), num in Counter(
            (row["stage"], row["model_name"], row["final"]) for row in failures
        ).items():
            outcome = "failed" if final else "retried"
            self._telemetry.add(metrics.VIDEOS, num, stage=stage, model=model, outcome=outcome)
        for (stage, model, error), num in Counter(
            (row["stage"], row["model_name"], row["error"]) for row in failures
        ).items():
            self._telemetry.add(metrics.FAILURES, num, stage=stage, model=model, error=error)
        self._observer.committed(scores, failures)

    def told(self, text: str) -> None:
        self._observer.told(text)

    def _repeat(self) -> None:
        self._tell_gauges()
        while not self._over.wait(REPEAT_S):
            self._tell_gauges()

    def _tell_gauges(self) -> None:
        self._telemetry.set(metrics.RUN_ACTIVE, 1)
        self._telemetry.set(metrics.OPEN, self._tracker.num_open)
        self._telemetry.set(metrics.LAST_COMMIT, self._last_commit)
        self._telemetry.set(metrics.OLDEST_STALE, self._oldest_stale)
        for (stage, model), num in self._queues.lengths.items():
            self._telemetry.set(metrics.QUEUED, num, stage=stage, model=model)
