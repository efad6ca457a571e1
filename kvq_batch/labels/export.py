"""Export of training sets from the tables: filter by SQL, thin by label, split by scene, write in one of four formats.

    parquet, csv   labels.parquet or labels.csv: one row per clip with split, label and scene; cells as .npy files
    list           train.txt, validation.txt, test.txt: `file, -1, -1, label`, as the KVQ and FAST-VQA code reads
    webdataset     SPLIT-000000.tar, ...: KEY.json, KEY.cells.npy, and the clip: its file, or its frames as KEY.npy

The rows are labels of a label job, imported opinions, or scores of a teacher model. All three have the same columns,
except the label: `raw_score` of a teacher, `mos` of the others. The column names are those of a catalog and of a label
list, so a set can be read as either. A clip without a usable label or file is an error that names it. No clip is left
out silently.

A tar shard holds whole samples. The members of a sample are adjacent and named KEY.EXTENSION. Times and owners are
zero, so the same samples give the same bytes.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kvq_batch.domain.errors import FatalError, ItemError, SpecError, shorten_list
from kvq_batch.labels.rendition_store import read_rendition
from kvq_batch.labels.training_set import SPLITS, named_splits, split_scenes, stratified
from kvq_batch.media.planes import decode_lossless
from kvq_batch.storage.errors import explain_error, foreign_errors, known_errors
from kvq_batch.storage.objects import put_file
from kvq_batch.storage.options import StorageOptions, absolute, display_uri, filesystem, join, translate_storage_errors
from kvq_batch.tables.sandbox import check_expression
from kvq_batch.tables.session import Session

SHARD_BYTES = 256 << 20
"""Size at which a tar shard is closed. One shard is held in memory."""


class SetFolder:
    """A new folder for one training set.

    Raises:
        SpecError: the folder is not empty or cannot be reached.
        FatalError: a file cannot be written.
    """

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self.uri = absolute(uri)
        self._options = options
        with translate_storage_errors(self.uri), known_errors():
            file_system, root = filesystem(self.uri, options)
            if file_system.exists(root) and file_system.find(root):
                raise SpecError(
                    f"{display_uri(self.uri)} is not empty; choose a new folder, so that two sets are not mixed"
                )

    def write(self, name: str, content: bytes) -> str:
        """Write the file `name`, which may contain folders, and return its address."""
        uri = join(self.uri, name)
        try:
            put_file(uri, content, self._options)
        except foreign_errors() as error:
            raise FatalError(f"{display_uri(uri)} cannot be written: {explain_error(error, uri)}") from error
        return uri


class TarShards:
    """Writer that collects the samples of one split into tar files `SPLIT-000000.tar`, ... below a folder."""

    def __init__(self, folder: SetFolder, split: str, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._split = split
        self._shard_bytes = shard_bytes
        self.num_shards = 0
        self._start()

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a sample, given its members by extension. WebDataset ends a key at the first dot, so a key has none."""
        if "." in key:
            raise ValueError(f"the key of a sample must not contain a dot, got {key!r}")
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))
        self._num_samples += 1
        if self._buffer.tell() >= self._shard_bytes:
            self.close()
            self._start()

    def close(self) -> None:
        """Write the last shard unless it is empty."""
        self._tar.close()
        if self._num_samples:
            self._folder.write(f"{self._split}-{self.num_shards:06d}.tar", self._buffer.getvalue())
            self.num_shards += 1

    def _start(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._num_samples = 0


def npy(array: Any) -> bytes:
    """Return the bytes of a .npy file that holds `array`."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


Target = Literal["labels", "opinions", "teacher"]

COLUMNS = (
    "video_id", "uri", "mos", "raw_score", "scene_id", "group_id", "target", "cells", "num_slots", "num_rows",
    "num_cols", "num_frames", "height_px", "width_px", "frame_rate",
)  # fmt: skip
"""First columns of a set, as far as it has them. `target` is the kind of the label, which `label_column` names.

`cells` holds the labels of the texture map's cells, flattened.
"""

VmafVersion = Literal["v0.6.1", "v1"]

_VMAF_COLUMNS: Mapping[VmafVersion, tuple[str, str]] = {"v0.6.1": ("vmaf", "cells"), "v1": ("vmaf_v1", "cells_v1")}
"""{version: columns of the label and of the cells in the labels table}"""

_LABELS = """
SELECT *, parse_filename(rendition_uri) AS file, '{vmaf}' AS target FROM labels
"""

_SELECT_LABELS = """
SELECT file AS video_id, rendition_uri AS uri, {vmaf} AS mos, scene_id, group_id, target, {cells} AS cells, num_slots,
    num_rows, num_cols, num_frames, height_px, width_px, frame_rate, content_id AS reference_content_id,
    coalesce(json_array_length(segment::JSON -> 'pre_degraded'), 0) > 0 AS is_relative,
    * EXCLUDE (file, rendition_uri, content_id, scene_id, group_id,
    target, cells, cells_v1, num_slots, num_rows, num_cols, num_frames, height_px, width_px, frame_rate, video_id, uri,
    vmaf_slots, vmaf_v1_slots, psnr_db_slots, ssim_slots)
FROM ({rows}) WHERE {where} ORDER BY video_id
"""

_OPINIONS = """
SELECT o.video_id, coalesce(o.uri, c.uri) AS uri, o.mos, o.scene_id, o.scene_id AS group_id,
    'opinion' AS target, NULL::FLOAT[] AS cells, NULL::INTEGER AS num_slots, NULL::INTEGER AS num_rows,
    NULL::INTEGER AS num_cols, NULL::INTEGER AS num_frames, NULL::INTEGER AS height_px, NULL::INTEGER AS width_px,
    NULL::DOUBLE AS frame_rate, o.dataset, o.opinion, o.scale_low, o.scale_high, o.spread, o.num_opinions
FROM opinions o LEFT JOIN catalog c USING (video_id)
"""

# A map belongs to one clip, so a video with several clips has no cells.
_TEACHER = """
SELECT s.video_id, s.uri, s.raw_score, {scene} AS scene_id, {scene} AS group_id,
    s.model_id AS target, [q * m.texture_scale + m.texture_offset FOR q IN m.texture]::FLOAT[] AS cells, m.num_slots,
    m.num_rows, m.num_cols, NULL::INTEGER AS num_frames, s.height_px, s.width_px, s.frame_rate, s.model_name,
    s.model_origin, s.content_id, s.mos AS calibrated_mos
FROM scores_latest s LEFT JOIN maps m
    ON m.video_id = s.video_id AND m.model_id = s.model_id AND m.commit_seq = s.commit_seq AND s.num_clips = 1
LEFT JOIN catalog c ON c.video_id = s.video_id
WHERE NOT s.is_stale
"""


_FEATURES = """
SELECT f.video_id, s.uri, f.content_id, f.model_name, f.model_id, f.fingerprint, f.num_features, f.num_undefined,
    f.features
FROM features_latest f JOIN scores_latest s
    ON s.video_id = f.video_id AND s.model_id = f.model_id AND s.commit_seq = f.commit_seq
WHERE NOT f.is_stale
"""


def export_features(session: Session, folder: SetFolder, where: str | None, model: str | None) -> dict[str, int]:
    """Write current features as `features.parquet`, sorted by model and video; return the number of videos by model id.

    Raises:
        SpecError: no features match.
        FatalError: the folder cannot be written.
    """
    condition = f"({check_expression(where, '--where')})" if where else "true"
    if model is not None:
        quoted = model.replace("'", "''")
        condition += f" AND (model_name = '{quoted}' OR model_id = '{quoted}')"
    rows = session.sql(f"SELECT * FROM ({_FEATURES}) WHERE {condition} ORDER BY model_name, model_id, video_id")
    if not rows.num_rows:
        raise SpecError(
            "No stored features match. Store them with --features, or with [output] features = true in the job."
        )
    content = io.BytesIO()
    pq.write_table(rows, content, compression="zstd")
    folder.write("features.parquet", content.getvalue())
    return dict(Counter(rows["model_id"].to_pylist()))


def label_column(target: Target) -> str:
    """Return the column of the label: `mos`, or `raw_score` of a teacher, which has a scale of its own."""
    return "raw_score" if target == "teacher" else "mos"


def training_rows(
    session: Session,
    target: Target,
    where: str | None,
    model: str | None,
    split_sql: str | None = None,
    vmaf: VmafVersion = "v0.6.1",
) -> pa.Table:
    """Return COLUMNS and further columns of every row that meets `where`, sorted by video.

    `split_sql` is an expression over these columns that becomes the column `split`. `vmaf` is the model of the labels
    and of their cells, for the target "labels".

    Raises:
        SpecError: DuckDB rejects the condition or the expression, or no row matches.
    """
    selected = "SELECT *" if split_sql is None else f"SELECT *, ({check_expression(split_sql, '--split-sql')}) AS split"
    condition = f"({check_expression(where, '--where')})" if where else "true"
    if target == "labels":
        measure, cells = _VMAF_COLUMNS[vmaf]
        of_labels = _LABELS.format(vmaf=measure)
        query = _SELECT_LABELS.format(vmaf=measure, cells=cells, rows=of_labels, where=condition)
        rows = session.sql(f"{selected} FROM ({query})")
        unmeasured = rows["mos"].null_count
        if unmeasured:
            raise SpecError(
                f"{unmeasured} of {rows.num_rows} labels have no VMAF {vmaf}: an older release made them, or frames "
                "are below 216x160 pixels. Run `kvq-batch labels make` again, or exclude them with --where."
            )
    elif target == "opinions":
        rows = session.sql(f"{selected} FROM ({_OPINIONS}) WHERE {condition} ORDER BY video_id")
    else:
        known = session.sql("SELECT * FROM catalog LIMIT 0").column_names
        # A catalog of renditions has the scene of each; without that column every video is its own scene.
        scene = "coalesce(c.scene_id::VARCHAR, s.video_id)" if "scene_id" in known else "s.video_id"
        asked = _TEACHER.format(scene=scene)
        if model is not None:
            condition += " AND model_name = '{}'".format(model.replace("'", "''"))
        rows = session.sql(f"{selected} FROM ({asked}) WHERE {condition} ORDER BY video_id")
        models = set(rows["target"].to_pylist())
        if len(models) > 1:
            raise SpecError(
                f"the tables hold scores of {len(models)} models ({', '.join(sorted(models))}); choose one with --model"
            )
    if rows.num_rows == 0:
        condition = "" if where is None else f" that meets {where!r}"
        raise SpecError(f"no row of {target}{condition} in these tables; make or import labels, or change the options")
    return rows


SetFormat = Literal["parquet", "csv", "list", "webdataset"]
Clips = Literal["file", "frames"]


@dataclass(frozen=True, slots=True)
class SetRequest:
    """Options of an export.

    `shares` are the shares of train, validation and test. `num_bins` thins by label; None keeps all rows.
    `split_sql` is an SQL expression that gives the split of each row and replaces the shares. A scene must be in one
    split only. `clips` is what a WebDataset sample holds of the clip: the stored file, or uint8 RGB frames. `vmaf` is
    the VMAF model of labels.
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
    vmaf: VmafVersion = "v0.6.1"


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
    rows = training_rows(session, request.target, request.where, request.model, request.split_sql, request.vmaf)
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
