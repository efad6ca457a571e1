"""Tracks the tasks of a scoring run and collects the rows to commit.

A task has its score when all clips of the video came back from the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from kvq_batch.engine.rows import ClipResult, Failure, clip_row, failure_row, map_row, score_row
from kvq_batch.engine.stopping import CircuitBreaker
from kvq_batch.engine.work_tracker import Task, Work, WorkTracker, failure_of_row
from kvq_batch.planning.job_models import JobModel
from kvq_batch.tables.row_types import FailureRow

_ITEM_COLUMNS = ("video_id", "uri", "content_id")


class ScoreTracker(WorkTracker):
    """Tracks scores: items are videos, the bits of `model_mask` are the models of the job."""

    def __init__(self, items: pa.Table, models: Sequence[JobModel], max_attempts: int, breaker: CircuitBreaker) -> None:
        super().__init__(items, max_attempts, breaker, lost_stage="decode")
        self._models = models
        self._clips: dict[Task, dict[int, ClipResult]] = {}
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
        self._clips.clear()
        return super().open_items(attempt)

    def add(self, results: pa.Table) -> None:
        """Add clips with the results of the models."""
        for row in results.to_pylist():
            self.decode_s += row["decode_s"] or 0.0
            if row["clip_index"] == 0:
                self.fetch_s += row["fetch_s"]
                self.fetched_bytes += row["size_bytes"]
            for model_index in self.open_models(row["item"], row["model_mask"]):
                self._add_task(row, model_index)

    def fail(self, task: Task, failure: Failure) -> None:
        """See `WorkTracker.fail`; discards the results of the video's other clips."""
        self._clips.pop(task, None)
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
        if result is None:
            return
        if result["error"] is not None:
            self.fail(task, Failure(row["attempt"], "score", result["error"], result["message"], False))
            return
        clips = self._clips.setdefault(task, {})
        clips[row["clip_index"]] = ClipResult(row, result, self._models[model_index].request)
        if len(clips) == row["num_clips"]:
            self._score(task, [clips[index] for index in sorted(clips)])

    def _score(self, task: Task, clips: Sequence[ClipResult]) -> None:
        item, model = self.item_values(task[0], _ITEM_COLUMNS), self._models[task[1]]
        self._rows.scores.append(score_row(item, model, clips))
        for clip in clips:
            self._rows.clips.append(clip_row(item, model, clip))
            if clip.result["maps"] is not None:
                self._rows.maps.append(map_row(item, model, clip))
        self.num_scored_by_model[task[1]] += 1
        self.score_s_by_model[task[1]] += sum(clip.result["score_s"] for clip in clips)
        self._clips.pop(task, None)
        self.close(task)
