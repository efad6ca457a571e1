"""Training sets: read their videos with labels, split them by scene, thin them by label.

A label without a video is an error that names it. Splits and thinning use hashes of names, so the same seed always
gives the same result, and a new scene moves few others.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import read_catalog
from kvq_batch.config.job import Catalog
from kvq_batch.config.train import TrainData
from kvq_batch.domain.errors import SpecError, shorten_list
from kvq_batch.labels.files import Labels, NamedVideo, Scale, match_labels, read_labels
from kvq_batch.storage.options import StorageOptions, is_local

SPLITS = ("train", "validation", "test")


def parse_shares(text: str) -> dict[str, float]:
    """Parse shares of train, validation and test such as "80/10/10"; the result adds up to 1.

    Raises:
        SpecError: not three numbers, a number below 0, or no share for train.
    """
    try:
        splits = [float(split) for split in text.split("/")]
    except ValueError:
        splits = []
    if len(splits) != len(SPLITS) or min(splits) < 0 or not splits[0] > 0 or sum(splits) == float("inf"):
        raise SpecError(f"Invalid split {text!r}: expected the shares of {', '.join(SPLITS)}, such as 80/10/10")
    return {name: split / sum(splits) for name, split in zip(SPLITS, splits, strict=True)}


def split_scenes(scenes: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Return the split of each scene; every split with a share gets at least one scene.

    Raises:
        SpecError: there are fewer scenes than splits with a share.
    """
    names = sorted(set(scenes), key=lambda scene: _hash(seed, scene))
    wanted = [split for split in SPLITS if shares[split] > 0]
    if len(names) < len(wanted):
        raise SpecError(
            f"{len(names)} scene(s) cannot be split into {', '.join(wanted)}: a scene is in one split only; "
            "add scenes, or leave a split out (100/0/0)"
        )
    counts = {split: max(1, round(shares[split] * len(names))) for split in wanted}
    while sum(counts.values()) != len(names):
        # Correct the rounding in the largest split, where it changes the share least.
        largest = max(counts, key=lambda split: counts[split])
        counts[largest] += 1 if sum(counts.values()) < len(names) else -1
    splits = [split for split in reversed(wanted) for _ in range(counts[split])]
    return dict(zip(names, splits, strict=True))


def named_splits(scenes: Sequence[str], splits: Sequence[str | None]) -> dict[str, str]:
    """Return the split of each scene, given the scene and the split of each row.

    Raises:
        SpecError: an unknown split, or a scene in two splits.
    """
    found: dict[str, str] = {}
    for scene, split in zip(scenes, splits, strict=True):
        if split not in SPLITS:
            raise SpecError(f"scene {scene!r} has the unknown split {split!r}; expected {', '.join(SPLITS)}")
        if found.setdefault(scene, split) != split:
            raise SpecError(f"scene {scene!r} is in {found[scene]} and in {split}; a scene must be in one split only")
    return found


def stratified(keys: Sequence[str], values: Sequence[float], num_bins: int, seed: int) -> list[int]:
    """Return the indices of the rows to keep, ascending. No range of values keeps more than an even share.

    There are `num_bins` ranges of equal width. `keys` are the names of the rows; their hashes decide which rows of a
    crowded range are kept.
    """
    low, high = min(values, default=0.0), max(values, default=0.0)
    width = (high - low) / num_bins or 1.0
    bins: dict[int, list[int]] = {}
    for index, value in enumerate(values):
        bins.setdefault(min(num_bins - 1, int((value - low) / width)), []).append(index)
    most = -(-len(values) // num_bins)
    return sorted(
        index for indices in bins.values() for index in sorted(indices, key=lambda i: _hash(seed, keys[i]))[:most]
    )


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


@dataclass(frozen=True, slots=True)
class LabelledVideo:
    """A row of a training set.

    `split` is "train", "validation", "test" or None. `cells` is a file of cell labels. `pixels` names the frames that
    the video shares with other renditions, if `mix_column` was given, and `level` its level of a ladder, if
    `data.level_column` is set. `is_relative` is true if the label compares with renditions of the same frames only.
    `further_labels` has the values of `data.calibration_columns`.
    """

    video_id: str
    uri: str
    content_id: str
    label: float
    scene_id: str
    split: str | None
    cells: Path | None
    pixels: str | None = None
    level: str | None = None
    is_relative: bool = False
    further_labels: Mapping[str, float] = field(default_factory=dict)


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
    levels = _column(labels, data.level_column, None)
    relative = _column(labels, data.relative_column, None)
    further = {name: _numbers(labels, name, data) for name in data.calibration_columns}
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
        level = levels[index] if levels else None
        ids = row["video_id"], row["uri"], row["content_id"]
        is_relative = _is_true(relative[index], row["video_id"], data) if relative else False
        others = {name: values[index] for name, values in further.items()}
        found.append(LabelledVideo(*ids, label, scene, split, beside, same, level, is_relative, others))
    return found, f"{labels.summary}; {matching.num_unlabelled} videos have no label"


def _column(labels: Labels, name: str | None, default: str | None) -> list[str | None] | None:
    """Return the values of the column `name`, or of the column `default` if the list has one; else None."""
    wanted = name or default
    values = None if wanted is None else labels.column(wanted)
    if name is not None and values is None:
        raise SpecError(f"the labels have no column {name!r}; columns: {', '.join(labels.columns) or 'none'}")
    return None if values is None else list(values)


def _is_true(text: str | None, video: str, data: TrainData) -> bool:
    if text is None or text.lower() not in ("true", "false", "1", "0"):
        raise SpecError(
            f"{data.labels}: column {data.relative_column!r} of {video!r} is {text!r}, expected true or false"
        )
    return text.lower() in ("true", "1")


def _numbers(labels: Labels, name: str, data: TrainData) -> list[float]:
    """Return the values of a column of further labels, all of them numbers in the scale."""
    low, high = data.scale
    found = []
    for video, text in zip(labels.names, _column(labels, name, None) or (), strict=True):
        try:
            value = float(text or "")
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise SpecError(
                f"{data.labels}: column {name!r} of {video!r} is {text!r}, expected a number from {low:g} to {high:g}"
            )
        found.append(value)
    return found


def _beside(labels: str, file: str) -> Path:
    """Return the path of a file that a list names, relative to the list's folder."""
    if not is_local(file):
        raise SpecError(f"{file}: cell labels must be local files; copy them to this machine")
    return Path(labels).parent / file if is_local(labels) else Path(file)
