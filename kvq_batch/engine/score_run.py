"""Scoring runs: score the tasks of a `JobPlan` with all models of the job, or a folder without a job file.

`ScoreTracker` knows when a task has its score: when all clips of the video came back from the model. `adhoc_job` and
`score_to_table` are behind `kvq-batch score` and `kvq_batch.score`.
"""

import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.config.job import Job, slug
from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import ScoreError, SpecError
from kvq_batch.domain.frames import clip_bytes
from kvq_batch.domain.scorer import Pooler
from kvq_batch.engine.decode_worker import CLIPS_PER_TASK, DecodeSettings, DecodeWorker
from kvq_batch.engine.executor.base import PipelineSpec, PipelineStage, make_blocks
from kvq_batch.engine.metrics import RunLabels
from kvq_batch.engine.rows import (
    ClipResult,
    Failure,
    clip_result,
    clip_row,
    failure_row,
    feature_row,
    map_row,
    pooled_clip,
    score_row,
)
from kvq_batch.engine.run import DEFAULT_OPTIONS, PreparedRun, RunOptions, execute_run
from kvq_batch.engine.run_recorder import RunInputs, RunRecorder, RunSummary
from kvq_batch.engine.score_worker import ScoreSettings, ScoreWorker
from kvq_batch.engine.stopping import CircuitBreaker
from kvq_batch.engine.stream import partial_result
from kvq_batch.engine.work_tracker import FinishedRows, Observer, Task, Work, WorkTracker, failure_of_row
from kvq_batch.models.registry import build_pooler
from kvq_batch.planning.estimate import WorkerPool
from kvq_batch.planning.job_models import JobModel, JobModels
from kvq_batch.planning.job_plan import JobPlan, block_size, job_pools, plan_job
from kvq_batch.planning.plan import tasks_to_items
from kvq_batch.storage.options import StorageOptions, display_uri
from kvq_batch.storage.webhook import mask_address
from kvq_batch.tables.calibrations import unknown_cards
from kvq_batch.tables.questions import find_low_bounds, list_outcomes
from kvq_batch.tables.row_types import FailureRow, ModelRow, RunRow
from kvq_batch.tables.schemas import DATA_TABLES, make_rows
from kvq_batch.tables.session import open_session
from kvq_batch.tables.writer import Batch, Writer


