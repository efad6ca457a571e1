"""The account of a run that makes labels: versions that are open, labels and failures that are ready to be committed.

It lives in the driver; it starts no work and writes no table.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

import pyarrow as pa

from kvq_batch.config.recipe import Recipe
from kvq_batch.engine.rows import Failure, Row
from kvq_batch.engine.stopping import Breaker
from kvq_batch.engine.work_tracker import Task, Work, WorkTracker, failure_of, named_columns
from kvq_batch.labeling.label_index import LABELS_MODEL
from kvq_batch.labeling.stream import ALGORITHM, FAILURE_COLUMNS, RENDITIONS
from kvq_batch.storage.options import display_uri

_OF_A_VERSION = ("label_id", "video_id", "scene_id", "content_id", "segment", "recipe")


class LabelTracker(WorkTracker):
    """Versions to make (rows of VERSIONS), each closed by one label or one final failure."""

    def __init__(self, renditions: pa.Table, max_attempts: int, breaker: Breaker) -> None:
        super().__init__(renditions, max_attempts, breaker, lost_stage="label")
        self._named = named_columns(renditions, RENDITIONS.names)
        self._labels: list[Row] = []
        self.make_s = 0.0

    @property
    def work_s(self) -> Mapping[Work, float]:
        """As `WorkTracker.work_s`."""
        return {("label", LABELS_MODEL): self.make_s}

    @property
    def busy_s(self) -> Mapping[str, float]:
        """As `WorkTracker.busy_s`: making, which is all that its workers do."""
        return {"make": self.make_s}

    def add(self, results: pa.Table) -> None:
        """Takes in labels and failures."""
        for row in results.to_pylist():
            self.make_s += row["make_s"]
            task = (row["item"], 0)
            if not self.open_models(row["item"], 1):
                continue
            if row["error"] is not None:
                self.fail(task, failure_of(row))
                continue
            self._labels.append(self._label_row(row))
            self.close(task)

    def failure_row(self, task: Task, failure: Failure, is_final: bool) -> Row:
        """As `WorkTracker.failure_row`; the recipe stands as the model, and the label's id as the fingerprint."""
        rendition = self._rendition(task[0])
        return {
            "video_id": rendition["video_id"],
            "content_id": rendition["content_id"],
            "model_id": f"{LABELS_MODEL}@{ALGORITHM}-{rendition['label_id'][:12]}",
            "fingerprint": rendition["label_id"],
            "uri": display_uri(rendition["uri"]),
            "model_name": LABELS_MODEL,
            **asdict(failure),
            "final": is_final,
            "failed_at": datetime.now(UTC),
        }

    def take_labels(self) -> list[Row]:
        """The labels so far, handed over once."""
        rows, self._labels = self._labels, []
        return rows

    def _label_row(self, row: Row) -> Row:
        rendition = self._rendition(row["item"])
        recipe = Recipe.from_json(rendition["recipe"])
        measured = {name: value for name, value in row.items() if name not in ("item", *FAILURE_COLUMNS)}
        return {
            **{name: rendition[name] for name in _OF_A_VERSION},
            "group_id": f"{rendition['scene_id']}/{recipe.rate}",
            "uri": display_uri(rendition["uri"]),
            "name": str(recipe),
            "kind": recipe.kind,
            **measured,
            "labelled_at": datetime.now(UTC),
        }

    def _rendition(self, item: int) -> Row:
        return {name: column[item].as_py() for name, column in self._named.items()}
