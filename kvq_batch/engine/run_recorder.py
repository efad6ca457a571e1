"""One run in the tables: its models, its catalog, its plan, its commits, and its row in `runs`.

Everything that a run writes goes through here, in the order that makes a crash between any two steps harmless: what
the videos are, then what is planned, then results, then the outcome. This module computes no result.
"""

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Self

from kvq_batch.catalog.row_versions import catalog_changes
from kvq_batch.domain.errors import FatalError
from kvq_batch.engine.observer import Observer
from kvq_batch.engine.score_tracker import Rows, ScoreTracker
from kvq_batch.engine.summary import RunSummary, State
from kvq_batch.planning.estimate import Stage, Use, use_of_all
from kvq_batch.planning.job_models import JobModel
from kvq_batch.planning.job_plan import JobPlan
from kvq_batch.planning.plan_store import store_plan
from kvq_batch.planning.workload import pools_of
from kvq_batch.storage.options import display_uri
from kvq_batch.tables.calibrations import unknown_cards
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Batch, Writer

RECORDED_VERSIONS = ("kvq-batch", "ray", "torch", "av", "decord", "numpy", "pyarrow", "deltalake", "duckdb")


class RunRecorder:
    """The open account of one run."""

    def __init__(self, plan: JobPlan, tracker: ScoreTracker, writer: Writer) -> None:
        self.run_id = writer.run_id
        self._plan = plan
        self._tracker = tracker
        self._writer = writer
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._committed = time.monotonic()
        self._first_result: float | None = None
        self._pools = pools_of(plan.job, plan.models)
        self._num_unsaved_scores = 0
        self._num_unsaved_failures = 0

    @classmethod
    def open(cls, plan: JobPlan, tracker: ScoreTracker, writer: Writer) -> Self:
        """Writes down what the run sets out to do, before it does any of it."""
        tables = writer.tables
        recorder = cls(plan, tracker, writer)
        cards = make_rows("models", [row for model in plan.models.models for row in model_rows(model)])
        # Once: a card that is written again would be newer than a calibration that was added since.
        if (unknown := unknown_cards(tables, cards)).num_rows:
            writer.write_models(unknown)
        changes = catalog_changes(tables, plan.catalog, plan.job.catalog_name, plan.job.select.scope)
        if changes.num_rows:
            writer.write_catalog(changes)
        store_plan(tables, writer.run_id, plan.plan.tasks)
        recorder._write_run("running", "")
        return recorder

    @property
    def num_left_out(self) -> int:
        """Pairs of the plan that `budget.max_videos` kept out of this run."""
        return int(self._plan.plan.tasks.num_rows) - self._tracker.num_tasks

    @property
    def cost(self) -> float | None:
        """What the machines held so far have cost; None without prices."""
        return self._use(time.monotonic() - self._started).cost(self._plan.job.prices)

    def note_result(self) -> None:
        """Results arrive: from the first of them on, starting is over."""
        if self._first_result is None:
            self._first_result = time.monotonic()

    def commit_when_due(self, observer: Observer) -> None:
        """Commits what is finished, at most every `run.commit_every_s` seconds."""
        if time.monotonic() - self._committed >= self._plan.job.run.commit_every_s:
            self.commit(observer)

    def commit(self, observer: Observer) -> None:
        """Commits what is finished."""
        rows = self._tracker.take()
        if rows:
            try:
                self._writer.commit(_batch(rows))
            except FatalError:
                # Results that are not in the tables do not count: a later run makes them again.
                self._num_unsaved_scores += len(rows.scores)
                self._num_unsaved_failures += sum(row["final"] for row in rows.failures)
                raise
            observer.committed(rows.scores, rows.failures)
        self._committed = time.monotonic()

    def close(self, state: State, message: str = "") -> RunSummary:
        """Writes the outcome and returns it."""
        summary = self._summary(state, message)
        self._write_run(state, message)
        return summary

    def _summary(self, state: State, message: str) -> RunSummary:
        plan, tracker = self._plan.plan, self._tracker
        seconds = time.monotonic() - self._started
        use = self._use(seconds)
        return RunSummary(
            run_id=self.run_id,
            state=state,
            num_videos=int(self._plan.catalog.num_rows),
            num_planned=int(plan.tasks.num_rows),
            planned_by_reason=self._by_reason(),
            num_scored=tracker.num_scored - self._num_unsaved_scores,
            num_failed=tracker.num_failed - self._num_unsaved_failures,
            num_remaining=tracker.num_open + self.num_left_out + self._num_unsaved_scores + self._num_unsaved_failures,
            num_retried=tracker.num_retried,
            num_videos_planned=tracker.num_videos,
            num_videos_failed=tracker.num_videos_failed,
            seconds=seconds,
            startup_s=(self._first_result or self._started) - self._started,
            core_hours=use.core_hours,
            gpu_hours=use.gpu_hours,
            cost=use.cost(self._plan.job.prices),
            decode_s=tracker.decode_s,
            score_s=tracker.score_s,
            message=message,
        )

    def _use(self, seconds: float) -> Use:
        # Without work no worker was started.
        return use_of_all(_done(self._pools, self._tracker), seconds) if self._tracker.num_tasks else Use()

    def _by_reason(self) -> Mapping[str, int]:
        counts = self._plan.plan.tasks["reason"].value_counts().to_pylist()
        return {count["values"]: count["counts"] for count in counts}

    def _write_run(self, state: State, message: str) -> None:
        summary = self._summary(state, message)
        is_over = state != "running"
        estimate = self._plan.estimate
        expected_use = estimate.use
        row: dict[str, Any] = {
            "job": self._plan.job.name,
            "job_spec": json.dumps(_shown(self._plan)),
            "catalog": self._plan.job.catalog_name,
            "catalog_root": self._plan.root,
            "state": state,
            "models": [
                {"name": m.ref.name, "model_id": m.ref.model_id, "fingerprint": m.ref.fingerprint}
                for m in self._plan.models.models
            ],
            "num_videos": summary.num_videos,
            "num_planned": summary.num_planned,
            "planned_by_reason": list(summary.planned_by_reason.items()),
            "num_scored": summary.num_scored,
            "num_failed": summary.num_failed,
            "num_remaining": summary.num_remaining,
            "num_removed": len(self._plan.plan.removed),
            "started_at": self._started_at,
            "finished_at": datetime.now(UTC) if is_over else None,
            "seconds": summary.seconds if is_over else None,
            **(self._used(summary) if is_over else {}),
            "expected_s": estimate.seconds,
            "expected_core_hours": expected_use.core_hours if expected_use else None,
            "expected_gpu_hours": expected_use.gpu_hours if expected_use else None,
            "expected_cost": estimate.cost,
            "versions": [(name, version(name)) for name in RECORDED_VERSIONS] + [("python", platform.python_version())],
            "message": message,
        }
        self._writer.write_run(make_rows("runs", [row]))

    def _used(self, summary: RunSummary) -> dict[str, Any]:
        """What a run that is over took: the next plan's estimate comes of it."""
        decode, *scoring = _done(self._pools, self._tracker)
        return {
            "startup_s": summary.startup_s,
            "decode_work_s": decode.work_s,
            "score_work_s": [(stage.name, stage.work_s) for stage in scoring],
            "num_scored_by_model": list(zip((s.name for s in scoring), self._tracker.num_scored_by_model, strict=True)),
            "core_hours": summary.core_hours,
            "gpu_hours": summary.gpu_hours,
            "cost": summary.cost,
            "currency": None if summary.cost is None else self._plan.job.prices.currency,
        }


