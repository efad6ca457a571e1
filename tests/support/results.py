"""Small synthetic results for tests of tables, views and planner, with all column types."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from kvq_batch.domain.identity import ModelRef
from kvq_batch.domain.maps import quantise
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Batch

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
KVQ = ModelRef("kvq-tiny", "kvq-tiny@1-0123456789ab", "f" * 64)
LUMA = ModelRef("luma", "luma@1-ba9876543210", "e" * 64)


def make_catalog(videos: Sequence[str], content: str = "etag:1", **columns: Sequence[Any]) -> pa.Table:
    """Return a catalog table with the standard columns and additional `columns`."""
    num = len(videos)
    return pa.table(
        {
            "video_id": pa.array(videos, pa.string()),
            "uri": pa.array([f"s3://bucket/{video}" for video in videos], pa.string()),
            "content_id": pa.array([content] * num, pa.string()),
            "size_bytes": pa.array([1000] * num, pa.int64()),
            "start_s": pa.nulls(num, pa.float64()),
            "end_s": pa.nulls(num, pa.float64()),
            **columns,
        }
    )


def make_maps(seed: int, num_slots: int = 3, num_rows: int = 4, num_cols: int = 5) -> tuple[Any, Any]:
    """Return texture and saliency, float32 [slot, row, column]; the mean of saliency is 1 in each slot."""
    generator = np.random.default_rng(seed)
    texture = generator.normal(0.3, 0.2, (num_slots, num_rows, num_cols)).astype(np.float32)
    logits = generator.normal(0, 2, texture.shape)
    weights = np.exp(logits)
    saliency = weights / weights.mean(axis=(1, 2), keepdims=True)
    return texture, saliency.astype(np.float32)


def make_batch(
    videos: Sequence[str],
    model: ModelRef = KVQ,
    content: str = "etag:1",
    seed: int = 0,
    num_clips: int = 1,
    scored_at: datetime = NOW,
) -> Batch:
    """Return scores, clips and maps of `videos`; a score is the mean over clips of mean(texture * saliency)."""
    scores, clips, maps = [], [], []
    for number, video in enumerate(videos):
        key = {"video_id": video, "content_id": content, "model_id": model.model_id, "fingerprint": model.fingerprint}
        raw_scores = []
        for clip_index in range(num_clips):
            texture, saliency = make_maps(seed + 1000 * number + clip_index)
            raw_score = float(np.mean(texture.astype(np.float64) * saliency))
            stored = quantise(texture, saliency)
            raw_scores.append(raw_score)
            clips.append(
                {
                    **key,
                    "clip_index": clip_index,
                    "start_s": 4.0 * clip_index,
                    "end_s": 4.0 * clip_index + 4.0,
                    "frame_indices": [0, 2, 4, 6, 8, 10],
                    "slot_start_s": [0.0, 1.5, 3.0],
                    "raw_score": raw_score,
                    "slot_scores": (texture * saliency).mean(axis=(1, 2)).tolist(),
                }
            )
            maps.append({**key, "clip_index": clip_index, **stored.row()})
        scores.append(
            {
                **key,
                "uri": f"s3://bucket/{video}",
                "model_name": model.name,
                "model_origin": "untrained",
                "raw_score": float(np.mean(raw_scores)),
                "score_spread": float(np.std(raw_scores)),
                "num_clips": num_clips,
                "outputs": {"sharpness": 0.5},
                "width_px": 1920,
                "height_px": 1080,
                "codec": "h264",
                "attempt": 1,
                "scored_at": scored_at,
            }
        )
    return Batch(make_rows("maps", maps), make_rows("clips", clips), None, make_rows("scores", scores))


def make_failures(
    videos: Sequence[str],
    model: ModelRef = KVQ,
    content: str = "etag:1",
    final: bool = True,
    permanent: bool = True,
) -> Batch:
    rows = [
        {
            "video_id": video,
            "uri": f"s3://bucket/{video}",
            "content_id": content,
            "model_id": model.model_id,
            "model_name": model.name,
            "fingerprint": model.fingerprint,
            "attempt": 1,
            "stage": "decode",
            "error": "decoder_crashed",
            "message": "the decoder was ended by a signal",
            "exit_signal": "SIGSEGV",
            "final": final,
            "permanent": permanent,
            "failed_at": NOW,
        }
        for video in videos
    ]
    return Batch(failures=make_rows("failures", rows))


def make_run(
    models: Sequence[ModelRef] = (KVQ,), catalog: str = "nightly", root: str = "s3://bucket", state: str = "running"
) -> pa.Table:
    row = {
        "job": "nightly",
        "job_spec": "{}",
        "catalog": catalog,
        "catalog_root": root,
        "state": state,
        "models": [{"name": m.name, "model_id": m.model_id, "fingerprint": m.fingerprint} for m in models],
        "planned_by_reason": {"new": 2},
        "started_at": NOW,
        "versions": {"ray": "2.60.0"},
        "message": "",
    }
    return make_rows("runs", [row])


def make_model(
    model: ModelRef = KVQ, calibration: str | None = None, b: Sequence[float] = (), is_default: bool = False
) -> pa.Table:
    row = {
        "model_id": model.model_id,
        "model_name": model.name,
        "version": "1",
        "origin": "untrained",
        "digest": "0" * 64,
        "summary": "a model of the tests",
        "calibration": calibration,
        "is_default": is_default,
        "added_at": NOW,
        **dict(zip(("b1", "b2", "b3", "b4"), b, strict=False)),
    }
    return make_rows("models", [row])


def with_features(batch: Batch, values: Sequence[float] = (0.5, 1.5)) -> Batch:
    """Return the batch with the same features for each of its scores."""
    keys = ("video_id", "content_id", "model_id", "fingerprint", "model_name")
    number = {"num_features": len(values), "num_undefined": 0, "features": list(values)}
    rows = [{name: row[name] for name in keys} | number for row in batch.scores.to_pylist()]
    return replace(batch, features=make_rows("features", rows))
