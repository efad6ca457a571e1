"""The columns of every table, in one place, because writer, planner, views and help must agree on them.

Delta has no unsigned integers, times are microseconds in UTC, and every row carries the run and the commit that wrote
it: `commit_seq` = (epoch << 32) | counter rises over all commits of all runs, so "newest" is a sort and never a
question to a clock. This module declares; it opens no table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.io.columns import COMMIT_SEQ as _COMMIT_SEQ
from kvq_batch.io.columns import FLAG as _FLAG
from kvq_batch.io.columns import INT as _INT
from kvq_batch.io.columns import LONG as _LONG
from kvq_batch.io.columns import REAL as _REAL
from kvq_batch.io.columns import RUN_ID as _RUN_ID
from kvq_batch.io.columns import TEXT as _TEXT
from kvq_batch.io.columns import TIME as _TIME
from kvq_batch.io.columns import Column, TableSchema
from kvq_batch.io.label_schemas import LABELS, OPINIONS

COUNTER_BITS = 32
"""`commit_seq` = (epoch << COUNTER_BITS) | counter within the epoch."""

CATALOG_PREFIX = "catalog_"
"""Stands before a column of the user's catalog whose name is one of ours."""

_MODEL = pa.struct([("name", _TEXT), ("model_id", _TEXT), ("fingerprint", _TEXT)])

_VIDEO_ID = Column("video_id", _TEXT, "name of the video, unique in its catalog")
_URI = Column("uri", _TEXT, "where the video stood when this row was written, without credentials")
_CONTENT_ID = Column("content_id", _TEXT, "names the bytes that were read, e.g. etag:...")
_MODEL_ID = Column("model_id", _TEXT, "name@version-digest of the model")
_MODEL_NAME = Column("model_name", _TEXT, "name of the model in the registry")
_FINGERPRINT = Column("fingerprint", _TEXT, "sha256 of everything else that changes a score")
_CLIP_INDEX = Column("clip_index", _INT, "number of the clip within its video, from 0")

CATALOG = TableSchema(
    "catalog",
    (
        _VIDEO_ID,
        Column("catalog", _TEXT, "name of the catalog that lists the video"),
        _URI,
        _CONTENT_ID,
        Column("size_bytes", _LONG, "size of the object"),
        Column("start_s", _REAL, "start of the stretch to score, seconds; null for the whole video"),
        Column("end_s", _REAL, "end of the stretch to score, seconds; null for the whole video"),
        Column("in_catalog", _FLAG, "false where this row records that the video left the catalog"),
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
        Column("model_origin", _TEXT, "trained, untrained or weightless; an untrained score is no quality"),
        _FINGERPRINT,
        _RUN_ID,
        _COMMIT_SEQ,
        Column("raw_score", _REAL, "mean over clips of the model's score, before any calibration"),
        Column("score_spread", _REAL, "population standard deviation of the score over clips"),
        Column("num_clips", _INT, "clips that were scored"),
        Column("outputs", pa.map_(_TEXT, _REAL), "further numbers of the model by name, means over clips"),
        Column("width_px", _INT, "width of the upright picture, stored pixels"),
        Column("height_px", _INT, "height of the upright picture, stored pixels"),
        Column("rotation_deg", _INT, "clockwise rotation that was applied: 0, 90, 180 or 270"),
        Column("sample_aspect_ratio", _REAL, "width / height of one pixel"),
        Column("frame_rate", _REAL, "mean frames per second"),
        Column("is_variable_frame_rate", _FLAG, "whether the distance of frames varies"),
        Column("duration_s", _REAL, "length of the video, seconds"),
        Column("num_frames", _LONG, "frames that are truly there"),
        Column("codec", _TEXT, "codec of the video stream, ffmpeg's name"),
        Column("pixel_format", _TEXT, "pixel format, ffmpeg's name"),
        Column("bit_depth", _INT, "bits of a sample"),
        Column("field_order", _TEXT, "progressive, or which field is first"),
        Column("color_primaries", _TEXT, "colour primaries, ffmpeg's name"),
        Column("color_transfer", _TEXT, "transfer characteristic, ffmpeg's name"),
        Column("color_matrix", _TEXT, "matrix coefficients, ffmpeg's name"),
        Column("color_range", _TEXT, "tv (limited) or pc (full)"),
        Column("size_bytes", _LONG, "size of the object that was read"),
        Column("decoder", _TEXT, "decoder and version that made the frames"),
        Column("fetch_s", _REAL, "seconds spent to fetch the object"),
        Column("fetch_attempts", _INT, "times that fetching it was tried, 1 where the first went well"),
        Column("decode_s", _REAL, "seconds spent to probe, decode and resize, shared by all models of the job"),
        Column("score_s", _REAL, "seconds spent in the model"),
        Column("attempt", _INT, "which try succeeded, from 1"),
        Column("scored_at", _TIME, "when the score was computed"),
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
        Column("start_s", _REAL, "start of the clip in the video, seconds"),
        Column("end_s", _REAL, "end of the clip in the video, seconds"),
        Column("frame_indices", pa.list_(_INT), "frames that the model saw, in presentation order"),
        Column("slot_start_s", pa.list_(_REAL), "time of each slot's first frame in the video, seconds"),
        Column("raw_score", _REAL, "the model's score of this clip"),
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
        _RUN_ID,
        _COMMIT_SEQ,
        Column("num_slots", _INT, "slots of the map (two frames each)"),
        Column("num_rows", _INT, "rows of cells"),
        Column("num_cols", _INT, "columns of cells"),
        Column("texture", pa.list_(pa.int8()), "texture, [slot, row, column] flat: q * texture_scale + texture_offset"),
        Column("texture_offset", _REAL, "see texture"),
        Column("texture_scale", _REAL, "see texture; 0 for a constant map"),
        Column(
            "saliency",
            pa.list_(pa.int8()),
            "saliency, [slot, row, column] flat: (q * saliency_scale + saliency_offset) squared",
        ),
        Column("saliency_offset", _REAL, "see saliency"),
        Column("saliency_scale", _REAL, "see saliency; 0 for a constant map"),
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
        _RUN_ID,
        _COMMIT_SEQ,
        Column("attempt", _INT, "which try failed, from 1"),
        Column("stage", _TEXT, "fetch, probe, decode, score or label"),
        Column("error", _TEXT, "stable name of the failure, to group by"),
        Column("message", _TEXT, "what was wrong, for people"),
        Column("exit_signal", _TEXT, "signal that ended the child process, null where none did"),
        Column("final", _FLAG, "true where this run will not try again"),
        Column("permanent", _FLAG, "true where the bytes are to blame: not tried again until they change"),
        Column("failed_at", _TIME, "when it failed"),
    ),
    sort_by=("video_id",),
)

