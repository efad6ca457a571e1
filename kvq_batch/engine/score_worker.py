"""The scoring stage of one model: Arrow blocks of clips in, the same blocks with this model's results out.

A worker builds its model once, from a small descriptor. A batch that raises is scored again clip by clip, so that
one poisoned clip costs only itself. This module decides nothing about retries; the driver does.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvq_batch.domain.maps import quantise
from kvq_batch.domain.scorer import ModelOptions, Prediction, Scorer
from kvq_batch.engine.stream import RESULT, clip_pixels, maps_to_stream
from kvq_batch.io.redact import redact
from kvq_batch.models.registry import build


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """What a scoring worker of one model must know.

    `bit` is the model's place in the job, `request` the frame request that it wants, `drops` the requests whose
    frames no later model needs.
    """

    model: ModelOptions
    bit: int
    request: int
    drops: tuple[int, ...]
    batch_size: int


class ScoreWorker:
    """Callable that Ray Data builds once per actor."""

    def __init__(self, settings: ScoreSettings) -> None:
        self._settings = settings
        self._scorer = build(settings.model)

    def __call__(self, clips: pa.Table) -> pa.Table:
        settings = self._settings
        wanted = clips["wanted"].to_numpy()
        has_frames = clips[f"shape_{settings.request}"].is_valid().to_numpy()
        rows = np.flatnonzero(((wanted >> settings.bit) & 1).astype(bool) & has_frames)
        results: list[dict[str, Any] | None] = [None] * clips.num_rows
        frames, shapes = clips[f"frames_{settings.request}"], clips[f"shape_{settings.request}"]
        for start in range(0, len(rows), settings.batch_size):
            batch = rows[start : start + settings.batch_size]
            pixels = [clip_pixels(frames, shapes, int(row)) for row in batch]
            for row, result in zip(batch, score_clips(self._scorer, pixels), strict=True):
                results[int(row)] = result
        kept = clips.drop_columns([f"frames_{r}" for r in settings.drops])
        return kept.append_column(f"result_{settings.bit}", pa.array(results, RESULT))


def score_clips(scorer: Scorer, clips: Sequence[NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """One value of `RESULT` per clip, in order; a clip that the model cannot score carries the reason."""
    started = time.perf_counter()
    try:
        predictions = zip(clips, scorer.score(clips), strict=True)
        results = [_result(prediction) for _, prediction in predictions]
    except Exception as error:  # noqa: BLE001 - the worker's outermost frame: any model, any exception
        if len(clips) == 1:
            return [{"error": type(error).__name__, "message": redact(str(error))}]
        return [result for clip in clips for result in score_clips(scorer, [clip])]
    share_s = (time.perf_counter() - started) / len(clips)
    return [result | {"score_s": share_s} for result in results]


def _result(prediction: Prediction) -> dict[str, Any]:
    arrays = (prediction.texture, prediction.saliency, prediction.slot_scores, prediction.features)
    numbers = [prediction.raw_score, *prediction.outputs.values()]
    if not np.isfinite(numbers).all() or not all(np.isfinite(array).all() for array in arrays if array is not None):
        return {"error": "non_finite", "message": f"the model returned NaN or infinity (score {prediction.raw_score})"}
    has_maps = prediction.texture is not None or prediction.saliency is not None
    return {
        "raw_score": prediction.raw_score,
        "outputs": list(prediction.outputs.items()),
        "maps": maps_to_stream(quantise(prediction.texture, prediction.saliency)) if has_maps else None,
        "slot_scores": prediction.slot_scores,
        "features": prediction.features,
    }
