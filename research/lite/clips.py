"""The versions of an exported set of labels, split as its list says, decoded once, for the baselines.

They are those that the training of a job reads, in the same order and from the same files. Nothing is scored here.
"""

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.cli.train import network_of
from kvq_batch.config.load import load_train_job
from kvq_batch.config.recipe import Recipe
from kvq_batch.config.train import TrainJob
from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.renditions import ScoredRendition
from kvq_batch.labels.training_set import LabelledVideo, read_training_set
from kvq_batch.storage.options import StorageOptions
from kvq_batch.training.dataset import build_clip_source, mix_column
from kvq_batch.training.frame_files import RenditionFiles

LIST = "labels.csv"


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """`learnt` holds the versions to train on and to choose by (its samples say which), `test` those of other sources.

    Of a test source those count that docs/model.md compares: its first segment, whole, and every distorted region.
    `recipes[i]` made the i-th version of `test`.
    """

    learnt: RenditionFiles
    test: RenditionFiles
    recipes: Sequence[Recipe]

    def indices(self, split: str) -> list[int]:
        """Return the indices of the samples of `learnt` in the split "train" or "validation"."""
        return [index for index, sample in enumerate(self.learnt.samples) if sample.split == split]


def job_for_set(path: Path, folder: Path, frames: Path) -> TrainJob:
    """The training job of a file, with the list of the set in `folder` in place of its own, and frames in `frames`."""
    job = load_train_job(path)
    data = job.data.model_dump() | {"labels": str(folder / LIST), "frames": str(frames)}
    return TrainJob.model_validate(job.model_dump() | {"data": data})


def read_set(job: TrainJob) -> LabelledSet:
    """The set of a job of `job_for_set`; what is not decoded yet is decoded.

    Raises:
        SpecError: a list, versions or labels that cannot be read, a part that is missing, or a job of whole clips.
    """
    listed, _ = read_training_set(job.data, StorageOptions.from_spec(job.storage), mix_column(job))
    parts: dict[str | None, list[LabelledVideo]] = {}
    for video in listed:
        parts.setdefault(video.split, []).append(video)
    if set(parts) != {"train", "validation", "test"}:
        found = ", ".join(sorted(map(str, parts)))
        raise SpecError(f"{job.data.labels}: its versions are of the splits {found}; export it with all three")
    made = _made(Path(job.data.labels))
    compared = [video for video in parts["test"] if made[video.video_id].is_compared]
    return LabelledSet(
        learnt=_decoded(job, parts["train"] + parts["validation"]),
        test=_decoded(job, compared),
        recipes=[made[video.video_id].recipe for video in compared],
    )


def scored(
    rows: LabelledSet, scores: NDArray[np.float64], textures: NDArray[np.float64] | None
) -> list[ScoredRendition]:
    """The versions of the test with their scores [n] and texture maps [n, row, column].

    Without textures those with a distorted region are left out, and the others have one cell, their score.
    """
    found = []
    for place, (sample, recipe) in enumerate(zip(rows.test.samples, rows.recipes, strict=True)):
        if textures is None and recipe.patches:
            continue
        score = float(scores[place])
        found.append(
            ScoredRendition(
                scene_id=sample.scene_id,
                frames_id=sample.frames_id or sample.sample_id,
                recipe=recipe,
                label=sample.label,
                cells=np.load(rows.test.cells[place]).astype(np.float64).mean(0),
                score=score,
                texture=np.full((1, 1), score) if textures is None else textures[place],
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class _Made:
    """What a version was made of: which segment of its source, and by which recipe."""

    segment: int
    recipe: Recipe

    @property
    def is_compared(self) -> bool:
        return self.segment == 0 or bool(self.recipe.patches)


def _made(path: Path) -> dict[str, _Made]:
    with path.open(newline="", encoding="utf-8") as file:
        return {
            row["video_id"]: _Made(json.loads(row["segment"])["number"], Recipe.from_json(row["recipe"]))
            for row in csv.DictReader(file)
        }


def _decoded(job: TrainJob, videos: list[LabelledVideo]) -> RenditionFiles:
    # The samples of a training are never of a test.
    named = [dataclasses.replace(video, split=None) if video.split == "test" else video for video in videos]
    source = build_clip_source(job, network_of(job), named, Path(job.out), lambda done, total: None)
    if not isinstance(source, RenditionFiles):
        raise SpecError("the job trains on whole clips; the baselines need views.slots")
    return source
