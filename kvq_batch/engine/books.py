"""One run in the tables: its models, its catalog, its plan, its commits, and its row in `runs`.

Everything that a run writes goes through here, in the order that makes a crash between any two steps harmless: what
the videos are, then what is planned, then results, then the outcome. This module computes no result.
"""

import json
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Self

from kvq_batch.engine.ledger import Ledger, Rows
from kvq_batch.engine.models import JobModel
from kvq_batch.engine.observer import Observer
from kvq_batch.engine.planning import JobPlan
from kvq_batch.engine.summary import RunSummary, State
from kvq_batch.io.catalog_versions import catalog_changes
from kvq_batch.io.plan_store import store_plan
from kvq_batch.io.schemas import make_rows
from kvq_batch.io.storage import display_uri
from kvq_batch.io.writer import Batch, Writer

RECORDED_VERSIONS = ("kvq-batch", "ray", "torch", "av", "decord", "numpy", "pyarrow", "deltalake", "duckdb")


class RunBooks:
    """The open account of one run."""

    def __init__(self, plan: JobPlan, ledger: Ledger, writer: Writer) -> None:
        self.run_id = writer.run_id
        self._plan = plan
        self._ledger = ledger
        self._writer = writer
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._committed = time.monotonic()

    @classmethod
    def open(cls, plan: JobPlan, ledger: Ledger, writer: Writer) -> Self:
        """Writes down what the run sets out to do, before it does any of it."""
        tables = writer.tables
        books = cls(plan, ledger, writer)
        writer.write_models(make_rows("models", [row for model in plan.models.models for row in model_rows(model)]))
        changes = catalog_changes(tables, plan.catalog, plan.job.catalog_name)
        if changes.num_rows:
            writer.write_catalog(changes)
        store_plan(tables, writer.run_id, plan.plan.pairs)
        books._write_run("running", "")
        return books

    @property
    def num_left_out(self) -> int:
        """Pairs of the plan that `--limit` kept out of this run."""
        return int(self._plan.plan.pairs.num_rows) - self._ledger.num_pairs

    def commit_when_due(self, observer: Observer) -> None:
        """Commits what is finished, at most every `run.commit_every_s` seconds."""
        if time.monotonic() - self._committed >= self._plan.job.run.commit_every_s:
            self.commit(observer)

    def commit(self, observer: Observer) -> None:
        """Commits what is finished."""
        rows = self._ledger.take()
        if rows:
            self._writer.commit(_batch(rows))
            observer.committed(rows.scores, rows.failures)
        self._committed = time.monotonic()

    def close(self, state: State, message: str = "") -> RunSummary:
        """Writes the outcome and returns it."""
        summary = self._summary(state, message)
        self._write_run(state, message)
        return summary

    def _summary(self, state: State, message: str) -> RunSummary:
        plan, ledger = self._plan.plan, self._ledger
        return RunSummary(
            run_id=self.run_id,
            state=state,
            num_videos=int(self._plan.catalog.num_rows),
            num_planned=int(plan.pairs.num_rows),
            planned_by_reason=self._by_reason(),
            num_scored=ledger.num_scored,
            num_failed=ledger.num_failed,
            num_not_reached=ledger.num_open + self.num_left_out,
            num_retried=ledger.num_retried,
            num_videos_planned=ledger.num_videos,
            num_videos_failed=ledger.num_videos_failed,
            seconds=time.monotonic() - self._started,
            decode_s=ledger.decode_s,
            score_s=ledger.score_s,
            message=message,
        )

    def _by_reason(self) -> Mapping[str, int]:
        counts = self._plan.plan.pairs["reason"].value_counts().to_pylist()
        return {count["values"]: count["counts"] for count in counts}

    def _write_run(self, state: State, message: str) -> None:
        summary = self._summary(state, message)
        is_over = state != "running"
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
            "num_not_reached": summary.num_not_reached,
            "num_departed": len(self._plan.plan.departed),
            "started_at": self._started_at,
            "finished_at": datetime.now(UTC) if is_over else None,
            "seconds": summary.seconds if is_over else None,
            "versions": [(name, version(name)) for name in RECORDED_VERSIONS] + [("python", platform.python_version())],
            "message": message,
        }
        self._writer.write_run(make_rows("runs", [row]))


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
