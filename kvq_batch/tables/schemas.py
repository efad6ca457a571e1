"""Schemas of all tables: columns, types, sort order and partitions.

The writer, the planner, the views and `query --views` read them from here. Delta has no unsigned integers. Times are
microseconds in UTC. Each row has the `run_id` and `commit_seq` of the commit that wrote it. `commit_seq` is
(epoch << 32) | counter and rises over all commits of all runs, so the newest row is found by sorting, without a clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from kvq_batch.domain.errors import SpecError

FORMAT_VERSION = 2
"""Version of the table format that this release reads and writes. Raise it when a column or table is renamed, or its
meaning changes; a new nullable column or a new table does not need it.

Version 1 (before 0.1.0) had other names: num_not_reached, num_departed, source_id, version_uri, state 'died'."""

COUNTER_BITS = 32
"""`commit_seq` = (epoch << COUNTER_BITS) | counter within the epoch."""

CATALOG_PREFIX = "catalog_"
"""Added to the name of a user's catalog column that has the name of a column of ours."""

RETRY_REQUESTED = "retry_requested"
"""`error` of a row of `failures` that is a request and not a failure: `failures retry` adds it, and older failures of
the same identity then no longer keep the task out of a plan."""

TEXT, REAL, FLAG = pa.string(), pa.float64(), pa.bool_()
INT, LONG = pa.int32(), pa.int64()
TIME = pa.timestamp("us", tz="UTC")
_REALS, _FLOATS, _INTS, _BYTES = pa.list_(REAL), pa.list_(pa.float32()), pa.list_(INT), pa.list_(pa.int8())
_PERCENTS = pa.map_(TEXT, _BYTES)
_MODEL = pa.struct([("name", TEXT), ("model_id", TEXT), ("fingerprint", TEXT)])


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its Arrow type, and a description in one line, with the unit.

    Columns of views (`views.describe_views`) have the name of DuckDB's type instead of an Arrow type.
    """

    name: str
    type: pa.DataType | str
    comment: str


@dataclass(frozen=True, slots=True)
class TableSchema:
    """Schema of one Delta table: columns, partition columns, and the sort order of rows within a data file."""

    name: str
    columns: tuple[Column, ...]
    sort_by: tuple[str, ...]
    partition_by: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def arrow(self) -> pa.Schema:
        """Return the Arrow schema, with descriptions as field metadata."""
        return pa.schema([pa.field(c.name, c.type, metadata={"comment": c.comment}) for c in self.columns])

    def row_schema(self) -> pa.Schema:
        """Return the schema of rows passed to the writer: all columns except `run_id` and `commit_seq`."""
        return pa.schema([pa.field(c.name, c.type) for c in self.columns if c.name not in ("run_id", "commit_seq")])


_RUN_ID = Column("run_id", TEXT, "run that wrote this row")
_COMMIT_SEQ = Column("commit_seq", LONG, "sequence number of the commit that wrote this row, rising over all runs")
_VIDEO_ID = Column("video_id", TEXT, "id of the video, unique in its catalog")
_URI = Column("uri", TEXT, "address of the video when this row was written, without credentials")
_CONTENT_ID = Column("content_id", TEXT, "change token of the bytes that were read, e.g. etag:...")
_MODEL_ID = Column("model_id", TEXT, "name@version-digest of the model")
_MODEL_NAME = Column("model_name", TEXT, "name of the model in the registry")
_FINGERPRINT = Column("fingerprint", TEXT, "sha256 of all settings that change a score")
_CLIP_INDEX = Column("clip_index", INT, "index of the clip in its video, from 0")
_SCENE_ID = Column("scene_id", TEXT, "scene shared by several videos; a training set keeps it in one split")

CATALOG = TableSchema(
    "catalog",
    (
        _VIDEO_ID,
        Column("catalog", TEXT, "name of the catalog that lists the video"),
        _URI,
        _CONTENT_ID,
        Column("size_bytes", LONG, "size of the object"),
        Column("start_s", REAL, "start of the segment to score, seconds; null for the whole video"),
        Column("end_s", REAL, "end of the segment to score, seconds; null for the whole video"),
        Column("in_catalog", FLAG, "false if this row records that the video was removed from the catalog"),
        _RUN_ID,
        _COMMIT_SEQ,
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
        Column("model_origin", TEXT, "trained, untrained or handcrafted; scores of untrained models mean nothing"),
        _FINGERPRINT,
        _RUN_ID,
        _COMMIT_SEQ,
        Column("raw_score", REAL, "score of the model, mean over clips, without calibration"),
        Column("score_spread", REAL, "population standard deviation of the score over clips"),
        Column("num_clips", INT, "number of scored clips"),
        Column("outputs", pa.map_(TEXT, REAL), "other outputs of the model by name, means over clips"),
        Column("width_px", INT, "width after cropping and rotation, stored pixels"),
        Column("height_px", INT, "height after cropping and rotation, stored pixels"),
        Column("rotation_deg", INT, "clockwise rotation that was applied: 0, 90, 180 or 270"),
        Column("is_mirrored", FLAG, "whether the picture was mirrored left to right, before the rotation"),
        Column("sample_aspect_ratio", REAL, "width / height of one pixel"),
        Column("frame_rate", REAL, "mean frames per second"),
        Column("is_variable_frame_rate", FLAG, "whether the time between frames varies"),
        Column("duration_s", REAL, "duration of the video, seconds"),
        Column("num_frames", LONG, "number of frames in the file, counted"),
        Column("codec", TEXT, "codec of the video stream, name of ffmpeg"),
        Column("pixel_format", TEXT, "pixel format, name of ffmpeg"),
        Column("bit_depth", INT, "bits per sample"),
        Column("field_order", TEXT, "progressive, or which field is first"),
        Column("color_primaries", TEXT, "colour primaries, name of ffmpeg"),
        Column("color_transfer", TEXT, "transfer characteristic, name of ffmpeg"),
        Column("color_matrix", TEXT, "matrix coefficients, name of ffmpeg"),
        Column("color_range", TEXT, "tv (limited) or pc (full)"),
        Column("size_bytes", LONG, "size of the object that was read"),
        Column("decoder", TEXT, "decoder that made the frames, with its version"),
        Column("fetch_s", REAL, "time to fetch the object, seconds"),
        Column("fetch_attempts", INT, "attempts to fetch the object, 1 if the first succeeded"),
        Column("decode_s", REAL, "time to probe, decode and resize, seconds; shared by all models of the job"),
        Column("score_s", REAL, "time in the model, seconds"),
        Column("score_cores", REAL, "cores of the worker of the model; null in older rows"),
        Column("attempt", INT, "attempt that succeeded, from 1"),
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
        _RUN_ID,
        _COMMIT_SEQ,
        Column("start_s", REAL, "start of the clip in the video, seconds"),
        Column("end_s", REAL, "end of the clip in the video, seconds"),
        Column("frame_indices", _INTS, "frames that the model saw, in presentation order"),
        Column("slot_start_s", _REALS, "time of the first frame of each time slot in the video, seconds"),
        Column("raw_score", REAL, "score of the model for this clip"),
        Column("slot_scores", _FLOATS, "score of each time slot; empty if the model has none"),
        Column("features", _FLOATS, "features of this clip, if they are stored and the video has several clips"),
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
        _RUN_ID,
        _COMMIT_SEQ,
        Column("num_slots", INT, "time slots of the map (two frames each)"),
        Column("num_rows", INT, "rows of cells"),
        Column("num_cols", INT, "columns of cells"),
        Column("texture", _BYTES, "texture map, flat [slot, row, column]: q * texture_scale + texture_offset"),
        Column("texture_offset", REAL, "see texture"),
        Column("texture_scale", REAL, "see texture; 0 for a constant map"),
        Column("saliency", _BYTES, "saliency map, flat [slot, row, column]: (q * saliency_scale + saliency_offset)^2"),
        Column("saliency_offset", REAL, "see saliency"),
        Column("saliency_scale", REAL, "see saliency; 0 for a constant map"),
        Column("texture_mean", _BYTES, "mean of the texture over the time slots, flat [row, column], as texture"),
        Column("saliency_mean", _BYTES, "mean of the saliency over the time slots, flat [row, column], as saliency"),
        Column("causes", _PERCENTS, "severity of each cause found, percent, flat [slot, row, column] or [slot]"),
    ),
    sort_by=("video_id", "clip_index"),
    partition_by=("model_id",),
)

FEATURES = TableSchema(
    "features",
    (
        _VIDEO_ID,
        _CONTENT_ID,
        _MODEL_ID,
        _MODEL_NAME,
        _FINGERPRINT,
        _RUN_ID,
        _COMMIT_SEQ,
        Column("num_features", INT, "number of features"),
        Column("num_undefined", INT, "features that are NaN or infinite: pictures without detail or without motion"),
        Column("features", _FLOATS, "features of the video in the order of the model, means over clips"),
    ),
    sort_by=("video_id",),
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
        _RUN_ID,
        _COMMIT_SEQ,
        Column("attempt", INT, "attempt that failed, from 1"),
        Column("stage", TEXT, "fetch, probe, decode, score or label"),
        Column("error", TEXT, "stable name of the error, to group by"),
        Column("message", TEXT, "what is wrong"),
        Column("exit_signal", TEXT, "signal that ended the child process; null if there was none"),
        Column("final", FLAG, "true if this run does not retry it"),
        Column("permanent", FLAG, "true if the bytes of the video are the cause: quarantined until they change"),
        Column("failed_at", TIME, "when it failed"),
    ),
    sort_by=("video_id",),
)

MODELS = TableSchema(
    "models",
    (
        _MODEL_ID,
        _MODEL_NAME,
        Column("version", TEXT, "model version"),
        Column("origin", TEXT, "trained, untrained or handcrafted"),
        Column("digest", TEXT, "sha256 of weights and configuration"),
        Column("summary", TEXT, "what the model is"),
        Column("training_data", TEXT, "data that the model was trained on"),
        Column("licence", TEXT, "licence of the weights"),
        Column("num_parameters", LONG, "number of weights; 0 if there are none, null in older rows"),
        Column("calibration", TEXT, "name of the calibration of this row; null for the model card alone"),
        Column("b1", REAL, "mos = b2 + (b1 - b2) / (1 + exp(-(raw_score - b3) / |b4|))"),
        Column("b2", REAL, "see b1"),
        Column("b3", REAL, "see b1"),
        Column("b4", REAL, "see b1"),
        Column("is_default", FLAG, "whether `mos` uses this calibration; null in a row that removes it"),
        _RUN_ID,
        _COMMIT_SEQ,
        Column("added_at", TIME, "when this row was added"),
    ),
    sort_by=("model_id",),
)

RUNS = TableSchema(
    "runs",
    (
        _RUN_ID,
        _COMMIT_SEQ,
        Column("job", TEXT, "name of the job"),
        Column("job_spec", TEXT, "the job as JSON"),
        Column("catalog", TEXT, "name of the catalog"),
        Column("catalog_root", TEXT, "folder or prefix below which the ids of the catalog are unique"),
        Column("state", TEXT, "running, finished, stopped, failed, or crashed: its process ended without a last row"),
        Column("models", pa.list_(_MODEL), "models of the run: name, model_id, fingerprint"),
        Column("num_videos", LONG, "videos of the catalog"),
        Column("num_planned", LONG, "tasks (video, model) of the plan"),
        Column("planned_by_reason", pa.map_(TEXT, LONG), "tasks of the plan by reason"),
        Column("num_scored", LONG, "tasks with a score"),
        Column("num_failed", LONG, "tasks with a final failure"),
        Column("num_remaining", LONG, "tasks without a result when the run ended"),
        Column("num_removed", LONG, "videos that were removed from the catalog"),
        Column("max_repeated", LONG, "of a crashed run: results that it may have computed and a later run repeats"),
        Column("started_at", TIME, "when the run started"),
        Column("finished_at", TIME, "when the run ended; null while it runs"),
        Column("seconds", REAL, "duration of the run, seconds"),
        Column("startup_s", REAL, "time before its first result, seconds"),
        Column("decode_work_s", REAL, "busy time of all decode workers, seconds"),
        Column("score_work_s", pa.map_(TEXT, REAL), "busy time of all score workers of each model, seconds"),
        Column("num_scored_by_model", pa.map_(TEXT, LONG), "tasks with a score, by model"),
        Column("core_hours", REAL, "CPU cores held by its workers, times hours"),
        Column("gpu_hours", REAL, "GPUs held by its workers, times hours"),
        Column("cost", REAL, "cost of these by the prices of the job; null if it has no prices"),
        Column("currency", TEXT, "currency of the cost"),
        Column("expected_s", REAL, "duration predicted by the plan, seconds; null without timing data of earlier runs"),
        Column("expected_core_hours", REAL, "core-hours predicted by the plan"),
        Column("expected_gpu_hours", REAL, "GPU-hours predicted by the plan"),
        Column("expected_cost", REAL, "cost predicted by the plan"),
        Column("versions", pa.map_(TEXT, TEXT), "versions of libraries, machine and code"),
        Column("message", TEXT, "why the run stopped or failed; empty otherwise"),
    ),
    sort_by=("run_id",),
)

LABELS = TableSchema(
    "labels",
    (
        Column("label_id", TEXT, "id made of reference, bytes, segment, recipe and software: same label, same id"),
        Column("video_id", TEXT, "reference: a file or a procedural scene, unique in its job"),
        _SCENE_ID,
        Column("group_id", TEXT, "scene_id, a slash, and the codec step of the whole frame"),
        Column("uri", TEXT, "address of the reference, without credentials"),
        Column("content_id", TEXT, "change token of the bytes of the reference"),
        _RUN_ID,
        _COMMIT_SEQ,
        Column("segment", TEXT, "time range, crop and size, as JSON"),
        Column("recipe", TEXT, "steps, patches and seed, as JSON"),
        Column("name", TEXT, "short name of the recipe: h264-35, none~blur-3"),
        Column("kind", TEXT, "clean, single, chain, region or mix"),
        Column("vmaf", REAL, "VMAF v0.6.1 against the reference, mean over frames, 0 to 100; not an opinion of people"),
        Column(
            "vmaf_v1", REAL, "VMAF v1, stricter about noise and banding; null below 216x160 pixels, in older labels"
        ),
        Column("psnr_db", REAL, "PSNR of luma, mean over frames, at most 60"),
        Column("ssim", REAL, "SSIM of luma, mean over frames"),
        Column("vmaf_slots", _FLOATS, "VMAF of each time slot (two frames each)"),
        Column("vmaf_v1_slots", _FLOATS, "VMAF v1 of each time slot"),
        Column("psnr_db_slots", _FLOATS, "PSNR of each time slot"),
        Column("ssim_slots", _FLOATS, "SSIM of each time slot"),
        Column("num_slots", INT, "time slots of the cells"),
        Column("num_rows", INT, "rows of cells"),
        Column("num_cols", INT, "columns of cells"),
        Column("cells", _FLOATS, "flat [slot, row, column]: VMAF of the rendition in the cell, for that time slot"),
        Column("cells_v1", _FLOATS, "the same of VMAF v1"),
        Column("num_frames", INT, "frames of the rendition"),
        Column("height_px", INT, "height of the rendition"),
        Column("width_px", INT, "width of the rendition"),
        Column("frame_rate", REAL, "frames per second"),
        Column("rendition_uri", TEXT, "address of the stored rendition, lossless; null if it is not stored"),
        Column("ffmpeg", TEXT, "version of ffmpeg that made the rendition"),
        Column("libvmaf", TEXT, "version of libvmaf that measured it"),
        Column("vmaf_model", TEXT, "VMAF model of vmaf"),
        Column("vmaf_v1_model", TEXT, "VMAF model of vmaf_v1"),
        Column("make_s", REAL, "time to make and measure it, seconds; shared work counts for the first rendition only"),
        Column("attempt", INT, "attempt that succeeded, from 1"),
        Column("labelled_at", TIME, "when the label was made"),
    ),
    sort_by=("scene_id", "video_id", "label_id"),
)

OPINIONS = TableSchema(
    "opinions",
    (
        Column("dataset", TEXT, "name of the imported data set"),
        Column("video_id", TEXT, "id of the rated video in the catalog"),
        _SCENE_ID,
        _RUN_ID,
        _COMMIT_SEQ,
        Column("uri", TEXT, "address of the video; null if the file did not have one"),
        Column("opinion", REAL, "mean opinion score in its own scale"),
        Column("scale_low", REAL, "value of the worst possible opinion"),
        Column("scale_high", REAL, "value of the best possible opinion; below scale_low if less is better"),
        Column("mos", REAL, "the opinion scaled to 0 (worst) to 100 (best)"),
        Column("spread", REAL, "standard deviation over people in its own scale; null if unknown"),
        Column("num_opinions", INT, "number of people who rated the video; null if unknown"),
        Column("is_withdrawn", FLAG, "true if this row withdraws an earlier opinion"),
        Column("imported_at", TIME, "when it was imported"),
    ),
    sort_by=("dataset", "video_id"),
)

TABLES: tuple[TableSchema, ...] = (
    CATALOG, SCORES, CLIPS, MAPS, FEATURES, FAILURES, MODELS, RUNS, LABELS, OPINIONS,
)  # fmt: skip

ADDED_TABLES = frozenset({"features", "labels", "opinions"})
"""Tables that may be missing: they count as empty, and the next run creates them."""

DATA_TABLES: tuple[str, ...] = ("maps", "clips", "features", "failures", "scores")
"""Order of commits of one batch. `scores` is last, so that a visible score always has its maps, clips and features."""

RESULT_TABLES: tuple[str, ...] = (*DATA_TABLES, "labels")
"""Tables with results of runs. Each of them rejects the commits of a stale writer."""


def find_schema(name: str) -> TableSchema:
    """Return the schema of the table `name`. Raises: SpecError for an unknown name."""
    for schema in TABLES:
        if schema.name == name:
            return schema
    raise SpecError(f"Unknown table {name!r}: expected one of {', '.join(s.name for s in TABLES)}.")


def make_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the rows as an Arrow table for the writer.

    Columns that a row lacks are null. A map column takes a mapping or a list of (key, value).

    Raises:
        ValueError: a key is not a column. Arrow would drop it silently.
    """
    schema = find_schema(name).row_schema()
    unknown = {key for row in rows for key in row}.difference(schema.names)
    if unknown:
        raise ValueError(f"table {name!r} has no column {', '.join(sorted(unknown))}")
    maps = [field.name for field in schema if pa.types.is_map(field.type)]
    plain = []
    for row in rows:
        items = {key: list(row[key].items()) for key in maps if isinstance(row.get(key), Mapping)}
        plain.append({**row, **items})
    return pa.Table.from_pylist(plain, schema=schema)