def model_rows(model: JobModel) -> list[dict[str, Any]]:
    """Rows of `models`: the bare card, and one for each calibration; the first of them gives `mos`."""
    card = model.spec.card
    bare = {
        "model_id": card.model_id,
        "model_name": card.name,
        "version": card.version,
        "origin": card.origin,
        "digest": card.digest,
        "summary": card.summary,
        "training_data": card.training_data,
        "licence": card.licence,
        "is_default": False,
        "added_at": datetime.now(UTC),
    }
    calibrations = [
        bare | {"calibration": name, "is_default": i == 0, **dict(zip(("b1", "b2", "b3", "b4"), values, strict=True))}
        for i, (name, values) in enumerate(card.calibrations.items())
    ]
    return [bare, *calibrations]


def _batch(rows: Rows) -> Batch:
    made = {name: make_rows(name, getattr(rows, name)) for name in ("maps", "clips", "failures", "scores")}
    return Batch(**made)


def _shown(plan: JobPlan) -> dict[str, Any]:
    """The job as it may be stored: addresses without what was signed into them."""
    spec = plan.job.model_dump(mode="json")
    spec["tables"] = display_uri(plan.job.tables)
    spec["catalog"]["source"] = display_uri(plan.job.catalog.source)
    return spec


def _done(pools: tuple[Stage, ...], tracker: ScoreTracker) -> tuple[Stage, ...]:
    """The pools with the work that has come back from them."""
    work = (max(tracker.fetch_s, tracker.decode_s), *tracker.score_s_by_model)
    return tuple(replace(pool, work_s=seconds) for pool, seconds in zip(pools, work, strict=True))
