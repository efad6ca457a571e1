"""Scores and maps of single videos by time: what pictures and the report draw, as plain numbers.

A moment is one time slot of a clip, or the whole clip for a model without time slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvq_batch.analysis.quality_scale import QualityScale, load_scale
from kvq_batch.analysis.questions import quote_literal, quote_literals
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.maps import StoredMaps, dequantise
from kvq_batch.tables.session import Session

# Conditions on `maps` repeat those on `scores` and `clips`: DuckDB does not derive them, and would read all maps.
_SCORED = """
SELECT s.video_id, s.model_name, s.model_id, s.commit_seq, s.model_origin, s.num_clips, s.raw_score, s.mos, s.is_stale,
    s.width_px, s.height_px, s.sample_aspect_ratio, s.duration_s, c.uri, s.content_id,
    EXISTS (
        FROM maps m WHERE m.video_id = s.video_id AND m.model_id = s.model_id AND m.commit_seq = s.commit_seq
            AND m.video_id IN ({videos}) AND (m.texture IS NOT NULL OR m.saliency IS NOT NULL)
    ) AS has_maps
FROM scores_latest s JOIN catalog c ON c.video_id = s.video_id
WHERE s.video_id IN ({videos}) AND s.raw_score IS NOT NULL ORDER BY s.video_id, s.model_name
"""

_CLIPS = """
SELECT k.video_id, k.commit_seq, k.clip_index, k.start_s, k.end_s, k.slot_start_s, k.slot_scores, k.frame_indices,
    k.raw_score, m.num_slots, m.num_rows, m.num_cols, m.texture, m.texture_offset, m.texture_scale, m.saliency,
    m.saliency_offset, m.saliency_scale
FROM clips k LEFT JOIN maps m ON m.video_id = k.video_id AND m.model_id = k.model_id AND m.commit_seq = k.commit_seq
    AND m.clip_index = k.clip_index AND m.model_id = {model_id} AND m.video_id IN ({videos})
