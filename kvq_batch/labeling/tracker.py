"""Tracks the tasks of a label run and collects the labels and failures to commit."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

import pyarrow as pa

from kvq_batch.config.recipe import Recipe
from kvq_batch.engine.rows import Failure, Row
from kvq_batch.engine.stopping import CircuitBreaker
from kvq_batch.engine.stream import FAILURE_COLUMNS
from kvq_batch.engine.work_tracker import Task, Work, WorkTracker, failure_of_row
from kvq_batch.labeling.planning import LABELS_MODEL
from kvq_batch.labeling.stream import ALGORITHM, RENDITIONS
from kvq_batch.tables.row_types import FailureRow, LabelRow

_IDENTITY = ("label_id", "video_id", "scene_id", "content_id", "segment", "recipe")


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
