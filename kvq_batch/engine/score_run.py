"""Scoring runs: score the tasks of a `JobPlan` with all models of the job."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from kvq_batch.catalog.changes import catalog_changes
from kvq_batch.engine.decode_worker import DecodeSettings, DecodeWorker
from kvq_batch.engine.metrics import RunLabels
from kvq_batch.engine.observer import Observer
from kvq_batch.engine.pipeline import PipelineSpec, PipelineStage, make_blocks
from kvq_batch.engine.run import DEFAULT_OPTIONS, PreparedRun, RunOptions, execute_run
from kvq_batch.engine.run_recorder import RunInputs, RunRecorder, RunSummary
from kvq_batch.engine.score_tracker import ScoreTracker
from kvq_batch.engine.score_worker import ScoreSettings, ScoreWorker
from kvq_batch.engine.stopping import CircuitBreaker
from kvq_batch.engine.work_tracker import FinishedRows
from kvq_batch.planning.estimate import WorkerPool
from kvq_batch.planning.job_models import JobModel
from kvq_batch.planning.job_plan import JobPlan, block_size, job_pools, plan_job
from kvq_batch.planning.plan import tasks_to_items
from kvq_batch.storage.options import display_uri
from kvq_batch.tables.calibrations import unknown_cards
from kvq_batch.tables.row_types import ModelRow
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Batch, Writer


def run_job(plan: JobPlan, observer: Observer | None = None, options: RunOptions = DEFAULT_OPTIONS) -> RunSummary:
    """Score the tasks of `plan` and return the summary. Finished results are committed, however the run ends.

    Raises:
        FatalError: the circuit breaker tripped, another run took over the tables, or the storage or Ray failed.
        SpecError: another run is active on the tables, or the cluster cannot be used.
    """

    def prepare(plan: JobPlan, writer: Writer) -> PreparedRun:
        return _prepare(plan, writer, options)

    return execute_run(plan, prepare, lambda plan: plan_job(plan.job), plan.job.select.scope, observer, options)


def _prepare(plan: JobPlan, writer: Writer, options: RunOptions) -> PreparedRun:
    job, models = plan.job, plan.models.models
    items = tasks_to_items(plan.plan.tasks, models, job.budget.max_videos)
    tracker = ScoreTracker(items, models, job.run.max_attempts, CircuitBreaker.from_spec(job.run))
    videos_per_block = block_size(job)
    return PreparedRun(
        tracker=tracker,
        recorder=ScoreRecorder(plan, tracker, writer),
        pipeline=_pipeline(plan, options.worker or DecodeWorker),
        make_blocks=lambda items, is_alone: make_blocks(items, 1 if is_alone else videos_per_block),
        decode=job.decode,
        labels=RunLabels(
            job.name,
            [("score", model.ref.name) for model in models],
            ("fetch", "probe", "decode", "score"),
            plan.plan.oldest_stale_at,
        ),
        budget=job.budget,
        connects_without_work=(options.address or job.run.ray_address) is not None,
    )


def _pipeline(plan: JobPlan, decode_worker: type[Any]) -> PipelineSpec:
    """Return the stages: one pool of decoders, then one pool of scorers for each model."""
    decode = DecodeSettings.of(plan.job, plan.models.requests)
    stages = [PipelineStage(decode_worker, decode, plan.job.decode.workers, "decode")]
    for model_index, model in enumerate(plan.models.models):
        drops, size = plan.models.drops_after(model_index), model.section.batch_size
        settings = ScoreSettings(model.options, model.ref.model_id, model_index, model.request, drops, size)
        stages.append(PipelineStage(ScoreWorker, settings, model.section.workers, "score", model.ref.name))
    return PipelineSpec(plan.job.name, stages)


class ScoreRecorder(RunRecorder):
    """Records a scoring run: also its models, its catalog, and the times that later estimates are based on."""

    packages = ("kvq-batch", "ray", "torch", "av", "decord", "numpy", "pyarrow", "deltalake", "duckdb")

    def __init__(self, plan: JobPlan, tracker: ScoreTracker, writer: Writer) -> None:
        counts = plan.plan.tasks["reason"].value_counts().to_pylist()
        inputs = RunInputs(
            job=plan.job,
            job_spec=_display_spec(plan),
            catalog_name=plan.job.catalog_name,
            catalog_root=plan.root,
            tasks=plan.plan.tasks,
            num_videos=plan.catalog.num_rows,
            planned_by_reason={count["values"]: count["counts"] for count in counts},
            prices=plan.job.prices,
        )
        super().__init__(inputs, tracker, writer)
        self._plan = plan
        self._scores = tracker
        self._pools = job_pools(plan.job, plan.models)

    def _write_inputs(self) -> None:
        tables, plan = self._writer.tables, self._plan
        cards = make_rows("models", [row for model in plan.models.models for row in model_rows(model)])
        # Each card is written once: a second copy would be newer than a calibration that was added in between.
        if (unknown := unknown_cards(tables, cards)).num_rows:
            self._writer.write_models(unknown)
        changes = catalog_changes(tables, plan.catalog, plan.job.catalog_name, plan.job.select.scope)
        if changes.num_rows:
            self._writer.write_catalog(changes)

    def _write_rows(self, rows: FinishedRows) -> None:
        tables = {name: make_rows(name, getattr(rows, name)) for name in ("maps", "clips", "failures", "scores")}
        self._writer.commit(Batch(**tables))

    def _pools_with_work(self) -> tuple[WorkerPool, ...]:
        decode_s = max(self._scores.fetch_s, self._scores.decode_s)
        work = (decode_s, *self._scores.score_s_by_model)
        return tuple(replace(pool, work_s=seconds) for pool, seconds in zip(self._pools, work, strict=True))

    def _run_columns(self, summary: RunSummary) -> dict[str, Any]:
        estimate = self._plan.estimate
        expected = estimate.usage
        columns: dict[str, Any] = {
            "models": [
                {"name": m.ref.name, "model_id": m.ref.model_id, "fingerprint": m.ref.fingerprint}
                for m in self._plan.models.models
            ],
            "num_removed": len(self._plan.plan.removed),
            "expected_s": estimate.seconds,
            "expected_core_hours": expected.core_hours if expected else None,
            "expected_gpu_hours": expected.gpu_hours if expected else None,
            "expected_cost": estimate.cost,
        }
        return columns if summary.state == "running" else columns | self._measured_columns(summary)

    def _measured_columns(self, summary: RunSummary) -> dict[str, Any]:
        """Return what an ended run measured; the estimates of later plans read it (`planning/past_runs.py`)."""
        decode, *scoring = self._pools_with_work()
        names = [stage.name for stage in scoring]
        return {
            "startup_s": summary.startup_s or 0.0,
            "decode_work_s": decode.work_s,
            "score_work_s": [(stage.name, stage.work_s) for stage in scoring],
            "num_scored_by_model": list(zip(names, self._scores.num_scored_by_model, strict=True)),
            "core_hours": summary.core_hours,
            "gpu_hours": summary.gpu_hours,
            "cost": summary.cost,
            "currency": None if summary.cost is None else self._plan.job.prices.currency,
        }


def model_rows(model: JobModel) -> list[ModelRow]:
    """Return the rows of `models`: the card, and one row for each calibration. The first calibration gives `mos`."""
    card = model.spec.card
    bare: ModelRow = {
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
    calibrations: list[ModelRow] = [
        {**bare, "calibration": name, "is_default": i == 0, "b1": b1, "b2": b2, "b3": b3, "b4": b4}
        for i, (name, (b1, b2, b3, b4)) in enumerate(card.calibrations.items())
    ]
    return [bare, *calibrations]


def _display_spec(plan: JobPlan) -> dict[str, Any]:
    """Return the job as JSON values without the signatures of its URIs."""
    spec = plan.job.model_dump(mode="json")
    spec["tables"] = display_uri(plan.job.tables)
    spec["catalog"]["source"] = display_uri(plan.job.catalog.source)
    return spec