WHERE k.model_id = {model_id} AND k.video_id IN ({videos}) ORDER BY k.video_id, k.clip_index
"""


@dataclass(frozen=True, slots=True)
class Moment:
    """One time slot: its time in the video, its quality, its first frame and its maps.

    `value` and `texture` float64 [row, column] are in the unit of the scale; `saliency` is float32 [row, column] with
    mean 1. `from_s` and `until_s` are None where the tables have no times.
    """

    clip_index: int
    slot: int
    from_s: float | None
    until_s: float | None
    value: float
    raw_score: float
    frame_index: int | None
    texture: NDArray[np.float64] | None
    saliency: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class VideoMaps:
    """One video as one model scored it, moment by moment. `value` is in the unit of `scale`."""

    video_id: str
    uri: str
    content_id: str
    model_name: str
    model_id: str
    model_origin: str
    raw_score: float
    value: float
    scale: QualityScale
    width_px: int | None
    height_px: int | None
    sample_aspect_ratio: float | None
    duration_s: float | None
    moments: tuple[Moment, ...]

    def worst(self) -> Moment:
        """Return the moment with the lowest quality, the first of several."""
        return min(self.moments, key=lambda moment: moment.value)

    def best(self) -> Moment:
        """Return the moment with the highest quality, the first of several."""
        return max(self.moments, key=lambda moment: moment.value)

    def pick(self, count: int) -> list[Moment]:
        """Return up to `count` moments in the order of time: the worst ones, and the best one to compare with."""
        if count >= len(self.moments):
            return list(self.moments)
        worst = sorted(self.moments, key=lambda moment: moment.value)[: max(1, count - 1)]
        best = self.best()
        chosen = [*worst, *[best] * (count > 1 and all(best is not moment for moment in worst))]
        return [moment for moment in self.moments if any(moment is one for one in chosen)]

    def at(self, time_s: float) -> Moment:
        """Return the moment that a time in the video belongs to, or the nearest one."""

        def distance(moment: Moment) -> float:
            if moment.from_s is None or moment.until_s is None:
                return 0.0
            return max(moment.from_s - time_s, time_s - moment.until_s, 0.0)

        # Of two moments that meet at this time, the later one has begun.
        return min(reversed(self.moments), key=distance)


def find_video(
    session: Session, video_id: str, model: str | None = None, clip: int | None = None, has_maps: bool = True
) -> VideoMaps:
    """Return the moments of one video, of all clips or of one; of the first model with maps if `model` is None.

    Raises:
        SpecError: no score or no such clip; or no maps, unless `has_maps` is False.
    """
    scored = session.sql(_SCORED.format(videos=quote_literal(video_id))).to_pylist()
    if not scored:
        raise SpecError(
            f"Video {video_id!r} has no score in these tables. List the videos with scores with "
            '`kvq-batch query TABLES "SELECT video_id FROM scores_latest"`, and failed ones with '
            "`kvq-batch failures list TABLES`."
        )
    with_maps = [row for row in scored if row["has_maps"]] if has_maps else scored
    chosen = [row for row in with_maps if model is None or row["model_name"] == model]
    if not chosen:
        requested = f"model {model!r}" if model else ", ".join(row["model_name"] for row in scored)
        known = ", ".join(row["model_name"] for row in with_maps) or "no model"
        what = "maps" if has_maps else "score"
        raise SpecError(f"Video {video_id!r} has no {what} of {requested}. It has {what} of {known}.")
    row = chosen[0]
    (found,) = _join(session, [row], load_scale(session, row["model_id"]))
    if clip is None:
        return found
    moments = tuple(moment for moment in found.moments if moment.clip_index == clip)
    if not moments:
        last = row["num_clips"] - 1
        raise SpecError(f"Video {video_id!r} has no clip {clip} of {row['model_name']}; its clips are 0 to {last}.")
    return replace(found, moments=moments)


def load_videos(session: Session, video_ids: Sequence[str], model_id: str) -> list[VideoMaps]:
    """Return the moments of several videos by one model, in the given order, without the videos that have no score."""
    rows = session.sql(_SCORED.format(videos=quote_literals(video_ids))).to_pylist()
    by_id = {row["video_id"]: row for row in rows if row["model_id"] == model_id}
    return _join(session, [by_id[v] for v in video_ids if v in by_id], load_scale(session, model_id))


def _join(session: Session, scored: Sequence[dict[str, Any]], scale: QualityScale) -> list[VideoMaps]:
    """Return the videos of these rows, which are of one model, with their clips."""
    if not scored:
        return []
    videos = quote_literals([row["video_id"] for row in scored])
    clips = session.sql(_CLIPS.format(model_id=quote_literal(scored[0]["model_id"]), videos=videos)).to_pylist()
    joined = []
    for row in scored:
        moments = [
            moment
            for clip in clips
            if (clip["video_id"], clip["commit_seq"]) == (row["video_id"], row["commit_seq"])
            for moment in _moments(clip, scale)
        ]
        value = float(scale.values(np.array(row["raw_score"], np.float64)))
        same = ("video_id", "uri", "content_id", "model_name", "model_id", "model_origin", "raw_score")
        size = ("width_px", "height_px", "sample_aspect_ratio", "duration_s")
        fields = {name: row[name] for name in (*same, *size)}
        joined.append(VideoMaps(**fields, value=value, scale=scale, moments=tuple(moments)))
    return joined


def _moments(clip: dict[str, Any], scale: QualityScale) -> list[Moment]:
    """Return the time slots of one clip."""
    texture, saliency = _maps_of(clip)
    scores = clip["slot_scores"] or []
    num_slots = clip["num_slots"] or max(1, len(scores))
    starts = clip["slot_start_s"] or []
    frames = clip["frame_indices"] or []
    moments = []
    for slot in range(num_slots):
        raw = scores[slot] if slot < len(scores) else clip["raw_score"]
        first = clip["start_s"] if slot == 0 else (starts[slot] if slot < len(starts) else None)
        last = clip["end_s"] if slot == num_slots - 1 else (starts[slot + 1] if slot + 1 < len(starts) else None)
        moments.append(
            Moment(
                clip_index=clip["clip_index"],
                slot=slot,
                from_s=first,
                until_s=last,
                value=float(scale.values(np.array(raw, np.float64))),
                raw_score=raw,
                frame_index=frames[slot * len(frames) // num_slots] if frames else None,
                texture=None if texture is None else scale.values(texture[slot]),
                saliency=None if saliency is None else saliency[slot],
            )
        )
    return moments


def _maps_of(clip: dict[str, Any]) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Return texture and saliency of a clip, float32 [slot, row, column], or None."""
    if clip["num_slots"] is None:
        return None, None
    return dequantise(
        StoredMaps(
            shape=(clip["num_slots"], clip["num_rows"], clip["num_cols"]),
            texture=None if clip["texture"] is None else np.array(clip["texture"], np.int8),
            texture_offset=clip["texture_offset"],
            texture_scale=clip["texture_scale"],
            saliency=None if clip["saliency"] is None else np.array(clip["saliency"], np.int8),
            saliency_offset=clip["saliency_offset"],
            saliency_scale=clip["saliency_scale"],
        )
    )
