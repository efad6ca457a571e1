"""The columns of every table, in one place, because writer, planner, views and help must agree on them.

Delta has no unsigned integers, times are microseconds in UTC, and every row carries the run and the commit that wrote
it: `commit_seq` = (epoch << 32) | counter rises over all commits of all runs, so "newest" is a sort and never a
question to a clock. This module declares; it opens no table.

What a table is declared with: columns with their types and meaning, and the few that every table has.

Delta has no unsigned integers, times are microseconds in UTC, and every row carries the run and the commit that wrote
it. This module declares no table.

The columns of the tables that training sets come from: labels that were made, and opinions that were imported.

Beside the tables of scores (`schemas`), in the same style. This module declares; it opens no table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from kvq_batch.domain.errors import SpecError

TEXT, REAL, FLAG = pa.string(), pa.float64(), pa.bool_()
INT, LONG = pa.int32(), pa.int64()
TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its Arrow type, and one line that says what stands in it, with the unit."""

    name: str
    type: Any
    comment: str


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One Delta table: its columns, what it is partitioned by, and the order of rows within a part."""

    name: str
    columns: tuple[Column, ...]
    sort_by: tuple[str, ...]
    partition_by: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def arrow(self) -> Any:
        """pa.Schema with the comments as field metadata."""
        return pa.schema([pa.field(c.name, c.type, metadata={"comment": c.comment}) for c in self.columns])

    def row_columns(self) -> Any:
        """pa.Schema of the rows that a caller hands to the writer: all but `run_id` and `commit_seq`."""
        return pa.schema([pa.field(c.name, c.type) for c in self.columns if c.name not in ("run_id", "commit_seq")])


RUN_ID = Column("run_id", TEXT, "run that wrote this row")
COMMIT_SEQ = Column("commit_seq", LONG, "place of this row in the order of all commits, rising")

_REALS, _FLOATS = pa.list_(REAL), pa.list_(pa.float32())

LABELS = TableSchema(
    "labels",
    (
        Column("label_id", TEXT, "names source, bytes, segment, recipe and way of making: the same label, the same id"),
        Column("video_id", TEXT, "source file or procedural scene, unique in its job"),
        Column("scene_id", TEXT, "the scene that videos share; a training set keeps it in one split"),
        Column("group_id", TEXT, "source and rate: scene_id, a slash, and the codec step of the whole frame"),
        Column("uri", TEXT, "where the source stood, without credentials"),
        Column("content_id", TEXT, "names the bytes of the source that were read"),
        RUN_ID,
        COMMIT_SEQ,
        Column("segment", TEXT, "stretch, framing and size, as JSON"),
        Column("recipe", TEXT, "steps, patches and seed, as JSON"),
        Column("name", TEXT, "the recipe for people: h264-35, none~blur-3"),
        Column("kind", TEXT, "clean, single, chain, region or mix"),
        Column("vmaf", REAL, "mean over frames against the source, 0 to 100; no opinion of people"),
        Column("psnr_db", REAL, "mean over frames, luma, at most 60"),
        Column("ssim", REAL, "mean over frames, luma"),
        Column("vmaf_slots", _FLOATS, "VMAF of each slot, two frames each"),
        Column("psnr_db_slots", _FLOATS, "PSNR of each slot"),
        Column("ssim_slots", _FLOATS, "SSIM of each slot"),
        Column("num_slots", INT, "slots of the cells"),
        Column("num_rows", INT, "rows of cells"),
        Column("num_cols", INT, "columns of cells"),
        Column("cells", _FLOATS, "[slot, row, column] flat: VMAF in the slot of the version that stands in the cell"),
        Column("num_frames", INT, "frames of the version"),
        Column("height_px", INT, "height of the version"),
        Column("width_px", INT, "width of the version"),
        Column("frame_rate", REAL, "frames per second"),
        Column("rendition_uri", TEXT, "where the version is kept, lossless; null where it is not"),
        Column("ffmpeg", TEXT, "version of the ffmpeg that made it"),
        Column("libvmaf", TEXT, "version of the library that measured it"),
        Column("vmaf_model", TEXT, "model of VMAF"),
        Column("make_s", REAL, "seconds spent to make and measure it, what it shares with others left to the first"),
        Column("attempt", INT, "which try succeeded, from 1"),
        Column("labelled_at", TIME, "when it was made"),
    ),
    sort_by=("scene_id", "video_id", "label_id"),
)

OPINIONS = TableSchema(
    "opinions",
    (
        Column("dataset", TEXT, "name under which the opinions were imported"),
        Column("video_id", TEXT, "the video that was judged, as the catalog names it"),
        Column("scene_id", TEXT, "the scene that videos share; a training set keeps it in one split"),
        RUN_ID,
        COMMIT_SEQ,
        Column("uri", TEXT, "where the video stands, null where the file did not say"),
        Column("opinion", REAL, "mean opinion, in its own scale"),
        Column("scale_low", REAL, "the worst opinion that can be given"),
        Column("scale_high", REAL, "the best one; below scale_low where less is better"),
        Column("mos", REAL, "the opinion on 0 (worst) to 100 (best)"),
        Column("spread", REAL, "standard deviation over people, in its own scale; null where unknown"),
        Column("num_opinions", INT, "people who judged it; null where unknown"),
        Column("is_withdrawn", FLAG, "true where this row takes an earlier opinion back"),
        Column("imported_at", TIME, "when it was imported"),
    ),
    sort_by=("dataset", "video_id"),
)

COUNTER_BITS = 32
"""`commit_seq` = (epoch << COUNTER_BITS) | counter within the epoch."""

CATALOG_PREFIX = "catalog_"
"""Stands before a column of the user's catalog whose name is one of ours."""

