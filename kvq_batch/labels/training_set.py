"""Read the videos of a training and their labels, matched by exact names.

A label without a video is an error that names it. (The published code silently takes the closest file name.)
"""

from dataclasses import dataclass
from pathlib import Path

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import read_catalog
from kvq_batch.config.job import Catalog
from kvq_batch.config.train import TrainData
from kvq_batch.domain.errors import SpecError, shorten_list
from kvq_batch.labels.files import Labels, Scale, read_labels
from kvq_batch.labels.matching import NamedVideo, match_labels
from kvq_batch.labels.splits import SPLITS
from kvq_batch.storage.options import StorageOptions, is_local


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    """A row of a training set.

    `split` is "train", "validation", "test" or None. `cells` is a file of cell labels. `pixels` names the frames that
    the video shares with other renditions, if `mix_column` was given.
    """

    video_id: str
    uri: str
    content_id: str
    label: float
    scene_id: str
    split: str | None
    cells: Path | None
    pixels: str | None = None


def read_training_set(
    data: TrainData, options: StorageOptions, mix_column: str | None = None
) -> tuple[list[LabelledVideo], str]:
    """Return every labelled video, in the order of the list, and a sentence that describes what was read.

    Raises:
        SpecError: a list or a folder cannot be read, a label is not a number or is outside the scale, a label has no
            video, or a column is missing.
    """
    labels = read_labels(data.labels, options, data.id_column, data.label_column, Scale(*data.scale))
    catalog = read_catalog(Catalog(source=data.videos), options)
    rows = {row["video_id"]: row for row in catalog.select(["video_id", "uri"]).to_pylist()}
    matching = match_labels(labels.names, [NamedVideo(video_id, row["uri"]) for video_id, row in rows.items()])
    if matching.unmatched:
        shown = shorten_list((f"{name} ({why})" for name, why in matching.unmatched), 3)
        raise SpecError(
            f"{len(matching.unmatched)} of {len(labels.names)} labels have no video in {data.videos}: {shown}; add "
            "the videos or remove these labels (similar names are not matched)"
        )
    chosen = [video_id for video_id in matching.video_of if video_id is not None]
    row_of = {video_id: row for row, video_id in enumerate(rows)}
    resolved = resolve_content_ids(catalog.take([row_of[video_id] for video_id in chosen]), options)
    scenes = _column(labels, data.scene_column, "scene_id")
    splits = _column(labels, data.split_column, "split")
    cells = _column(labels, data.cells_column, None)
    pixels = _column(labels, mix_column, None)
    found = []
    for index, row in enumerate(resolved.select(["video_id", "uri", "content_id"]).to_pylist()):
        split = splits[index] if splits else None
        if split is not None and split not in SPLITS:
            raise SpecError(
                f"{data.labels}: {row['video_id']!r} has the unknown split {split!r}; expected {', '.join(SPLITS)}"
            )
        scene = (scenes[index] if scenes else None) or row["video_id"]
        file = cells[index] if cells else None
        beside = None if file is None else _beside(data.labels, file)
        label = float(labels.values[index])
        same = pixels[index] if pixels else None
        found.append(LabelledVideo(row["video_id"], row["uri"], row["content_id"], label, scene, split, beside, same))
    return found, f"{labels.summary}; {matching.num_unlabelled} videos have no label"


def _column(labels: Labels, name: str | None, default: str | None) -> list[str | None] | None:
    """Return the values of the column `name`, or of the column `default` if the list has one; else None."""
    wanted = name or default
    values = None if wanted is None else labels.column(wanted)
    if name is not None and values is None:
        raise SpecError(f"the labels have no column {name!r}; columns: {', '.join(labels.columns) or 'none'}")
    return None if values is None else list(values)


def _beside(labels: str, file: str) -> Path:
    """Return the path of a file that a list names, relative to the list's folder."""
    if not is_local(file):
        raise SpecError(f"{file}: cell labels must be local files; copy them to this machine")
    return Path(labels).parent / file if is_local(labels) else Path(file)
