"""The books of a scoring run: what came back of its (video, model) pairs, and what is ready to be committed.

A pair has its score when all clips of the video came back from the model. The ledger lives in the driver; it starts
no work and writes no table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from kvq_batch.engine.rows import ClipResult, Failure, Row, clip_row, failure_row, map_row, score_row
from kvq_batch.engine.stopping import Breaker
from kvq_batch.engine.work_tracker import Task, Work, WorkTracker, failure_of, named_columns
from kvq_batch.planning.job_models import JobModel


@dataclass(slots=True)
class Rows:
    """Finished rows, per table, as plain values."""

    maps: list[dict[str, Any]] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.scores or self.failures)


class ScoreTracker(WorkTracker):
    """The account of a run's scores: items are videos, the bits of `model_mask` are the models of the job."""

    def __init__(self, items: pa.Table, models: Sequence[JobModel], max_attempts: int, breaker: Breaker) -> None:
        super().__init__(items, max_attempts, breaker, lost_stage="decode")
        self._named = named_columns(items, ("video_id", "uri", "content_id"))
        self._models = models
        self._clips: dict[Task, dict[int, ClipResult]] = {}
        self._rows = Rows()
        self.fetch_s = 0.0
        self.decode_s = 0.0
        self.score_s_by_model = [0.0] * len(models)
        self.num_scored_by_model = [0] * len(models)

    @property
    def score_s(self) -> float:
        """Seconds that scoring workers spent on the videos that were scored."""
        return sum(self.score_s_by_model)

    @property
    def work_s(self) -> Mapping[Work, float]:
        """As `WorkTracker.work_s`; a model's, of videos that it scored."""
        names = (("score", model.ref.name) for model in self._models)
        scoring = dict(zip(names, self.score_s_by_model, strict=True))
        return {("fetch", ""): self.fetch_s, ("decode", ""): self.decode_s, **scoring}

    @property
    def busy_s(self) -> Mapping[str, float]:
        """As `WorkTracker.busy_s`: decoding, and all models together."""
        return {"decode": self.decode_s, "score": self.score_s}

    def open_items(self, attempt: int) -> pa.Table:
        """As `WorkTracker.open_items`; clips of videos whose other clips never came are forgotten."""
        self._clips.clear()
        return super().open_items(attempt)

    def add(self, results: pa.Table) -> None:
        """Takes in clips with what models said of them."""
        for row in results.to_pylist():
            self.decode_s += row["decode_s"] or 0.0
            if row["clip_index"] == 0:
                self.fetch_s += row["fetch_s"]
                self.fetched_bytes += row["size_bytes"]
            for model_index in self.open_models(row["item"], row["model_mask"]):
                self._add_pair(row, model_index)

    def fail(self, task: Task, failure: Failure) -> None:
        """As `WorkTracker.fail`; what came of its other clips is forgotten."""
        self._clips.pop(task, None)
        super().fail(task, failure)

    def take(self) -> Rows:
        """The rows that are ready, handed over once."""
        rows, self._rows = self._rows, Rows()
        rows.failures = self.take_failures()
        return rows

    def _add_pair(self, row: dict[str, Any], model_index: int) -> None:
        task = (int(row["item"]), model_index)
        if row["error"] is not None:
            self.fail(task, failure_of(row))
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
        item, model = self._item(task[0]), self._models[task[1]]
        self._rows.scores.append(score_row(item, model, clips))
        for clip in clips:
            self._rows.clips.append(clip_row(item, model, clip))
            if clip.result["maps"] is not None:
                self._rows.maps.append(map_row(item, model, clip))
        self.num_scored_by_model[task[1]] += 1
        self.score_s_by_model[task[1]] += sum(clip.result["score_s"] for clip in clips)
        self._clips.pop(task, None)
        self.close(task)

    def failure_row(self, task: Task, failure: Failure, is_final: bool) -> Row:
        """As `WorkTracker.failure_row`."""
        return failure_row(self._item(task[0]), self._models[task[1]], failure, is_final)

    def _item(self, item: int) -> Row:
        return {name: column[item].as_py() for name, column in self._named.items()}
