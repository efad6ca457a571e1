"""Scores beside labels: what the tables say of the videos that a list names, model by model.

Nothing is left out in silence: labels without a video, videos without a score, and scores that are stale are counted
and named. This module computes no figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.labels.files import Labels
from kvq_batch.labels.matching import Matching, Video, match_labels
from kvq_batch.tables.session import Session

MAX_SEGMENTS = 100
SHOWN = 5

# The catalog's columns beside those of a score; what both have is the score's.
_SCORES = """
SELECT video_id, model_id, model_name, model_origin, raw_score, mos, is_stale,
    ({by})::VARCHAR AS segment, ({source})::VARCHAR AS source
FROM (
    SELECT s.*, c.* EXCLUDE (video_id, uri, content_id, size_bytes, run_id, commit_seq)
    FROM scores_latest s JOIN catalog c ON c.video_id = s.video_id
)
"""
_VIDEOS = "SELECT video_id, uri, ({key})::VARCHAR AS key FROM catalog ORDER BY video_id"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of the tables.

    `by` and `source` are each a column of the list of labels, or an SQL expression over the columns of
    `scores_latest` and `catalog`; `key` is an expression over `catalog` that the labels' names are compared with.
    """

    models: tuple[str, ...] = ()
    by: str | None = None
    source: str | None = None
    key: str | None = None
    has_stale: bool = False


@dataclass(frozen=True, slots=True)
class LabelledModel:
    """The labelled videos of one model, arrays of one length; `segments` and `sources` None where none is asked for.

    `num_stale` scores were left out for being stale, `unscored` labelled videos have none of this model (the first
    are named).
    """

    model_id: str
    model_name: str
    origin: str
    video_ids: tuple[str, ...]
    scores: NDArray[np.float64]
    labels: NDArray[np.float64]
    segments: tuple[str, ...] | None
    sources: tuple[str, ...] | None
    num_stale: int
    num_unscored: int
    unscored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A data set against the tables."""

    labels: Labels
    matching: Matching
    models: tuple[LabelledModel, ...]


def join_labels(session: Session, labels: Labels, asked: Asked = Asked()) -> Labelled:
    """The scores of the labelled videos, for each model that is asked for, or for all, in order of their ids.

    Raises:
        SpecError: an expression that SQL refuses, a model without scores here, no label with a video, a video without
            a source, or more than MAX_SEGMENTS segments.
    """
    listed = session.sql(_VIDEOS.format(key=asked.key or "NULL")).to_pylist()
    videos = [Video(row["video_id"], row["uri"], row["key"]) for row in listed]
    matching = match_labels(labels.names, videos, by_key=asked.key is not None, shown=SHOWN)
    place_of = {video_id: place for place, video_id in enumerate(matching.video_of) if video_id is not None}
    if not place_of:
        name, why = matching.unmatched[0]
        raise SpecError(
            f"{labels.dataset}: none of its {len(labels.names)} labels names a video of these tables; the first is "
            f"{name!r} ({why}), a video is called {videos[0].video_id!r}"
            if videos
            else "the catalog of these tables is empty"
        )
    scores = _scores(session, labels, asked)
    is_labelled = pc.is_in(scores["video_id"], value_set=pa.array(list(place_of)))
    chosen = scores.filter(is_labelled)
    ids = sorted(set(_ids(scores, asked.models)))
    models = tuple(_model(chosen, model_id, labels, place_of, asked) for model_id in ids)
    return Labelled(labels, matching, tuple(model for model in models if model.video_ids or model.num_stale))


def _scores(session: Session, labels: Labels, asked: Asked) -> pa.Table:
    """Scores of all videos; expressions that are columns of the labels are filled in later."""
    expressions = {
        name: "NULL" if text is None or labels.column(text) is not None else text
        for name, text in (("by", asked.by), ("source", asked.source))
    }
    return session.sql(_SCORES.format(**expressions))


def _ids(scores: pa.Table, asked: Sequence[str]) -> list[str]:
    """Ids of the models that are asked for by name or id."""
    pairs = set(zip(scores["model_name"].to_pylist(), scores["model_id"].to_pylist(), strict=True))
    unknown = [name for name in asked if not any(name in pair for pair in pairs)]
    if unknown or not pairs:
        known = ", ".join(sorted({name for name, _ in pairs})) or "none: nothing is scored yet"
        raise SpecError(f"these tables have no score of model {', '.join(unknown) or '(any)'}; models are {known}")
    return [model_id for name, model_id in pairs if not asked or name in asked or model_id in asked]


def _model(scores: pa.Table, model_id: str, labels: Labels, place_of: dict[str, int], asked: Asked) -> LabelledModel:
    own = scores.filter(pc.equal(scores["model_id"], model_id)).sort_by("video_id")
    name = own["model_name"][0].as_py() if own.num_rows else model_id.partition("@")[0]
    origin = own["model_origin"][0].as_py() if own.num_rows else ""
    used = own if asked.has_stale else own.filter(pc.invert(own["is_stale"]))
    ids = used["video_id"].to_pylist()
    places = [place_of[video_id] for video_id in ids]
    scored = set(own["video_id"].to_pylist())
    unscored = [video_id for video_id in place_of if video_id not in scored]
    sources = _values(used, "source", asked.source, labels, places)
    if sources is not None and None in sources:
        first = ids[sources.index(None)]
        raise SpecError(f"--source {asked.source}: {sources.count(None)} videos have none, first {first!r}")
    return LabelledModel(
        model_id=model_id,
        model_name=name,
        origin=origin,
        video_ids=tuple(ids),
        scores=used["raw_score"].to_numpy(),
        labels=labels.values[places],
        segments=_segments(_values(used, "segment", asked.by, labels, places), asked.by),
        sources=None if sources is None else tuple(str(source) for source in sources),
        num_stale=own.num_rows - used.num_rows,
        num_unscored=len(unscored),
        unscored=tuple(unscored[:SHOWN]),
    )


def _values(
    scores: pa.Table, column: str, expression: str | None, labels: Labels, places: Sequence[int]
) -> list[str | None] | None:
    """A value for each row: from the labels where the expression is a column of theirs."""
    if expression is None:
        return None
    own = labels.column(expression)
    if own is not None:
        return [own[place] for place in places]
    values: list[str | None] = scores[column].to_pylist()
    return values


def _segments(values: list[Any] | None, by: str | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    if len(set(values)) > MAX_SEGMENTS:
        raise SpecError(
            f"--by {by}: {len(set(values))} different values; at most {MAX_SEGMENTS} segments. Group them in SQL, as "
            "in --by 'width_px >= 1280'"
        )
    return tuple("(none)" if value is None else str(value) for value in values)
