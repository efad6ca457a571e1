"""Label runs: make the renditions of a `LabelPlan`, label them, and record labels and failures.

See `engine/run.py` for the generic run.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import pyarrow as pa

from kvq_batch.config.labels import RENDITIONS_PER_BLOCK
from kvq_batch.config.recipe import Recipe
from kvq_batch.engine.executor.base import PipelineSpec, PipelineStage
from kvq_batch.engine.metrics import RunLabels
from kvq_batch.engine.rows import Failure, Row
from kvq_batch.engine.run import DEFAULT_OPTIONS, PreparedRun, RunOptions, execute_run
from kvq_batch.engine.run_recorder import RunInputs, RunRecorder, RunSummary
from kvq_batch.engine.stopping import CircuitBreaker
from kvq_batch.engine.stream import FAILURE_COLUMNS
from kvq_batch.engine.work_tracker import FinishedRows, Observer, Task, Work, WorkTracker, failure_of_row
from kvq_batch.labeling.planning import LABELS_MODEL, LabelPlan, label_blocks, plan_labels
from kvq_batch.labeling.stream import ALGORITHM, RENDITIONS
from kvq_batch.labeling.worker import LabelSettings, LabelWorker
from kvq_batch.media.ffmpeg import ffmpeg_version
from kvq_batch.storage.options import display_uri
from kvq_batch.tables.row_types import FailureRow, LabelRow
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer

_IDENTITY = ("label_id", "video_id", "scene_id", "content_id", "segment", "recipe")


def run_labels(plan: LabelPlan, observer: Observer | None = None, options: RunOptions = DEFAULT_OPTIONS) -> RunSummary:
    """Make and label the renditions of `plan`. Finished labels are committed, however the run ends.

    Raises:
        FatalError: the circuit breaker tripped, another run took over the tables, or the storage or Ray failed.
        SpecError: another run is active on the tables, or the cluster cannot be used.
    """

    def prepare(plan: LabelPlan, writer: Writer) -> PreparedRun:
        return _prepare(plan, writer, options)

    return execute_run(plan, prepare, lambda plan: plan_labels(plan.job), observer=observer, options=options)


def _prepare(plan: LabelPlan, writer: Writer, options: RunOptions) -> PreparedRun:
    job = plan.job
    tracker = LabelTracker(plan.renditions, job.run.max_attempts, CircuitBreaker.from_spec(job.run))
    worker = options.worker or LabelWorker
    stage = PipelineStage(worker, LabelSettings.of(job), job.make.workers, "label", LABELS_MODEL)

    def make_blocks(renditions: pa.Table, is_alone: bool, _: int) -> list[pa.Table]:
        return label_blocks(renditions, 1 if is_alone else RENDITIONS_PER_BLOCK)

    return PreparedRun(
        tracker=tracker,
        recorder=LabelRecorder(plan, tracker, writer),
        pipeline=PipelineSpec(job.name, [stage], job.limits.worker_timeout_s),
        make_blocks=make_blocks,
        decode=job.make,
        labels=RunLabels(job.name, [("label", LABELS_MODEL)], ("fetch", "probe", "decode", "label")),
    )


class LabelTracker(WorkTracker):
    """Tracks renditions (rows of RENDITIONS); each is closed by one label or one final failure."""

    def __init__(self, renditions: pa.Table, max_attempts: int, breaker: CircuitBreaker) -> None:
        super().__init__(renditions, max_attempts, breaker, lost_stage="label")
        self.make_s = 0.0

    @property
    def work_s(self) -> Mapping[Work, float]:
        """See `WorkTracker.work_s`."""
        return {("label", LABELS_MODEL): self.make_s}

    @property
    def busy_s(self) -> Mapping[str, float]:
        """See `WorkTracker.busy_s`; the workers have one stage."""
        return {"make": self.make_s}

    def add(self, results: pa.Table) -> None:
        """Add labels and failures (rows of LABELLED)."""
        for row in results.to_pylist():
            self.make_s += row["make_s"]
            task = (row["item"], 0)
            if not self.open_models(row["item"], 1):
                continue
            if row["error"] is not None:
                self.fail(task, failure_of_row(row))
                continue
            self._rows.scores.append(self._label_row(row))
            self.close(task)

    def failure_row(self, task: Task, failure: Failure, is_final: bool) -> FailureRow:
        """See `WorkTracker.failure_row`. The model is "labels" and the fingerprint is the label id."""
        rendition = self.item_values(task[0], RENDITIONS.names)
        return {
            "video_id": rendition["video_id"],
            "content_id": rendition["content_id"],
            "model_id": f"{LABELS_MODEL}@{ALGORITHM}-{rendition['label_id'][:12]}",
            "fingerprint": rendition["label_id"],
            "uri": rendition["uri"],
            "model_name": LABELS_MODEL,
            "attempt": failure.attempt,
            "stage": failure.stage,
            "error": failure.error,
            "message": failure.message,
            "permanent": failure.permanent,
            "exit_signal": failure.exit_signal,
            "final": is_final,
            "failed_at": datetime.now(UTC),
        }

    def _label_row(self, row: Row) -> LabelRow:
        rendition = self.item_values(row["item"], RENDITIONS.names)
        recipe = Recipe.from_json(rendition["recipe"])
        measured = {name: value for name, value in row.items() if name not in ("item", *FAILURE_COLUMNS)}
        label = {
            **{name: rendition[name] for name in _IDENTITY},
            "group_id": f"{rendition['scene_id']}/{recipe.rate}",
            "uri": rendition["uri"],
            "name": str(recipe),
            "kind": recipe.kind,
            **measured,
            "labelled_at": datetime.now(UTC),
        }
        return cast(LabelRow, label)


class LabelRecorder(RunRecorder):
    """Records a label run."""

    packages = ("kvq-batch", "ray", "av", "numpy", "pillow", "pyarrow", "deltalake", "imageio-ffmpeg")

    def __init__(self, plan: LabelPlan, tracker: LabelTracker, writer: Writer) -> None:
        inputs = RunInputs(
            job=plan.job,
            job_spec=_display_spec(plan),
            catalog_name=plan.job.name,
            catalog_root="",
            tasks=plan.renditions,
            num_videos=plan.num_references,
            planned_by_reason={"new": plan.renditions.num_rows},
        )
        super().__init__(inputs, tracker, writer)

    def _write_rows(self, rows: FinishedRows) -> None:
        self._writer.commit_labels(make_rows("labels", rows.scores), make_rows("failures", rows.failures))

    def _package_versions(self) -> list[tuple[str, str]]:
        return [*super()._package_versions(), ("ffmpeg", ffmpeg_version())]


def _display_spec(plan: LabelPlan) -> dict[str, Any]:
    """Return the job as JSON values without the signatures of its URIs."""
    spec = plan.job.model_dump(mode="json")
    spec["tables"] = display_uri(plan.job.tables)
    spec["keep"] = None if plan.job.keep is None else display_uri(plan.job.keep)
    for section, reference in zip(spec["references"], plan.job.references, strict=True):
        section["source"] = display_uri(reference.source)
    return spec
