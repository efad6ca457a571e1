"""Export of training sets from the tables: filter by SQL, thin by label, split by scene, write in one of four formats.

    parquet, csv   labels.parquet or labels.csv: one row per clip with split, label and scene; cells as .npy files
    list           train.txt, validation.txt, test.txt: `file, -1, -1, label`, as the KVQ and FAST-VQA code reads
    webdataset     SPLIT-000000.tar, ...: KEY.json, KEY.cells.npy, and the clip: its file, or its frames as KEY.npy

A clip without a usable label or file is an error that names it. No clip is left out silently.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kvq_batch.domain.errors import ItemError, SpecError, shorten_list
from kvq_batch.labels.rendition_store import read_rendition
from kvq_batch.labels.splits import SPLITS, named_splits, split_scenes, stratified
from kvq_batch.labels.tar_shards import SetFolder, TarShards, npy
from kvq_batch.labels.training_rows import COLUMNS, Target, label_column, training_rows
from kvq_batch.media.planes import decode_lossless
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import Session

SetFormat = Literal["parquet", "csv", "list", "webdataset"]
Clips = Literal["file", "frames"]


@dataclass(frozen=True, slots=True)
class SetRequest:
    """Options of an export.

    `shares` are the shares of train, validation and test. `num_bins` thins by label; None keeps all rows.
    `split_sql` is an SQL expression that gives the split of each row and replaces the shares. A scene must be in one
    split only. `clips` is what a WebDataset sample holds of the clip: the stored file, or uint8 RGB frames.
    """

    target: Target
    form: SetFormat
    shares: Mapping[str, float]
    where: str | None = None
    model: str | None = None
    num_bins: int | None = None
    seed: int = 0
    clips: Clips = "file"
    split_sql: str | None = None


@dataclass(frozen=True, slots=True)
class SetSummary:
    """Numbers of clips and scenes by split, the number of clips left out by thinning, and the files written."""

    num_clips: Mapping[str, int]
    num_scenes: Mapping[str, int]
    num_left_out: int
    files: tuple[str, ...]


def export_set(session: Session, request: SetRequest, folder: SetFolder, options: StorageOptions) -> SetSummary:
    """Write the set into `folder` and return what was written.

    Raises:
        SpecError: no rows match, a label is not a number, a clip is not stored or cannot be read, or there are too few
            scenes to split.
        FatalError: the folder cannot be written.
    """
    rows = training_rows(session, request.target, request.where, request.model, request.split_sql)
    label = label_column(request.target)
    _check(rows, label)
    num_rows = rows.num_rows
    if request.num_bins is not None:
        ids, labels = rows["video_id"].to_pylist(), rows[label].to_pylist()
        rows = rows.take(pa.array(stratified(ids, labels, request.num_bins, request.seed)))
    scenes = rows["scene_id"].to_pylist()
    if request.split_sql is None:
        split_of = split_scenes(scenes, request.shares, request.seed)
        rows = rows.append_column("split", pa.array([split_of[scene] for scene in scenes]))
    else:
        split_of = named_splits(scenes, rows["split"].to_pylist())
    files = _WRITERS[request.form](rows, request, folder, options)
    return SetSummary(
        num_clips=_in_order(Counter(rows["split"].to_pylist())),
        num_scenes=_in_order(Counter(split_of.values())),
        num_left_out=num_rows - rows.num_rows,
        files=tuple(files),
    )


def _check(rows: pa.Table, label: str) -> None:
    """Check that every row has a finite label, a clip, and an id that no other row has."""
    for column, problem in ((label, "no label"), ("uri", "no clip: set `keep` in the label job to store renditions")):
        missing = [row["video_id"] or row.get("label_id") for row in rows.to_pylist() if row[column] is None]
        if missing:
            raise SpecError(f"{len(missing)} rows have {problem}: {shorten_list(map(str, missing), 3)}")
    labels = rows[label].to_numpy()
    if not np.isfinite(labels).all():
        first = rows["video_id"][int(np.flatnonzero(~np.isfinite(labels))[0])].as_py()
        raise SpecError(f"{int((~np.isfinite(labels)).sum())} labels are not finite numbers; the first is {first!r}")
    ids = Counter(rows["video_id"].to_pylist())
    twice = [video_id for video_id, count in ids.items() if count > 1]
    if twice:
        raise SpecError(
            f"{len(twice)} videos have several labels, the first {twice[0]!r}; select one data set with --where"
        )


def _table(rows: pa.Table, request: SetRequest, folder: SetFolder, options: StorageOptions) -> list[str]:
    cells = [_write_cells(row, folder) for row in rows.to_pylist()]
    kept = [name for name in (*COLUMNS, *rows.column_names) if name in rows.column_names and name != "cells"]
    table = rows.select(list(dict.fromkeys(kept))).append_column("cells", pa.array(cells, pa.string()))
    content = io.BytesIO()
    if request.form == "parquet":
        pq.write_table(table, content, compression="zstd")
    else:
        pyarrow.csv.write_csv(table, content)
    return [folder.write(f"labels.{request.form}", content.getvalue())]


def _write_cells(row: dict[str, Any], folder: SetFolder) -> str | None:
    """Write the cells of a row and return the file's name relative to the folder; None if the row has no cells."""
    if row["cells"] is None:
        return None
    name = f"cells/{_key(row)}.npy"
    folder.write(name, npy(_cells(row)))
    return name


