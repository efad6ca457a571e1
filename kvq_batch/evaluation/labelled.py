"""Join a list of labels with the scores of the tables, model by model.

Labels without a video, videos without a score, and stale scores are counted and named.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.labels.files import Labels, Matching, NamedVideo, match_labels
from kvq_batch.tables.sandbox import check_expression
from kvq_batch.tables.session import Session

MAX_SEGMENTS = 100
MAX_NAMED = 5

# Columns of a score and of the catalog; if both have a column, the score's is used.
_SCORES = """
SELECT video_id, model_id, model_name, model_origin, raw_score, mos, is_stale,
    ({by})::VARCHAR AS segment, ({reference})::VARCHAR AS reference
FROM (
    SELECT s.*, c.* EXCLUDE (video_id, uri, content_id, size_bytes, run_id, commit_seq)
    FROM scores_latest s JOIN catalog c ON c.video_id = s.video_id
)
"""
_VIDEOS = "SELECT video_id, uri, ({key})::VARCHAR AS key FROM catalog ORDER BY video_id"


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """What to join with the labels.

    `by` (segments) and `reference` are each a column of the list of labels, or an SQL expression over the columns of
    `scores_latest` and `catalog`. `key` is an expression over `catalog` that is compared with the names of the labels.
    """

    models: tuple[str, ...] = ()
    by: str | None = None
    reference: str | None = None
    key: str | None = None
    include_stale: bool = False


@dataclass(frozen=True, slots=True)
class LabelledModel:
    """The labelled videos of one model, all arrays [N]. `segments` and `references` are None if not requested.

    `num_stale` stale scores were left out. `num_unscored` labelled videos have no score of this model; `unscored` names
    the first ones.
    """

    model_id: str
    model_name: str
    origin: str
    video_ids: tuple[str, ...]
    scores: NDArray[np.float64]
    labels: NDArray[np.float64]
    segments: tuple[str, ...] | None
    references: tuple[str, ...] | None
    num_stale: int
    num_unscored: int
    unscored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A data set joined with the scores of all models."""

    labels: Labels
    matching: Matching
    models: tuple[LabelledModel, ...]


def join_labels(session: Session, labels: Labels, options: JoinOptions = JoinOptions()) -> Labelled:
    """Return the scores of the labelled videos for each requested model, or for all, ordered by model id.

    Raises:
        SpecError: an invalid SQL expression, a model without scores, no label with a video, a video without a
            reference, or more than MAX_SEGMENTS segments.
    """
    key = "NULL" if options.key is None else check_expression(options.key, "--key")
    listed = session.sql(_VIDEOS.format(key=key)).to_pylist()
    videos = [NamedVideo(row["video_id"], row["uri"], row["key"]) for row in listed]
    matching = match_labels(labels.names, videos, by_key=options.key is not None, shown=MAX_NAMED)
    index_of = {video_id: index for index, video_id in enumerate(matching.video_of) if video_id is not None}
    if not index_of:
        name, why = matching.unmatched[0]
        raise SpecError(
            f"{labels.dataset}: none of its {len(labels.names)} labels names a video of these tables. The first label "
            f"is {name!r} ({why}); a video id is {videos[0].video_id!r}."
            if videos
            else "The catalog of these tables is empty."
        )
    scores = _scores(session, labels, options)
    is_labelled = pc.is_in(scores["video_id"], value_set=pa.array(list(index_of)))
    chosen = scores.filter(is_labelled)
    ids = sorted(set(_ids(scores, options.models)))
    models = tuple(_model(chosen, model_id, labels, index_of, options) for model_id in ids)
    return Labelled(labels, matching, tuple(model for model in models if model.video_ids or model.num_stale))


def _scores(session: Session, labels: Labels, options: JoinOptions) -> pa.Table:
    """Return the scores of all videos. Expressions that are columns of the labels are filled in later."""
    expressions = {
        name: "NULL" if text is None or labels.column(text) is not None else check_expression(text, f"--{name}")
        for name, text in (("by", options.by), ("reference", options.reference))
    }
    return session.sql(_SCORES.format(**expressions))


def _ids(scores: pa.Table, requested: Sequence[str]) -> list[str]:
    """Return the ids of the models that are requested by name or id."""
    models = set(zip(scores["model_name"].to_pylist(), scores["model_id"].to_pylist(), strict=True))
    unknown = [name for name in requested if not any(name in names for names in models)]
    if unknown or not models:
        known = ", ".join(sorted({name for name, _ in models})) or "none: nothing is scored yet"
        raise SpecError(f"These tables have no score of model {', '.join(unknown) or '(any)'}. Models are {known}.")
    return [model_id for name, model_id in models if not requested or name in requested or model_id in requested]


def _model(
    scores: pa.Table, model_id: str, labels: Labels, index_of: dict[str, int], options: JoinOptions
) -> LabelledModel:
    own = scores.filter(pc.equal(scores["model_id"], model_id)).sort_by("video_id")
    name = own["model_name"][0].as_py() if own.num_rows else model_id.partition("@")[0]
    origin = own["model_origin"][0].as_py() if own.num_rows else ""
    used = own if options.include_stale else own.filter(pc.invert(own["is_stale"]))
    ids = used["video_id"].to_pylist()
    indices = [index_of[video_id] for video_id in ids]
    scored = set(own["video_id"].to_pylist())
    unscored = [video_id for video_id in index_of if video_id not in scored]
    references = _values(used, "reference", options.reference, labels, indices)
    if references is not None and None in references:
        first = ids[references.index(None)]
        num = references.count(None)
        raise SpecError(f"--reference {options.reference}: {num} videos have no value, the first is {first!r}.")
    return LabelledModel(
        model_id=model_id,
        model_name=name,
        origin=origin,
        video_ids=tuple(ids),
        scores=used["raw_score"].to_numpy(),
        labels=labels.values[indices],
        segments=_segments(_values(used, "segment", options.by, labels, indices), options.by),
        references=None if references is None else tuple(str(reference) for reference in references),
        num_stale=own.num_rows - used.num_rows,
        num_unscored=len(unscored),
        unscored=tuple(unscored[:MAX_NAMED]),
    )


def _values(
    scores: pa.Table, column: str, expression: str | None, labels: Labels, indices: Sequence[int]
) -> list[str | None] | None:
    """Return a value for each row, from the labels if the expression is one of their columns."""
    if expression is None:
        return None
    own = labels.column(expression)
    if own is not None:
        return [own[index] for index in indices]
    values: list[str | None] = scores[column].to_pylist()
    return values


def _segments(values: list[Any] | None, by: str | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    if len(set(values)) > MAX_SEGMENTS:
        raise SpecError(
            f"--by {by}: {len(set(values))} distinct values; at most {MAX_SEGMENTS} allowed. Group them in SQL: "
            "--by 'width_px >= 1280'."
        )
    return tuple("(none)" if value is None else str(value) for value in values)
