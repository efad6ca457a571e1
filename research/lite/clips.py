"""Renditions of an exported label set for the baselines: those that a training job reads, from the same files."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvq_batch.cli.train import kvq_network_of, network_of, settings_of, start_files
from kvq_batch.config.load import load_train_job
from kvq_batch.config.recipe import Recipe
from kvq_batch.config.train import TrainJob
from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.renditions import ScoredRendition
from kvq_batch.labels.training_set import LabelledVideo, read_training_set
from kvq_batch.storage.options import StorageOptions
from kvq_batch.training.architectures import architecture_of
from kvq_batch.training.dataset import build_clip_source, mix_column
from kvq_batch.training.frame_files import RenditionFiles
from kvq_batch.training.measured_files import MeasuredFiles, measure_files

LIST = "labels.csv"


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Renditions of a label set: `training` has the splits train and validation, `test` the split test.

    `test` has the renditions that docs/model.md compares: those of the first segment of each reference, and all with a
    distorted region. `recipes[i]` made rendition i of `test`.
    """

    training: RenditionFiles
    test: RenditionFiles
    recipes: Sequence[Recipe]

    def indices(self, split: str) -> list[int]:
        """Return the indices of the samples of `training` in the split "train" or "validation"."""
        return [index for index, sample in enumerate(self.training.samples) if sample.split == split]


def job_for_set(path: Path, folder: Path, frames: Path) -> TrainJob:
    """Return the training job of a file, with the label list in `folder` and decoded frames in `frames`."""
    job = load_train_job(path)
    data = job.data.model_dump() | {"labels": str(folder / LIST), "frames": str(frames)}
    return TrainJob.model_validate(job.model_dump() | {"data": data})


def read_set(job: TrainJob) -> LabelledSet:
    """Return the label set of a job of `job_for_set`; decode renditions that are not decoded yet.

    Raises:
        SpecError: files or labels that cannot be read, a missing split, or a job of whole clips.
    """
    listed, _ = read_training_set(job.data, StorageOptions.from_spec(job.storage), mix_column(job))
    splits: dict[str | None, list[LabelledVideo]] = {}
    for video in listed:
        splits.setdefault(video.split, []).append(video)
    if set(splits) != {"train", "validation", "test"}:
        found = ", ".join(sorted(map(str, splits)))
        raise SpecError(f"{job.data.labels}: the splits are {found}. Export it with train, validation and test.")
    made = _made(Path(job.data.labels))
    compared = [video for video in splits["test"] if made[video.video_id].is_compared]
    return LabelledSet(
        training=_decoded(job, splits["train"] + splits["validation"]),
        test=_decoded(job, compared),
        recipes=[made[video.video_id].recipe for video in compared],
    )


def measured_sets(job: TrainJob, rows: LabelledSet) -> tuple[MeasuredFiles, MeasuredFiles]:
    """Return the training and the test renditions as the network of the job measures them."""
    config, settings = kvq_network_of(job), settings_of(job)
    tensors = architecture_of(config).initial_tensors(settings, *start_files(job))
    folder = Path(job.data.frames or job.out).absolute() / "measured"
    training, test = (
        measure_files(clips, config, tensors, folder, 1, lambda what, done, total: None)
        for clips in (rows.training, rows.test)
    )
    return training, test


def scored(
    rows: LabelledSet, scores: NDArray[np.float64], textures: NDArray[np.float64] | None
) -> list[ScoredRendition]:
    """Return the renditions of the test split with their scores [n] and texture maps [n, row, column].

    Without textures, renditions with a distorted region are omitted, and the others have one cell: their score.
    """
    found = []
    for index, (sample, recipe) in enumerate(zip(rows.test.samples, rows.recipes, strict=True)):
        if textures is None and recipe.patches:
            continue
        score = float(scores[index])
        found.append(
            ScoredRendition(
                scene_id=sample.scene_id,
                frames_id=sample.frames_id or sample.sample_id,
                recipe=recipe,
                label=sample.label,
                cells=np.load(rows.test.cells[index]).astype(np.float64).mean(0),
                score=score,
                texture=np.full((1, 1), score) if textures is None else textures[index],
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class _Made:
    """Origin of a rendition: the segment of its reference, and the recipe."""

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
    source = build_clip_source(job, network_of(job), named, Path(job.out), lambda what, done, total: None)
    if not isinstance(source, RenditionFiles):
        raise SpecError("The job trains on whole clips. Set views.slots: the baselines need it.")
    return source
