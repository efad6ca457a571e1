"""What flows through a run that makes labels: versions to make in, labels or failures out; one row a version.

Pixels stay in the worker. This module knows no Ray and touches no pixel.
"""

import hashlib
from typing import Any

import pyarrow as pa

from kvq_batch.config.recipe import Recipe
from kvq_batch.config.segment import Segment
from kvq_batch.domain.errors import ItemError
from kvq_batch.domain.identity import canonical_json
from kvq_batch.labeling.fidelity import VMAF_MODEL

ALGORITHM = 1
"""Bumped by hand with code that changes a version or its measures: then every label is made anew."""


RENDITIONS = pa.schema(
    [
        ("item", pa.int64()),
        ("attempt", pa.int32()),
        ("model_mask", pa.int64()),
        ("label_id", pa.string()),
        ("video_id", pa.string()),
        ("scene_id", pa.string()),
        ("uri", pa.string()),
        ("content_id", pa.string()),
        ("size_bytes", pa.int64()),
        ("segment", pa.string()),
        ("recipe", pa.string()),
    ]
)
"""`model_mask` is 1: of a version there is one thing to be had."""

_FLOATS = pa.list_(pa.float32())

LABELLED = pa.schema(
    [
        ("item", pa.int64()),
        ("attempt", pa.int32()),
        ("vmaf", pa.float64()),
        ("psnr_db", pa.float64()),
        ("ssim", pa.float64()),
        ("vmaf_slots", _FLOATS),
        ("psnr_db_slots", _FLOATS),
        ("ssim_slots", _FLOATS),
        ("num_slots", pa.int32()),
        ("num_rows", pa.int32()),
        ("num_cols", pa.int32()),
        ("cells", _FLOATS),
        ("num_frames", pa.int32()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("frame_rate", pa.float64()),
        ("rendition_uri", pa.string()),
        ("ffmpeg", pa.string()),
        ("libvmaf", pa.string()),
        ("vmaf_model", pa.string()),
        ("make_s", pa.float64()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("permanent", pa.bool_()),
        ("exit_signal", pa.string()),
    ]
)
"""A label, or `error` and what goes with it."""

FAILURE_COLUMNS = ("stage", "error", "message", "permanent", "exit_signal")


def label_id(video_id: str, content_id: str, segment: Segment, recipe: Recipe) -> str:
    """24 hex digits that name a label by everything that it depends on, ffmpeg's version apart (that is provenance)."""
    told = [ALGORITHM, VMAF_MODEL, video_id, content_id, segment.segment_id, recipe.to_json()]
    return hashlib.sha256(canonical_json(told).encode()).hexdigest()[:24]


def failed(item: int, attempt: int, error: ItemError, make_s: float) -> dict[str, Any]:
    """A row of LABELLED that says why there is no label."""
    return {
        "item": item,
        "attempt": attempt,
        "stage": error.stage,
        "error": error.code,
        "message": error.message,
        "permanent": error.permanent,
        "exit_signal": error.exit_signal,
        "make_s": make_s,
    }
