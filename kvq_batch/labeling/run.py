"""Label runs: make the renditions of a `LabelPlan` and label them. See `engine/run.py` for the generic run."""

from typing import Any

import pyarrow as pa

from kvq_batch.config.labels import RENDITIONS_PER_BLOCK
from kvq_batch.engine.executor.base import PipelineSpec, PipelineStage
from kvq_batch.engine.metrics import RunLabels
from kvq_batch.engine.observer import Observer
from kvq_batch.engine.run import DEFAULT_OPTIONS, PreparedRun, RunOptions, execute_run
from kvq_batch.engine.run_recorder import RunInputs, RunRecorder, RunSummary
from kvq_batch.engine.stopping import CircuitBreaker
from kvq_batch.engine.work_tracker import FinishedRows
from kvq_batch.labeling.planning import LABELS_MODEL, LabelPlan, label_blocks, plan_labels
from kvq_batch.labeling.tracker import LabelTracker
from kvq_batch.labeling.worker import LabelSettings, LabelWorker
from kvq_batch.media.ffmpeg import ffmpeg_version
from kvq_batch.storage.options import display_uri
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer


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

    def make_blocks(renditions: pa.Table, is_alone: bool) -> list[pa.Table]:
        return label_blocks(renditions, 1 if is_alone else RENDITIONS_PER_BLOCK)

    return PreparedRun(
        tracker=tracker,
        recorder=LabelRecorder(plan, tracker, writer),
        pipeline=PipelineSpec(job.name, [stage], job.limits.worker_timeout_s),
        make_blocks=make_blocks,
        decode=job.make,
        labels=RunLabels(job.name, [("label", LABELS_MODEL)], ("fetch", "probe", "decode", "label")),
    )


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