_MODEL = pa.struct([("name", TEXT), ("model_id", TEXT), ("fingerprint", TEXT)])

_VIDEO_ID = Column("video_id", TEXT, "name of the video, unique in its catalog")
_URI = Column("uri", TEXT, "where the video stood when this row was written, without credentials")
_CONTENT_ID = Column("content_id", TEXT, "names the bytes that were read, e.g. etag:...")
_MODEL_ID = Column("model_id", TEXT, "name@version-digest of the model")
_MODEL_NAME = Column("model_name", TEXT, "name of the model in the registry")
_FINGERPRINT = Column("fingerprint", TEXT, "sha256 of everything else that changes a score")
_CLIP_INDEX = Column("clip_index", INT, "number of the clip within its video, from 0")

CATALOG = TableSchema(
    "catalog",
    (
        _VIDEO_ID,
        Column("catalog", TEXT, "name of the catalog that lists the video"),
        _URI,
        _CONTENT_ID,
        Column("size_bytes", LONG, "size of the object"),
        Column("start_s", REAL, "start of the stretch to score, seconds; null for the whole video"),
        Column("end_s", REAL, "end of the stretch to score, seconds; null for the whole video"),
        Column("in_catalog", FLAG, "false where this row records that the video left the catalog"),
        RUN_ID,
        COMMIT_SEQ,
    ),
    sort_by=("video_id",),
)

SCORES = TableSchema(
    "scores",
    (
        _VIDEO_ID,
        _URI,
        _CONTENT_ID,
        _MODEL_ID,
        _MODEL_NAME,
        Column("model_origin", TEXT, "trained, untrained or handcrafted; an untrained score is no quality"),
        _FINGERPRINT,
        RUN_ID,
        COMMIT_SEQ,
        Column("raw_score", REAL, "mean over clips of the model's score, before any calibration"),
        Column("score_spread", REAL, "population standard deviation of the score over clips"),
        Column("num_clips", INT, "clips that were scored"),
        Column("outputs", pa.map_(TEXT, REAL), "further numbers of the model by name, means over clips"),
        Column("width_px", INT, "width of the upright picture, stored pixels"),
        Column("height_px", INT, "height of the upright picture, stored pixels"),
        Column("rotation_deg", INT, "clockwise rotation that was applied: 0, 90, 180 or 270"),
        Column("sample_aspect_ratio", REAL, "width / height of one pixel"),
        Column("frame_rate", REAL, "mean frames per second"),
        Column("is_variable_frame_rate", FLAG, "whether the distance of frames varies"),
        Column("duration_s", REAL, "length of the video, seconds"),
        Column("num_frames", LONG, "frames that are truly there"),
        Column("codec", TEXT, "codec of the video stream, ffmpeg's name"),
        Column("pixel_format", TEXT, "pixel format, ffmpeg's name"),
        Column("bit_depth", INT, "bits of a sample"),
        Column("field_order", TEXT, "progressive, or which field is first"),
        Column("color_primaries", TEXT, "colour primaries, ffmpeg's name"),
        Column("color_transfer", TEXT, "transfer characteristic, ffmpeg's name"),
        Column("color_matrix", TEXT, "matrix coefficients, ffmpeg's name"),
        Column("color_range", TEXT, "tv (limited) or pc (full)"),
        Column("size_bytes", LONG, "size of the object that was read"),
        Column("decoder", TEXT, "decoder and version that made the frames"),
        Column("fetch_s", REAL, "seconds spent to fetch the object"),
        Column("fetch_attempts", INT, "times that fetching it was tried, 1 where the first went well"),
        Column("decode_s", REAL, "seconds spent to probe, decode and resize, shared by all models of the job"),
        Column("score_s", REAL, "seconds spent in the model"),
        Column("attempt", INT, "which try succeeded, from 1"),
        Column("scored_at", TIME, "when the score was computed"),
    ),
    sort_by=("video_id",),
    partition_by=("model_id",),
)