MODELS = TableSchema(
    "models",
    (
        _MODEL_ID,
        _MODEL_NAME,
        Column("version", _TEXT, "version of the model"),
        Column("origin", _TEXT, "trained, untrained or weightless"),
        Column("digest", _TEXT, "sha256 of weights and configuration"),
        Column("summary", _TEXT, "what the model is"),
        Column("training_data", _TEXT, "what it was trained on"),
        Column("licence", _TEXT, "licence of the weights"),
        Column("calibration", _TEXT, "name of the calibration of this row; null for the bare card"),
        Column("b1", _REAL, "mos = b2 + (b1 - b2) / (1 + exp(-(raw_score - b3) / |b4|))"),
        Column("b2", _REAL, "see b1"),
        Column("b3", _REAL, "see b1"),
        Column("b4", _REAL, "see b1"),
        Column("is_default", _FLAG, "whether `mos` uses this calibration"),
        _RUN_ID,
        _COMMIT_SEQ,
        Column("added_at", _TIME, "when this row was added"),
    ),
    sort_by=("model_id",),
)

RUNS = TableSchema(
    "runs",
    (
        _RUN_ID,
        _COMMIT_SEQ,
        Column("job", _TEXT, "name of the job"),
        Column("job_spec", _TEXT, "the whole job as JSON"),
        Column("catalog", _TEXT, "name of the catalog"),
        Column("catalog_root", _TEXT, "root below which the catalog's ids are unique"),
        Column("state", _TEXT, "running, finished, stopped, failed, or died: its process ended without a word"),
        Column("models", pa.list_(_MODEL), "models of the run: name, model_id, fingerprint"),
        Column("num_videos", _LONG, "videos of the catalog"),
        Column("num_planned", _LONG, "(video, model) pairs that the run set out to score"),
        Column("planned_by_reason", pa.map_(_TEXT, _LONG), "the same by reason"),
        Column("num_scored", _LONG, "pairs that got a score"),
        Column("num_failed", _LONG, "pairs that failed for good in this run"),
        Column("num_not_reached", _LONG, "pairs that a stopped run did not reach"),
        Column("num_departed", _LONG, "videos that had left the catalog"),
        Column("num_repeated_at_most", _LONG, "of a run that died: results it may have made that are made again"),
        Column("started_at", _TIME, "when the run began"),
        Column("finished_at", _TIME, "when it ended; null while it runs"),
        Column("seconds", _REAL, "how long it took"),
        Column("startup_s", _REAL, "seconds of these before its first result"),
        Column("decode_work_s", _REAL, "seconds that its decoding workers were at work, together"),
        Column("score_work_s", pa.map_(_TEXT, _REAL), "seconds that the scoring workers of each model were at work"),
        Column("num_scored_by_model", pa.map_(_TEXT, _LONG), "pairs that got a score, by model"),
        Column("core_hours", _REAL, "CPU cores held by its workers, times hours"),
        Column("gpu_hours", _REAL, "GPUs held by its workers, times hours"),
        Column("cost", _REAL, "cost of these by the job's prices; null where it has none"),
        Column("currency", _TEXT, "currency of the cost"),
        Column("expected_s", _REAL, "how long its plan expected it to take; null where no earlier run could tell"),
        Column("expected_core_hours", _REAL, "core-hours that its plan expected"),
        Column("expected_gpu_hours", _REAL, "GPU-hours that its plan expected"),
        Column("expected_cost", _REAL, "cost that its plan expected"),
        Column("versions", pa.map_(_TEXT, _TEXT), "versions of libraries, machine and code"),
        Column("message", _TEXT, "why it stopped or failed, empty otherwise"),
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
