"""Training sets out of the tables: chosen by SQL, thinned by score, split by scene, written in the form that is asked.

    parquet, csv   labels.parquet or labels.csv: a row a clip, with its split, its label, its scene; cells as .npy files
    list           train.txt, validation.txt, test.txt: `file, -1, -1, mos`, as the KVQ and FAST-VQA code reads
    webdataset     PART-000000.tar, ...: KEY.json, KEY.cells.npy, and the clip: its file, or its frames as KEY.npy

The label of a clip that cannot be had is refused by name; none is left out in silence. It trains nothing.
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
from kvq_batch.labels.training_rows import COLUMNS, Target, training_rows
from kvq_batch.media.planes import decode_lossless
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import Session

SetFormat = Literal["parquet", "csv", "list", "webdataset"]
Clips = Literal["file", "frames"]


@dataclass(frozen=True, slots=True)
class SetRequest:
    """What is asked of an export. `shares` are of train, validation and test; `num_bins` thins by label, None does not.

    `split` is SQL that names the split of each row instead of the shares; a source must stand in one.
    `clips` says what a WebDataset sample holds of the clip: its file as it is kept, or uint8 RGB frames.
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
    """What was written: clips and scenes by split, and what thinning left out."""

    num_clips: Mapping[str, int]
    num_scenes: Mapping[str, int]
    num_left_out: int
    files: tuple[str, ...]


def export_set(session: Session, request: SetRequest, folder: SetFolder, options: StorageOptions) -> SetSummary:
    """Writes the set into `folder`.

    Raises:
        SpecError: no such rows, labels that are no numbers, clips that are kept nowhere or cannot be read, too few
            scenes to split.
        FatalError: the folder cannot be written.
    """
    rows = training_rows(session, request.target, request.where, request.model, request.split_sql)
    _check(rows)
    num_rows = rows.num_rows
    if request.num_bins is not None:
        ids, labels = rows["video_id"].to_pylist(), rows["mos"].to_pylist()
        rows = rows.take(pa.array(stratified(ids, labels, request.num_bins, request.seed)))
    sources = rows["scene_id"].to_pylist()
    if request.split_sql is None:
        split_of = split_scenes(sources, request.shares, request.seed)
        rows = rows.append_column("split", pa.array([split_of[source] for source in sources]))
    else:
        split_of = named_splits(sources, rows["split"].to_pylist())
    files = _WRITERS[request.form](rows, request, folder, options)
    return SetSummary(
        num_clips=_in_order(Counter(rows["split"].to_pylist())),
        num_scenes=_in_order(Counter(split_of.values())),
        num_left_out=num_rows - rows.num_rows,
        files=tuple(files),
    )


def _check(rows: pa.Table) -> None:
    """Labels are numbers and clips have names and addresses."""
    for column, told in (("mos", "no label"), ("uri", "no clip: keep versions in the label job (keep = ...)")):
        missing = [row["video_id"] or row.get("label_id") for row in rows.to_pylist() if row[column] is None]
        if missing:
            raise SpecError(f"{len(missing)} rows have {told}: {shorten_list(map(str, missing), 3)}")
    labels = rows["mos"].to_numpy()
    if not np.isfinite(labels).all():
        first = rows["video_id"][int(np.flatnonzero(~np.isfinite(labels))[0])].as_py()
        raise SpecError(f"{int((~np.isfinite(labels)).sum())} labels are no finite numbers; the first is {first!r}")
    ids = Counter(rows["video_id"].to_pylist())
    twice = [video_id for video_id, count in ids.items() if count > 1]
    if twice:
        raise SpecError(
            f"{len(twice)} videos have several labels, the first {twice[0]!r}; name one data set with where"
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
    """The name, below the folder, of the file with the cells of a row; None where it has none."""
    if row["cells"] is None:
        return None
    name = f"cells/{_key(row)}.npy"
    folder.write(name, npy(_cells(row)))
    return name


def _list(rows: pa.Table, request: SetRequest, folder: SetFolder, options: StorageOptions) -> list[str]:
    files = []
    for split in SPLITS:
        listed = [row for row in rows.to_pylist() if row["split"] == split]
        if listed:
            text = "".join(f"{row['uri']}, -1, -1, {row['mos']:.10g}\n" for row in listed)
            files.append(folder.write(f"{split}.txt", text.encode()))
    return files


def _webdataset(rows: pa.Table, request: SetRequest, folder: SetFolder, options: StorageOptions) -> list[str]:
    if request.clips == "frames" and request.target != "labels":
        raise SpecError("frames are exported of versions that a label job has kept; other clips go as files")
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
    told = {name: value for name, value in row.items() if name != "cells"} | {"label": row["mos"]}
    members = {"json": json.dumps(told, default=str, sort_keys=True).encode()}
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
    """float32 [slots, rows, columns]."""
    return np.array(row["cells"], np.float32).reshape(row["num_slots"], row["num_rows"], row["num_cols"])


def _key(row: dict[str, Any]) -> str:
    """The name of a sample: its video id without what WebDataset or a file system would take for something else."""
    stem = row.get("label_id") or row["video_id"]
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in stem)


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {split: counts.get(split, 0) for split in SPLITS}


_WRITERS = {"parquet": _table, "csv": _table, "list": _list, "webdataset": _webdataset}