CLIPS = TableSchema(
    "clips",
    (
        _VIDEO_ID,
        _CONTENT_ID,
        _MODEL_ID,
        _FINGERPRINT,
        _CLIP_INDEX,
        RUN_ID,
        COMMIT_SEQ,
        Column("start_s", REAL, "start of the clip in the video, seconds"),
        Column("end_s", REAL, "end of the clip in the video, seconds"),
        Column("frame_indices", pa.list_(INT), "frames that the model saw, in presentation order"),
        Column("slot_start_s", pa.list_(REAL), "time of each slot's first frame in the video, seconds"),
        Column("raw_score", REAL, "the model's score of this clip"),
        Column("slot_scores", pa.list_(pa.float32()), "score of each slot, null where the model has none"),
        Column("features", pa.list_(pa.float32()), "pooled features of the model, null where not asked for"),
    ),
    sort_by=("video_id", "clip_index"),
    partition_by=("model_id",),
)

MAPS = TableSchema(
    "maps",
    (
        _VIDEO_ID,
        _CONTENT_ID,
        _MODEL_ID,
        _FINGERPRINT,
        _CLIP_INDEX,
        RUN_ID,
        COMMIT_SEQ,
        Column("num_slots", INT, "slots of the map (two frames each)"),
        Column("num_rows", INT, "rows of cells"),
        Column("num_cols", INT, "columns of cells"),
        Column("texture", pa.list_(pa.int8()), "texture, [slot, row, column] flat: q * texture_scale + texture_offset"),
        Column("texture_offset", REAL, "see texture"),
        Column("texture_scale", REAL, "see texture; 0 for a constant map"),
        Column(
            "saliency",
            pa.list_(pa.int8()),
            "saliency, [slot, row, column] flat: (q * saliency_scale + saliency_offset) squared",
        ),
        Column("saliency_offset", REAL, "see saliency"),
        Column("saliency_scale", REAL, "see saliency; 0 for a constant map"),
    ),
    sort_by=("video_id", "clip_index"),
    partition_by=("model_id",),
)

FAILURES = TableSchema(
    "failures",
    (
        _VIDEO_ID,
        _URI,
        _CONTENT_ID,
        _MODEL_ID,
        _MODEL_NAME,
        _FINGERPRINT,
        RUN_ID,
        COMMIT_SEQ,
        Column("attempt", INT, "which try failed, from 1"),
        Column("stage", TEXT, "fetch, probe, decode, score or label"),
        Column("error", TEXT, "stable name of the failure, to group by"),
        Column("message", TEXT, "what was wrong, for people"),
        Column("exit_signal", TEXT, "signal that ended the child process, null where none did"),
        Column("final", FLAG, "true where this run will not try again"),
        Column("permanent", FLAG, "true where the bytes are to blame: not tried again until they change"),
        Column("failed_at", TIME, "when it failed"),
    ),
    sort_by=("video_id",),
)

MODELS = TableSchema(
    "models",
    (
        _MODEL_ID,
        _MODEL_NAME,
        Column("version", TEXT, "version of the model"),
        Column("origin", TEXT, "trained, untrained or handcrafted"),
        Column("digest", TEXT, "sha256 of weights and configuration"),
        Column("summary", TEXT, "what the model is"),
        Column("training_data", TEXT, "what it was trained on"),
        Column("licence", TEXT, "licence of the weights"),
        Column("calibration", TEXT, "name of the calibration of this row; null for the bare card"),
        Column("b1", REAL, "mos = b2 + (b1 - b2) / (1 + exp(-(raw_score - b3) / |b4|))"),
        Column("b2", REAL, "see b1"),
        Column("b3", REAL, "see b1"),
        Column("b4", REAL, "see b1"),
        Column("is_default", FLAG, "whether `mos` uses this calibration"),
        RUN_ID,
        COMMIT_SEQ,
        Column("added_at", TIME, "when this row was added"),
    ),
    sort_by=("model_id",),
)