class ScoreTracker(WorkTracker):
    """Tracks scores: items are videos, the bits of `model_mask` are the models of the job."""

    def __init__(self, items: pa.Table, models: Sequence[JobModel], max_attempts: int, breaker: CircuitBreaker) -> None:
        super().__init__(items, max_attempts, breaker, lost_stage="decode")
        self._models = models
        self._clips: dict[Task, dict[int, ClipResult]] = {}
        self._chunks: dict[tuple[Task, int], dict[int, ClipResult]] = {}
        self._passes: dict[tuple[Task, int], int] = {}
        self._poolers: dict[int, Pooler] = {}
        self._fetched: set[int] = set()
        self.fetch_s = 0.0
        self.decode_s = 0.0
        self.score_s_by_model = [0.0] * len(models)
        self.num_scored_by_model = [0] * len(models)

    @property
    def score_s(self) -> float:
        """Seconds that scoring workers spent on videos that were scored."""
        return sum(self.score_s_by_model)

    @property
    def work_s(self) -> Mapping[Work, float]:
        """See `WorkTracker.work_s`; a model's seconds are those of videos that it scored."""
        names = (("score", model.ref.name) for model in self._models)
        scoring = dict(zip(names, self.score_s_by_model, strict=True))
        return {("fetch", ""): self.fetch_s, ("decode", ""): self.decode_s, **scoring}

    @property
    def busy_s(self) -> Mapping[str, float]:
        """See `WorkTracker.busy_s`: decoding, and all models together."""
        return {"decode": self.decode_s, "score": self.score_s}

    def open_items(self, attempt: int) -> pa.Table:
        """See `WorkTracker.open_items`; discards clips of videos whose other clips never came back."""
        self._fetched.clear()
        self._clips.clear()
        self._chunks.clear()
        self._passes.clear()
        return super().open_items(attempt)

    def add(self, results: pa.Table) -> None:
        """Add clips with the results of the models."""
        for row in results.to_pylist():
            self.decode_s += row["decode_s"] or 0.0
            if row["clip_index"] == 0 and row["chunk_index"] == 0 and row["item"] not in self._fetched:
                self._fetched.add(row["item"])
                self.fetch_s += row["fetch_s"]
                self.fetched_bytes += row["size_bytes"]
            for model_index in self.open_models(row["item"], row["model_mask"]):
                self._add_task(row, model_index)

    def fail(self, task: Task, failure: Failure) -> None:
        """See `WorkTracker.fail`; discards the results of the video's other clips."""
        self._clips.pop(task, None)
        for key in [key for key in self._chunks if key[0] == task]:
            del self._chunks[key]
        super().fail(task, failure)

    def failure_row(self, task: Task, failure: Failure, is_final: bool) -> FailureRow:
        """See `WorkTracker.failure_row`."""
        return failure_row(self.item_values(task[0], _ITEM_COLUMNS), self._models[task[1]], failure, is_final)

    def _add_task(self, row: dict[str, Any], model_index: int) -> None:
        task = (int(row["item"]), model_index)
        if row["error"] is not None:
            self.fail(task, failure_of_row(row))
            return
        result = row[f"result_{model_index}"]
        if result is None or (self._models[model_index].spec.is_streamed and self._is_stale(task, row)):
            return
        if result["error"] is not None:
            is_permanent = bool(result["permanent"])
            self.fail(task, Failure(row["attempt"], "score", result["error"], result["message"], is_permanent))
            return
        clip = clip_result(row, result, self._models[model_index].requests[0])
        if self._models[model_index].spec.is_streamed:
            pooled = self._pool(task, clip)
            if pooled is None:
                return
            clip = pooled
        clips = self._clips.setdefault(task, {})
        clips[row["clip_index"]] = clip
        if len(clips) == row["num_clips"]:
            self._score(task, [clips[index] for index in sorted(clips)])

    def _is_stale(self, task: Task, row: dict[str, Any]) -> bool:
        """Return whether a chunk is of a decode that started again; discard the chunks before it if it is of a new one.

        Rows of one range of clips may come in any order. The last one of a decode that started again never comes.
        """
        clips = range(row["clip_index"] // CLIPS_PER_TASK * CLIPS_PER_TASK, row["num_clips"])[:CLIPS_PER_TASK]
        key = (task, clips.start)
        newest = self._passes.setdefault(key, row["decode_pass"])
        if row["decode_pass"] > newest:
            self._passes[key] = row["decode_pass"]
            for clip_index in clips:
                self._chunks.pop((task, clip_index), None)
                self._clips.get(task, {}).pop(clip_index, None)
        return bool(row["decode_pass"] < newest)

    def _pool(self, task: Task, chunk: ClipResult) -> ClipResult | None:
        """Return the pooled clip when all its chunks have come, None before, or if it fails."""
        row, key = chunk.row, (task, chunk.row["clip_index"])
        chunks = self._chunks.setdefault(key, {})
        chunks[row["chunk_index"]] = chunk
        if len(chunks) < row["num_chunks"]:
            return None
        ordered = [chunks[index] for index in sorted(self._chunks.pop(key))]
        try:
            prediction = self._pooler(task[1]).pool(np.concatenate([partial_result(c.result) for c in ordered]))
        except ScoreError as error:
            self.fail(task, Failure(row["attempt"], "score", error.code, error.message, error.permanent))
            return None
        clip = pooled_clip(ordered, prediction, self._models[task[1]].spec.has_score)
        if clip.result.get("error"):
            self.fail(task, Failure(row["attempt"], "score", clip.result["error"], clip.result["message"], False))
            return None
        return clip

    def _pooler(self, model_index: int) -> Pooler:
        if model_index not in self._poolers:
            self._poolers[model_index] = build_pooler(self._models[model_index].options)
        return self._poolers[model_index]

    def _score(self, task: Task, clips: Sequence[ClipResult]) -> None:
        item, model = self.item_values(task[0], _ITEM_COLUMNS), self._models[task[1]]
        self._rows.scores.append(score_row(item, model, clips))
        for clip in clips:
            self._rows.clips.append(clip_row(item, model, clip))
            if clip.result["maps"] is not None:
                self._rows.maps.append(map_row(item, model, clip))
        if model.stores_features:
            self._rows.features.append(feature_row(item, model, clips))
        self.num_scored_by_model[task[1]] += 1
        self.score_s_by_model[task[1]] += sum(clip.result["score_s"] for clip in clips)
        self._clips.pop(task, None)
        self.close(task)


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

    def blocks_of(items: pa.Table, is_alone: bool, num_decoders: int) -> list[pa.Table]:
        # A small catalog is cut into at least two blocks for each decoder: with one large block, the others would idle.
        videos_per_block = max(1, min(block_size(job), tracker.num_videos // (2 * num_decoders)))
        return make_blocks(items, 1 if is_alone else videos_per_block)

    return PreparedRun(
        tracker=tracker,
        recorder=ScoreRecorder(plan, tracker, writer),
        pipeline=_pipeline(plan, options.worker or DecodeWorker),
        make_blocks=blocks_of,
        decode=job.decode,
        labels=RunLabels(
            job.name,
            [("score", model.ref.name) for model in models],
            ("fetch", "probe", "decode", "score"),
            plan.plan.oldest_stale_at,
            lambda: _low_bounds(plan),
        ),
        budget=job.budget,
        connects_without_work=(options.address or job.run.ray_address) is not None,
    )


def _low_bounds(plan: JobPlan) -> dict[str, float]:
    """Return the bounds of low scores of each model, from earlier runs; see `RunLabels`."""
    with open_session(plan.job.tables, StorageOptions.from_spec(plan.job.storage)) as session:
        return find_low_bounds(session, [model.ref.model_id for model in plan.models.models])


def _pipeline(plan: JobPlan, decode_worker: type[Any]) -> PipelineSpec:
    """Return the stages: one pool of decoders, then one pool of scorers for each model."""
    decode = DecodeSettings.of(plan.job, plan.models.requests)
    stages = [PipelineStage(decode_worker, decode, plan.job.decode.workers, "decode")]
    for model_index, model in enumerate(plan.models.models):
        drops, size = plan.models.drops_after(model_index), model.section.batch_size
        settings = ScoreSettings(model.options, model.ref.model_id, model_index, model.requests, drops, size)
        uses_free_cores = model.section.device == "cpu" and model.section.num_threads is None
        stages.append(
            PipelineStage(ScoreWorker, settings, model.section.workers, "score", model.ref.name, size, uses_free_cores)
        )
    return PipelineSpec(plan.job.name, stages, plan.job.limits.worker_timeout_s, batch_bytes(plan.models))


def batch_bytes(models: JobModels) -> int:
    """Return the bytes of the largest batch that a GPU should get in one block, 0 without a GPU.

    A block ends with the row that exceeds its size. So half a row less gives blocks of a batch, also of videos with
    many clips. A CPU computes clips one by one: larger blocks would only take memory.
    """
    row = sum(clip_bytes(request) or 0 for request in models.requests)
    sizes = [model.section.batch_size for model in models.models if model.section.device == "cuda"]
    return round((max(sizes) - 0.5) * row) if sizes else 0


class ScoreRecorder(RunRecorder):
    """Records a scoring run: also its models, its catalog, and the times that later estimates are based on."""

    packages = ("kvq-batch", "ray", "torch", "av", "numpy", "pyarrow", "deltalake", "duckdb")

    def __init__(self, plan: JobPlan, tracker: ScoreTracker, writer: Writer) -> None:
        counts = plan.plan.tasks["reason"].value_counts().to_pylist()
        inputs = RunInputs(
            job=plan.job,
            job_spec=_display_spec(plan.job),
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

    def note_cores(self, num_cores: int) -> None:
        """See `RunRecorder.note_cores`: later estimates need the number of decoders that this run could use."""
        job = self._plan.job.on(num_cores)
        self._pools = job_pools(job, self._plan.models)
        self._inputs = replace(self._inputs, job_spec=_display_spec(job))

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
        tables = {name: make_rows(name, getattr(rows, name)) for name in DATA_TABLES}
        self._writer.commit(Batch(**tables))

    def _pools_with_work(self) -> tuple[WorkerPool, ...]:
        decode_s = max(self._scores.fetch_s, self._scores.decode_s)
        work = (decode_s, *self._scores.score_s_by_model)
        return tuple(replace(pool, work_s=seconds) for pool, seconds in zip(self._pools, work, strict=True))

    def _run_row(self, summary: RunSummary) -> RunRow:
        estimate = self._plan.estimate
        expected = estimate.usage
        row: RunRow = {
            **super()._run_row(summary),
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
        return row if summary.state == "running" else self._with_measurements(row, summary)

    def _with_measurements(self, row: RunRow, summary: RunSummary) -> RunRow:
        """Return `row` with what an ended run measured; the estimates of later plans read it (`past_runs.py`)."""
        decode, *scoring = self._pools_with_work()
        names = [stage.name for stage in scoring]
        return {
            **row,
            "startup_s": summary.startup_s or 0.0,
            "decode_work_s": decode.work_s,
            "score_work_s": list(zip(names, self._scores.score_s_by_model, strict=True)),
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
        "num_parameters": model.spec.num_parameters,
        "is_default": False,
        "added_at": datetime.now(UTC),
    }
    calibrations: list[ModelRow] = [
        {**bare, "calibration": name, "is_default": i == 0, "b1": b1, "b2": b2, "b3": b3, "b4": b4}
        for i, (name, (b1, b2, b3, b4)) in enumerate(card.calibrations.items())
    ]
    return [bare, *calibrations]


def _display_spec(job: Job) -> dict[str, Any]:
    """Return the job as JSON values without the signatures of its URIs."""
    spec = job.model_dump(mode="json")
    spec["tables"] = display_uri(job.tables)
    spec["catalog"]["source"] = display_uri(job.catalog.source)
    if job.guards.webhook is not None:
        spec["guards"]["webhook"] = mask_address(job.guards.webhook)
    return spec


_ITEM_COLUMNS = ("video_id", "uri", "content_id")


def adhoc_job(
    source: str,
    tables: str,
    model: str,
    weights: str | None = None,
    device: str = "cpu",
    endpoint_url: str | None = None,
    region: str | None = None,
    features: bool = False,
) -> Job:
    """Return a job with default settings; any failed video makes it exit with 3.

    Raises:
        SpecError: a value is invalid.
    """
    values: dict[str, Any] = {
        "name": slug(f"score-{Path(source.rstrip('/')).name}"),
        "tables": tables,
        "catalog": {"source": source},
        "models": [{"name": model, "weights": weights, "device": device, "workers": gpu_share(device)}],
        "output": {"features": features},
        "run": {"max_failure_share": 0.0},
        "storage": {"endpoint_url": endpoint_url, "region": region},
    }
    return make_job(values, origin="kvq-batch score")


def gpu_share(device: str) -> dict[str, float]:
    """Return the GPUs of a scoring worker on `device`: a whole card, or none."""
    return {"num_gpus": 1.0} if device == "cuda" else {}


@contextmanager
def tables_or_temporary(tables: str | None) -> Iterator[str]:
    """Yield `tables`; without them, yield a folder for tables that is deleted at the end."""
    if tables is not None:
        yield tables
        return
    with tempfile.TemporaryDirectory(prefix="kvq-batch-score-") as folder:
        yield str(Path(folder) / "tables")


def score_to_table(source: str | Path | Sequence[str | Path], model: str, weights: str | None, device: str) -> pa.Table:
    """Implement `kvq_batch.score`; see there."""
    with tables_or_temporary(None) as tables:
        address = str(source) if isinstance(source, str | Path) else list_sources(source, tables)
        run_job(plan_job(adhoc_job(address, tables, model, weights, device)))
        with open_session(tables) as session:
            return list_outcomes(session)


def list_sources(sources: Sequence[str | Path], tables: str) -> str:
    """Write a catalog of several videos next to temporary `tables` and return its path.

    Each video has its address as id. Local paths are made absolute. Raises: SpecError if there is no video.
    """
    if not sources:
        raise SpecError("No video given: expected at least one path.")
    file = Path(tables).with_name("videos.csv")
    rows = [(str(source), str(source) if "://" in str(source) else str(Path(source).absolute())) for source in sources]
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("video_id", "uri"), *rows])
    return str(file)
