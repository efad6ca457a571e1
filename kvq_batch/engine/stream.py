"""Schemas of the tables that flow between the stages of a scoring run: one row per clip or failure.

    items   item, attempt, video_id, uri, content_id, size_bytes, start_s, end_s, model_mask
    decode  -> item, attempt, model_mask, clip facts, error columns, and for each frame request r:
               frames_r (bytes of a uint8 or float32 array), shape_r, dtype_r, indices_r, times_r, refused_r
    score   -> the same plus result_m for model m; frames_r is dropped after the last model that needs it

A clip is one row, and further rows for the chunks of each streamed request, in which all other requests are null. A
request that a video cannot answer is null, with the reason in refused_r.

`model_mask` is a bit mask over the models of the job. Frames never reach the driver.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvq_batch.domain.errors import ItemError
from kvq_batch.domain.maps import StoredMaps, quantise, quantise_causes
from kvq_batch.domain.scorer import Prediction
from kvq_batch.domain.video import ClipFrames
from kvq_batch.storage.redact import redact

FAILURE_FIELDS = [
    ("stage", pa.string()),
    ("error", pa.string()),
    ("message", pa.string()),
    ("permanent", pa.bool_()),
    ("exit_signal", pa.string()),
]
"""Columns of a failed attempt; null in rows with a result."""

FAILURE_COLUMNS = tuple(name for name, _ in FAILURE_FIELDS)

_CLIP = [
    ("item", pa.int64()),
    ("attempt", pa.int32()),
    ("model_mask", pa.int64()),
    ("clip_index", pa.int32()),
    ("num_clips", pa.int32()),
    ("chunk_index", pa.int32()),
    ("num_chunks", pa.int32()),
    ("decode_pass", pa.int32()),
    ("start_s", pa.float64()),
    ("end_s", pa.float64()),
    ("facts", pa.string()),
    ("size_bytes", pa.int64()),
    ("decoder", pa.string()),
    ("content_id", pa.string()),
    ("fetch_s", pa.float64()),
    ("fetch_attempts", pa.int32()),
    ("decode_s", pa.float64()),
    ("clip_decode_s", pa.float64()),
    *FAILURE_FIELDS,
]

MAP_NAMES = ("texture", "saliency", "texture_mean", "saliency_mean")

_MAPS = pa.struct(
    [
        ("num_slots", pa.int32()),
        ("num_rows", pa.int32()),
        ("num_cols", pa.int32()),
        ("texture", pa.binary()),
        ("texture_offset", pa.float64()),
        ("texture_scale", pa.float64()),
        ("saliency", pa.binary()),
        ("saliency_offset", pa.float64()),
        ("saliency_scale", pa.float64()),
        ("texture_mean", pa.binary()),
        ("saliency_mean", pa.binary()),
        ("causes", pa.map_(pa.string(), pa.binary())),
    ]
)

RESULT = pa.struct(
    [
        ("raw_score", pa.float64()),
        ("outputs", pa.map_(pa.string(), pa.float64())),
        ("maps", _MAPS),
        ("slot_scores", pa.list_(pa.float32())),
        ("features", pa.list_(pa.float32())),
        ("partial", pa.large_binary()),
        ("partial_shape", pa.list_(pa.int32())),
        ("partial_dtype", pa.string()),
        ("score_s", pa.float64()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("permanent", pa.bool_()),
    ]
)
"""One model's result for one clip: a score, or `error` and `message`; null if the model does not score the row.