RUNS = TableSchema(
    "runs",
    (
        RUN_ID,
        COMMIT_SEQ,
        Column("job", TEXT, "name of the job"),
        Column("job_spec", TEXT, "the whole job as JSON"),
        Column("catalog", TEXT, "name of the catalog"),
        Column("catalog_root", TEXT, "root below which the catalog's ids are unique"),
        Column("state", TEXT, "running, finished, stopped, failed, or died: its process ended without a word"),
        Column("models", pa.list_(_MODEL), "models of the run: name, model_id, fingerprint"),
        Column("num_videos", LONG, "videos of the catalog"),
        Column("num_planned", LONG, "(video, model) pairs that the run set out to score"),
        Column("planned_by_reason", pa.map_(TEXT, LONG), "the same by reason"),
        Column("num_scored", LONG, "pairs that got a score"),
        Column("num_failed", LONG, "pairs that failed for good in this run"),
        Column("num_remaining", LONG, "pairs that a stopped run did not reach"),
        Column("num_removed", LONG, "videos that had left the catalog"),
        Column("max_repeated", LONG, "of a run that died: results it may have made that are made again"),
        Column("started_at", TIME, "when the run began"),
        Column("finished_at", TIME, "when it ended; null while it runs"),
        Column("seconds", REAL, "how long it took"),
        Column("startup_s", REAL, "seconds of these before its first result"),
        Column("decode_work_s", REAL, "seconds that its decoding workers were at work, together"),
        Column("score_work_s", pa.map_(TEXT, REAL), "seconds that the scoring workers of each model were at work"),
        Column("num_scored_by_model", pa.map_(TEXT, LONG), "pairs that got a score, by model"),
        Column("core_hours", REAL, "CPU cores held by its workers, times hours"),
        Column("gpu_hours", REAL, "GPUs held by its workers, times hours"),
        Column("cost", REAL, "cost of these by the job's prices; null where it has none"),
        Column("currency", TEXT, "currency of the cost"),
        Column("expected_s", REAL, "how long its plan expected it to take; null where no earlier run could tell"),
        Column("expected_core_hours", REAL, "core-hours that its plan expected"),
        Column("expected_gpu_hours", REAL, "GPU-hours that its plan expected"),
        Column("expected_cost", REAL, "cost that its plan expected"),
        Column("versions", pa.map_(TEXT, TEXT), "versions of libraries, machine and code"),
        Column("message", TEXT, "why it stopped or failed, empty otherwise"),
    ),
    sort_by=("run_id",),
)

TABLES: tuple[TableSchema, ...] = (CATALOG, SCORES, CLIPS, MAPS, FAILURES, MODELS, RUNS, LABELS, OPINIONS)

ADDED_TABLES = frozenset({"labels", "opinions"})
"""Tables that earlier versions did not make: one that is missing has no rows, and the next run makes it."""

RETRY_REQUESTED = "retry_requested"
"""`error` of a row of `failures` that is none: somebody asks for another try of this identity, whose older failures
then no longer keep it out of a plan."""

DATA_TABLES: tuple[str, ...] = ("maps", "clips", "failures", "scores")
"""The order in which one batch commits: a score is the last thing that becomes visible."""

RESULT_TABLES: tuple[str, ...] = (*DATA_TABLES, "labels")
"""What runs are made for: a writer that was overtaken is refused by each of these."""


def find_schema(name: str) -> TableSchema:
    """The schema of the table `name`. Raises: SpecError where there is no such table."""
    for schema in TABLES:
        if schema.name == name:
            return schema
    raise SpecError(f"there is no table {name!r}; there are {', '.join(s.name for s in TABLES)}")


def make_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """pa.Table of rows for the writer; a column that a row leaves out is null there, a map column takes a mapping.

    Raises: ValueError for a key that is no column: it would be dropped in silence.
    """
    schema = find_schema(name).row_columns()
    unknown = {key for row in rows for key in row}.difference(schema.names)
    if unknown:
        raise ValueError(f"table {name!r} has no column {', '.join(sorted(unknown))}")
    maps = [field.name for field in schema if pa.types.is_map(field.type)]
    plain = []
    for row in rows:
        items = {key: list(row[key].items()) for key in maps if isinstance(row.get(key), Mapping)}
        plain.append({**row, **items})
    return pa.Table.from_pylist(plain, schema=schema)
