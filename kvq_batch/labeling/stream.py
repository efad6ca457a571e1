"""Schemas of the tables that flow through a label run: renditions to make in, labels or failures out.

One row per rendition. Pixels stay in the worker.
"""

import hashlib
from typing import Any

import pyarrow as pa

from kvq_batch.config.recipe import Recipe, Segment
from kvq_batch.domain.errors import ItemError
from kvq_batch.domain.identity import canonical_json
from kvq_batch.engine.stream import FAILURE_FIELDS, failure_values
from kvq_batch.labeling.labeler import VMAF_MODEL, VMAF_V1_MODEL

ALGORITHM = 2
"""Increment when the code changes a rendition or its measures. All labels are then made again."""

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
"""`model_mask` is always 1: a rendition has one label."""

_FLOATS = pa.list_(pa.float32())

LABELLED = pa.schema(
    [
        ("item", pa.int64()),
        ("attempt", pa.int32()),
        ("vmaf", pa.float64()),
        ("vmaf_v1", pa.float64()),
        ("psnr_db", pa.float64()),
        ("ssim", pa.float64()),
        ("vmaf_slots", _FLOATS),
        ("vmaf_v1_slots", _FLOATS),
        ("psnr_db_slots", _FLOATS),
        ("ssim_slots", _FLOATS),
        ("num_slots", pa.int32()),
        ("num_rows", pa.int32()),
        ("num_cols", pa.int32()),
        ("cells", _FLOATS),
        ("cells_v1", _FLOATS),
        ("num_frames", pa.int32()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("frame_rate", pa.float64()),
        ("rendition_uri", pa.string()),
        ("ffmpeg", pa.string()),
        ("libvmaf", pa.string()),
        ("vmaf_model", pa.string()),
        ("vmaf_v1_model", pa.string()),
        ("make_s", pa.float64()),
        *FAILURE_FIELDS,
    ]
)
"""A label, or the columns of a failure."""


def label_id(video_id: str, content_id: str, segment: Segment, recipe: Recipe) -> str:
    """Return 24 hex digits of a hash over all that the label depends on, except the version of ffmpeg (provenance)."""
    inputs = [ALGORITHM, VMAF_MODEL, VMAF_V1_MODEL, video_id, content_id, segment.segment_id, recipe.to_json()]
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:24]


def failed_row(item: int, attempt: int, error: ItemError, make_s: float) -> dict[str, Any]:
    """Return a row of LABELLED that says why there is no label."""
    return {"item": item, "attempt": attempt, "make_s": make_s, **failure_values(error)}