For a chunk of a streamed request it is `partial`, of shape `partial_shape` and type `partial_dtype`."""

_REFUSED = pa.struct([("error", pa.string()), ("message", pa.string()), ("permanent", pa.bool_())])


def clip_schema(num_requests: int) -> pa.Schema:
    """Return the schema of the decode stage for a job with `num_requests` distinct frame requests."""
    fields = list(_CLIP)
    for r in range(num_requests):
        fields += [
            (f"frames_{r}", pa.large_binary()),
            (f"shape_{r}", pa.list_(pa.int32())),
            (f"dtype_{r}", pa.string()),
            (f"refused_{r}", _REFUSED),
            (f"indices_{r}", pa.list_(pa.int32())),
            (f"times_{r}", pa.list_(pa.float64())),
        ]
    return pa.schema(fields)


@dataclass(frozen=True, slots=True)
class ClipRow:
    """The columns of a decoded clip or chunk, apart from its frames.

    `decode_s` are the seconds since the part before, so that the sum over rows is what decoding took. `clip_decode_s`
    are those of the clip until this part, for all requests together.
    """

    item: int
    attempt: int
    model_mask: int
    clip_index: int
    num_clips: int
    start_s: float
    end_s: float
    facts: str
    size_bytes: int
    decoder: str
    content_id: str
    fetch_s: float
    fetch_attempts: int
    decode_s: float
    clip_decode_s: float
    chunk_index: int = 0
    num_chunks: int = 1
    decode_pass: int = 0


class StreamRows:
    """Collects rows of the decode stage into tables, without copying pixels."""

    def __init__(self, num_requests: int) -> None:
        self._schema = clip_schema(num_requests)
        self._num_requests = num_requests
        self._rows: list[dict[str, Any]] = []
        self.num_bytes = 0

    def add_clip(self, row: ClipRow, frames: Sequence[ClipFrames]) -> None:
        """Add a clip or a chunk, with one `ClipFrames` per frame request. The pixels must not change afterwards."""
        values: dict[str, Any] = {name: getattr(row, name) for name in row.__slots__}
        for r, clip in enumerate(frames):
            if clip.error is not None:
                error = clip.error
                values[f"refused_{r}"] = {
                    "error": error.code,
                    "message": redact(error.message),
                    "permanent": error.permanent,
                }
            if not clip.pixels.size:
                continue
            values[f"dtype_{r}"] = str(clip.pixels.dtype)
            values[f"frames_{r}"] = clip.pixels
            values[f"shape_{r}"] = clip.pixels.shape
            values[f"indices_{r}"] = clip.indices
            values[f"times_{r}"] = clip.times_s
            self.num_bytes += clip.pixels.nbytes
        self._rows.append(values)

    def add_failure(self, item: int, attempt: int, model_mask: int, error: ItemError) -> None:
        """Add a row that says why the video has no frames."""
        self._rows.append({"item": item, "attempt": attempt, "model_mask": model_mask, **failure_values(error)})

    def __len__(self) -> int:
        return len(self._rows)

    def take(self) -> pa.Table:
        """Return all rows as one table and forget them."""
        rows, self._rows, self.num_bytes = self._rows, [], 0
        columns = [
            _pixels([row.get(field.name) for row in rows])
            if field.type == pa.large_binary()
            else pa.array([row.get(field.name) for row in rows], field.type)
            for field in self._schema
        ]
        return pa.table(columns, schema=self._schema)


def failure_values(error: ItemError) -> dict[str, Any]:
    """Return the values of `FAILURE_FIELDS` for `error`."""
    return {
        "stage": error.stage,
        "error": error.code,
        "message": error.message,
        "permanent": error.permanent,
        "exit_signal": error.exit_signal,
    }


def clip_array(clips: pa.Table, request: int, row: int) -> NDArray[Any]:
    """Return what answers a request in one row, as a read-only view without a copy."""
    frames, dtype = clips[f"frames_{request}"], clips[f"dtype_{request}"][row].as_py()
    return np.frombuffer(frames[row].as_buffer(), dtype).reshape(clips[f"shape_{request}"][row].as_py())


def prediction_values(prediction: Prediction, has_score: bool = True) -> dict[str, Any]:
    """Return a prediction as a value of `RESULT`; an error if it is not finite. Features may be NaN."""
    partial = prediction.partial
    if partial is not None:
        return {"partial": partial.tobytes(), "partial_shape": partial.shape, "partial_dtype": str(partial.dtype)}
    arrays = (prediction.texture, prediction.saliency, prediction.slot_scores, *prediction.causes.values())
    score = prediction.raw_score if has_score else None
    numbers = [0.0 if score is None else score, *prediction.outputs.values()]
    if not np.isfinite(numbers).all() or not all(np.isfinite(array).all() for array in arrays if array is not None):
        return {"error": "non_finite", "message": f"the model returned NaN or infinity (score {score})"}
    maps = None
    if prediction.causes:
        maps = maps_to_stream(quantise_causes(prediction.causes))
    elif prediction.texture is not None or prediction.saliency is not None:
        maps = maps_to_stream(quantise(prediction.texture, prediction.saliency))
    return {
        "raw_score": score,
        "outputs": list(prediction.outputs.items()),
        "maps": maps,
        "slot_scores": prediction.slot_scores,
        "features": prediction.features,
    }


def partial_result(result: Mapping[str, Any]) -> NDArray[Any]:
    """Return the partial result in a value of `RESULT`, [n, p]."""
    return np.frombuffer(result["partial"], result["partial_dtype"]).reshape(result["partial_shape"])


def maps_to_stream(maps: StoredMaps) -> dict[str, Any]:
    """Return quantised maps as a value of `RESULT.maps`. Levels are bytes: Arrow would convert lists cell by cell."""
    row = maps.row()
    levels = {name: None if row[name] is None else row[name].tobytes() for name in MAP_NAMES}
    return row | levels | {"causes": [(name, percent.tobytes()) for name, percent in maps.causes.items()]}


def maps_from_stream(value: dict[str, Any]) -> dict[str, Any]:
    """Return a value of `RESULT.maps` as columns of the table `maps`, with levels as int8 arrays."""
    levels = {name: None if value[name] is None else np.frombuffer(value[name], np.int8) for name in MAP_NAMES}
    causes = [(name, np.frombuffer(percent, np.int8)) for name, percent in value["causes"]]
    return value | levels | {"causes": causes or None}


def _pixels(arrays: Sequence[NDArray[Any] | None]) -> pa.ChunkedArray:
    """Return one chunk per row that shares the memory of its array."""
    chunks = []
    for pixels in arrays:
        if pixels is None:
            chunks.append(pa.nulls(1, pa.large_binary()))
            continue
        flat = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
        offsets = pa.py_buffer(np.array([0, flat.size], np.int64))
        chunks.append(pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(flat)]))
    return pa.chunked_array(chunks, pa.large_binary())
