"""Evaluate scores against labels: join a list of labels with the scores of the tables, compare, and write results.

    agreement.csv, .parquet         one row per model and segment: all metrics with their intervals
    videos.csv, .parquet            one row per labelled video: label, score, fitted label, residual
    <model id>.calibration.json     the fitted curve, for `kvq-batch calibrate`; not written if it is a step

Labels without a video, videos without a score, and stale scores are counted and named. `report.plots` draws scores
against labels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.labels.files import Labels, Matching, NamedVideo, Scale, match_labels
from kvq_batch.metrics.agreement import METRICS, Agreement, agree
from kvq_batch.metrics.logistic import Logistic, fit_logistic
from kvq_batch.metrics.ranks import Real
from kvq_batch.tables.calibrations import END_MARGIN
from kvq_batch.tables.sandbox import check_expression
from kvq_batch.tables.session import Session
from kvq_batch.tables.table_files import write_csv_and_parquet

MAX_SEGMENTS = 100
MAX_NAMED = 5

# Columns of a score and of the catalog; if both have a column, the score's is used.
_SCORES = """
SELECT video_id, model_id, model_name, model_origin, raw_score, mos, is_stale,
    ({by})::VARCHAR AS segment, ({reference})::VARCHAR AS reference
FROM (
    SELECT s.*, c.* EXCLUDE (video_id, uri, content_id, size_bytes, run_id, commit_seq)
    FROM scores_latest s JOIN catalog c ON c.video_id = s.video_id
    -- Models of features have no score.
    WHERE s.raw_score IS NOT NULL
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


ALL = "(all)"
CALIBRATION = ".calibration.json"

_REALS = [*(f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")), "b1", "b2", "b3", "b4"]
COLUMNS = ("dataset", "model_id", "segment", "videos", "references", *_REALS, "remarks")
_AGREEMENT = pa.schema([
    *((name, pa.string()) for name in ("dataset", "model_id", "segment")),
    *((name, pa.int64()) for name in ("videos", "references")),
    *((name, pa.float64()) for name in _REALS),
    ("remarks", pa.string()),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """Agreement of one model with a data set, in one segment or in all of it."""

    model: LabelledModel
    segment: str
    agreement: Agreement


def evaluate(labelled: Labelled, n_resamples: int = 1000, seed: int = 0) -> list[Result]:
    """Return for each model the agreement over all its labelled videos, then over each segment, ordered by name."""
    results = []
    for model in labelled.models:
        results.append(Result(model, ALL, agree(model.scores, model.labels, model.references, n_resamples, seed)))
        for segment in sorted(set(model.segments or ())):
            indices = [i for i, own in enumerate(model.segments or ()) if own == segment]
            references = None if model.references is None else [model.references[i] for i in indices]
            agreement = agree(model.scores[indices], model.labels[indices], references, n_resamples, seed)
            results.append(Result(model, segment, agreement))
    return results


def result_rows(labelled: Labelled, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one row of COLUMNS for each result."""
    dataset = labelled.labels.dataset
    return [
        {"dataset": dataset, "model_id": result.model.model_id, "segment": result.segment} | result.agreement.row()
        for result in results
    ]


def write_files(labelled: Labelled, results: Sequence[Result], out: Path, scale: Scale | None) -> list[Path]:
    """Write tables and calibrations into the folder `out` and return their paths. Raises: SpecError."""
    agreement = pa.Table.from_pylist(result_rows(labelled, results), _AGREEMENT)
    wholes = [result for result in results if result.segment == ALL]
    written = write_csv_and_parquet(agreement, out / "agreement")
    written += write_csv_and_parquet(pa.concat_tables([_videos(result) for result in wholes]), out / "videos")
    for result in wholes:
        if _curve_for_mos(result, scale) is not None and not result.agreement.is_step:
            written.append(out / f"{result.model.model_id}{CALIBRATION}")
            try:
                written[-1].write_text(json.dumps(calibration(labelled, result, scale), indent=1) + "\n")
            except OSError as error:
                raise SpecError(f"Cannot write {written[-1]}: {error}") from error
    return written


def calibration(labelled: Labelled, result: Result, scale: Scale | None) -> dict[str, Any]:
    """Return the curve for `mos` with its metrics. Its name and parameters go into `calibrations` of a model card."""
    curve, model = _curve_for_mos(result, scale), result.model
    if curve is None:
        raise ValueError(f"{model.model_id} has no fitted curve")
    fitted = curve(model.scores)
    srcc = result.agreement.metrics["srcc"]
    return {
        "calibration": labelled.labels.dataset,
        "model_id": model.model_id,
        "model_name": model.model_name,
        "formula": "mos = b2 + (b1 - b2) / (1 + exp(-(raw_score - b3) / |b4|))",
        **dict(zip(("b1", "b2", "b3", "b4"), curve.parameters, strict=True)),
        "scale": None if scale is None else [scale.low, scale.high],
        "fitted_on_scores": [float(model.scores.min()), float(model.scores.max())],
        "num_videos": result.agreement.num_videos,
        "num_references": result.agreement.num_references,
        "srcc": srcc.value,
        "srcc_low": srcc.low,
        "srcc_high": srcc.high,
        "share_at_ends": _share_at_ends(fitted, model.labels, scale),
        "plcc": float(np.corrcoef(fitted, model.labels)[0, 1]),
        "rmse": float(np.sqrt(np.mean((fitted - model.labels) ** 2))),
    }


def _share_at_ends(fitted: Real, labels: Real, scale: Scale | None) -> float:
    """Return the share of fitted scores that are close to an end of the scale; without one, to the outermost labels."""
    low, high = (float(labels.min()), float(labels.max())) if scale is None else (scale.low, scale.high)
    margin = END_MARGIN * (high - low)
    return float(np.mean((fitted < low + margin) | (fitted > high - margin)))


def _curve_for_mos(result: Result, scale: Scale | None) -> Logistic | None:
    """Return the fitted curve; with `scale`, the best curve whose values stay within it. None if there is no fit."""
    if result.agreement.curve is None or scale is None:
        return result.agreement.curve
    bounded = fit_logistic(result.model.scores, result.model.labels, scale=(scale.low, scale.high))
    return bounded if isinstance(bounded, Logistic) else None


def _videos(result: Result) -> pa.Table:
    model, curve = result.model, result.agreement.curve
    fitted = None if curve is None else curve(model.scores)
    num = len(model.video_ids)
    missing = pa.nulls(num, pa.float64())
    return pa.table({
        "model_id": pa.array([model.model_id] * num, pa.string()),
        "video_id": pa.array(model.video_ids, pa.string()),
        "reference": pa.array(model.references or [None] * num, pa.string()),
        "segment": pa.array(model.segments or [None] * num, pa.string()),
        "label": pa.array(model.labels, pa.float64()),
        "raw_score": pa.array(model.scores, pa.float64()),
        "fitted": missing if fitted is None else pa.array(fitted),
        "residual": missing if fitted is None else pa.array(fitted - model.labels),
    })  # fmt: skip