def _list(rows: pa.Table, request: SetRequest, folder: SetFolder, options: StorageOptions) -> list[str]:
    files, label = [], label_column(request.target)
    for split in SPLITS:
        listed = [row for row in rows.to_pylist() if row["split"] == split]
        if listed:
            text = "".join(f"{row['uri']}, -1, -1, {row[label]:.10g}\n" for row in listed)
            files.append(folder.write(f"{split}.txt", text.encode()))
    return files


def _webdataset(rows: pa.Table, request: SetRequest, folder: SetFolder, options: StorageOptions) -> list[str]:
    if request.clips == "frames" and request.target != "labels":
        raise SpecError("frames can be exported only for stored renditions of a label job; use --clips file")
    files = []
    for split in SPLITS:
        shards = TarShards(folder, split)
        for row in rows.to_pylist():
            if row["split"] == split:
                shards.add(_key(row), _members(row, request, options))
        shards.close()
        files += [f"{folder.uri}/{split}-{number:06d}.tar" for number in range(shards.num_shards)]
    return files


def _members(row: dict[str, Any], request: SetRequest, options: StorageOptions) -> dict[str, bytes]:
    label = row[label_column(request.target)]
    values = {name: value for name, value in row.items() if name != "cells"} | {"label": label}
    members = {"json": json.dumps(values, default=str, sort_keys=True).encode()}
    try:
        clip = read_rendition(row["uri"], options)
        if request.clips == "file":
            extension = row["uri"].partition("?")[0].rpartition(".")[2].lower()
            members[extension] = clip
        else:
            rate = Fraction(row["frame_rate"]).limit_denominator(1001)
            members["npy"] = npy(decode_lossless(clip, row["height_px"], row["width_px"], rate).to_rgb())
    except ItemError as error:
        raise SpecError(f"clip {row['video_id']!r} cannot be exported: {error}") from error
    if row["cells"] is not None:
        members["cells.npy"] = npy(_cells(row))
    return members


def _cells(row: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the cells as float32 [slots, rows, columns]."""
    return np.array(row["cells"], np.float32).reshape(row["num_slots"], row["num_rows"], row["num_cols"])


def _key(row: dict[str, Any]) -> str:
    """Return the key of a sample: its id, with characters replaced that WebDataset or a file system would interpret."""
    stem = row.get("label_id") or row["video_id"]
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in stem)


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {split: counts.get(split, 0) for split in SPLITS}


_WRITERS = {"parquet": _table, "csv": _table, "list": _list, "webdataset": _webdataset}
