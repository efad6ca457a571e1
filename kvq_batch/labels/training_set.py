"""The videos of a training and their labels, matched by exact names; what does not match is refused by name.

The published code takes the file of the closest name in silence; nothing here resembles that. This module decodes
nothing, and decides no split.
"""

from dataclasses import dataclass
from pathlib import Path

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import read_catalog
from kvq_batch.config.job import Catalog
from kvq_batch.config.train import TrainData
from kvq_batch.domain.errors import SpecError, shorten_list
from kvq_batch.labels.files import Labels, Scale, read_labels
from kvq_batch.labels.matching import Video, match_labels
from kvq_batch.storage.options import StorageOptions, is_local

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    """One row of a training set; `part` is "train", "validation", "test" or None, `cells` a file of cell labels.

    `pixels` names the frames that it shares with other versions, where `mix_column` was asked for.
    """

    video_id: str
    uri: str
    content_id: str
    label: float
    scene_id: str
    part: str | None
    cells: Path | None
    pixels: str | None = None


def read_training_set(
    data: TrainData, options: StorageOptions, mix_column: str | None = None
) -> tuple[list[LabelledVideo], str]:
    """Every labelled video, in the list's order, and a sentence about what was taken for what.

    Raises:
        SpecError: a list or a folder that cannot be read, a label that is no number or outside the scale, a label
            without its video, a column that is not there.
    """
    labels = read_labels(data.labels, options, data.id_column, data.label_column, Scale(*data.scale))
    catalog = read_catalog(Catalog(source=data.videos), options)
    rows = {row["video_id"]: row for row in catalog.select(["video_id", "uri"]).to_pylist()}
    matching = match_labels(labels.names, [Video(video_id, row["uri"]) for video_id, row in rows.items()])
    if matching.unmatched:
        shown = shorten_list((f"{name} ({why})" for name, why in matching.unmatched), 3)
        raise SpecError(
            f"{len(matching.unmatched)} of {len(labels.names)} labels have no video in {data.videos}: {shown}; bring "
            "the videos, or leave these labels out: no other video is taken for one"
        )
    chosen = [video_id for video_id in matching.video_of if video_id is not None]
    places = {video_id: place for place, video_id in enumerate(rows)}
    resolved = resolve_content_ids(catalog.take([places[video_id] for video_id in chosen]), options)
    sources = _column(labels, data.scene_column, "scene_id")
    parts = _column(labels, data.split_column, "split")
    cells = _column(labels, data.cells_column, None)
    pixels = _column(labels, mix_column, None)
    found = []
    for place, row in enumerate(resolved.select(["video_id", "uri", "content_id"]).to_pylist()):
        part = parts[place] if parts else None
        if part is not None and part not in _SPLITS:
            raise SpecError(f"{data.labels}: {row['video_id']!r} is of split {part!r}; expected {', '.join(_SPLITS)}")
        source = (sources[place] if sources else None) or row["video_id"]
        file = cells[place] if cells else None
        beside = None if file is None else _beside(data.labels, file)
        label = float(labels.values[place])
        same = pixels[place] if pixels else None
        found.append(LabelledVideo(row["video_id"], row["uri"], row["content_id"], label, source, part, beside, same))
    return found, f"{labels.summary}; {matching.num_unlabelled} videos have no label"


def _column(labels: Labels, name: str | None, default: str | None) -> list[str | None] | None:
    """The values of a column that the job names, or of the default where the list has it."""
    wanted = name or default
    values = None if wanted is None else labels.column(wanted)
    if name is not None and values is None:
        raise SpecError(f"the labels have no column {name!r}; there are {', '.join(labels.columns) or 'none'}")
    return None if values is None else list(values)


def _beside(labels: str, file: str) -> Path:
    """A file that a list names, from the list's own folder."""
    if not is_local(file):
        raise SpecError(f"{file}: cell labels are read from this machine's disks; copy them here")
    return Path(labels).parent / file if is_local(labels) else Path(file)
