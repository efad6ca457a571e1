"""Builds rows of the result tables from rows of the pipeline: one function per table.

To add a column, add it to `tables/schemas.py` and to the function here. The writer adds run id and commit sequence.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean, pstdev
from typing import Any, cast

import numpy as np

from kvq_batch.domain.scorer import Prediction
from kvq_batch.engine.stream import maps_from_stream, prediction_values
from kvq_batch.features.pooling import mean_of_defined
from kvq_batch.planning.job_models import JobModel
from kvq_batch.tables.row_types import (
    ClipRow,
    FailureRow,
    FeatureRow,
    IdentityRow,
    MapColumns,
    MapRow,
    ScoreRow,
    VideoFactColumns,
)

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ClipResult:
    """One clip: a row of the stream, and one model's `RESULT` for it.

    `frame_indices` and `times_s` are those of the model's first frame request.
    """

    row: Row
    result: Row
    frame_indices: Sequence[int]
    times_s: Sequence[float]


def clip_result(row: Row, result: Row, request: int) -> ClipResult:
    """Return the result of a clip that came in one row; `request` is the index of the model's first request."""
    return ClipResult(row, result, row[f"indices_{request}"] or [], row[f"times_{request}"] or [])


def pooled_clip(chunks: Sequence[ClipResult], prediction: Prediction, has_score: bool) -> ClipResult:
    """Return the result of a clip whose chunks, in order, were pooled into `prediction`."""
    row = {**chunks[0].row, "clip_decode_s": max(chunk.row["clip_decode_s"] for chunk in chunks)}
    result = {**prediction_values(prediction, has_score), "score_s": sum(chunk.result["score_s"] for chunk in chunks)}
    indices = [index for chunk in chunks for index in chunk.frame_indices]
    return ClipResult(row, result, indices, [time_s for chunk in chunks for time_s in chunk.times_s])


def score_row(item: Row, model: JobModel, clips: Sequence[ClipResult]) -> ScoreRow:
    """Return a row of `scores`: the mean over the clips (section 2 of the specification)."""
    first = clips[0].row
    facts: VideoFactColumns = json.loads(first["facts"])
    raw_scores = [clip.result["raw_score"] for clip in clips if clip.result["raw_score"] is not None]
    outputs: dict[str, list[float]] = {}
    for clip in clips:
        for name, value in clip.result["outputs"]:
            outputs.setdefault(name, []).append(value)
    return {
        **_identity(item, model, first["content_id"]),
        "uri": item["uri"],
        "model_name": model.ref.name,
        "model_origin": model.spec.card.origin,
        "raw_score": fmean(raw_scores) if raw_scores else None,
        "score_spread": pstdev(raw_scores) if len(raw_scores) > 1 else 0.0,
        "num_clips": len(clips),
        "outputs": [(name, fmean(values)) for name, values in outputs.items()],
        **facts,
        "size_bytes": first["size_bytes"],
        "decoder": first["decoder"],
        "fetch_s": first["fetch_s"],
        "fetch_attempts": first["fetch_attempts"],
        "decode_s": sum(clip.row["clip_decode_s"] for clip in clips),
        "score_s": sum(clip.result["score_s"] for clip in clips),
        "score_cores": model.cores,
        "attempt": first["attempt"],
        "scored_at": datetime.now(UTC),
    }


def clip_row(item: Row, model: JobModel, clip: ClipResult) -> ClipRow:
    """Return a row of `clips`. A time slot starts with its first frame.

    Features of the only clip are those of the video, which are in a row of `features`.
    The slots are those of the scores, or of the maps of a model that has maps only.
    """
    row, result = clip.row, clip.result
    times_s = clip.times_s
    num_slots = 0 if result["slot_scores"] is None else len(result["slot_scores"])
    if not num_slots and result["maps"] is not None:
        num_slots = result["maps"]["num_slots"]
    return {
        **_identity(item, model, row["content_id"]),
        "clip_index": row["clip_index"],
        "start_s": row["start_s"],
        "end_s": row["end_s"],
        "frame_indices": clip.frame_indices,
        "slot_start_s": times_s[:: len(times_s) // num_slots] if num_slots else [],
        "raw_score": result["raw_score"],
        "slot_scores": [] if result["slot_scores"] is None else result["slot_scores"],
        "features": result["features"] if model.stores_features and row["num_clips"] > 1 else None,
    }


def feature_row(item: Row, model: JobModel, clips: Sequence[ClipResult]) -> FeatureRow:
    """Return a row of `features`: means over the clips where a feature is defined. Empty if the model gave none."""
    stored = [clip.result["features"] for clip in clips if clip.result["features"] is not None]
    features = mean_of_defined(np.array(stored, np.float64)).astype(np.float32) if stored else np.empty(0, np.float32)
    return {
        **_identity(item, model, clips[0].row["content_id"]),
        "model_name": model.ref.name,
        "num_features": len(features),
        "num_undefined": int(np.count_nonzero(~np.isfinite(features))),
        "features": cast(Sequence[float], features),
    }


def map_row(item: Row, model: JobModel, clip: ClipResult) -> MapRow:
    """Return a row of `maps`."""
    maps = cast(MapColumns, maps_from_stream(clip.result["maps"]))
    return {
        **_identity(item, model, clip.row["content_id"]),
        "clip_index": clip.row["clip_index"],
        **maps,
    }


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one attempt of a task failed."""

    attempt: int
    stage: str
    error: str
    message: str
    permanent: bool
    exit_signal: str | None = None


def failure_row(item: Row, model: JobModel, failure: Failure, is_final: bool) -> FailureRow:
    """Return a row of `failures`."""
    return {
        **_identity(item, model, item["content_id"]),
        "uri": item["uri"],
        "model_name": model.ref.name,
        "attempt": failure.attempt,
        "stage": failure.stage,
        "error": failure.error,
        "message": failure.message,
        "permanent": failure.permanent,
        "exit_signal": failure.exit_signal,
        "final": is_final,
        "failed_at": datetime.now(UTC),
    }


def _identity(item: Row, model: JobModel, content_id: str) -> IdentityRow:
    # The content id of a score is the one that fetching found; the plan's may be unknown.
    return {
        "video_id": item["video_id"],
        "content_id": content_id,
        "model_id": model.ref.model_id,
        "fingerprint": model.ref.fingerprint,
    }
