"""What an evaluation found, as rows, and as the files that are kept: tables, pictures and calibrations.

    agreement.csv, .parquet         a row for each model and segment, all figures with their intervals
    videos.csv, .parquet            a row for each labelled video: label, score, fitted label, residual
    <model id>.png                  scores against labels, with the fitted curve
    <model id>.calibration.json     the curve, as the tables take it (`kvq-batch calibrate`), unless it is a step

This module asks no tables.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.labelled import Labelled, LabelledModel
from kvq_batch.evaluation.scatter import Scatter, draw_scatter
from kvq_batch.evaluation.tables import write_table
from kvq_batch.labels.files import Scale
from kvq_batch.metrics.agreement import FIGURES, Agreement, agree
from kvq_batch.metrics.logistic import Logistic, fit_logistic

ALL = "(all)"
CALIBRATION = ".calibration.json"

_REALS = [*(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")), "b1", "b2", "b3", "b4"]
COLUMNS = ("dataset", "model_id", "segment", "videos", "sources", *_REALS, "remarks")
_AGREEMENT = pa.schema([
    *((name, pa.string()) for name in ("dataset", "model_id", "segment")),
    *((name, pa.int64()) for name in ("videos", "sources")),
    *((name, pa.float64()) for name in _REALS),
    ("remarks", pa.string()),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """The agreement of one model with a data set, in one segment or in all of it."""

    model: LabelledModel
    segment: str
    agreement: Agreement


def evaluate(labelled: Labelled, n_resamples: int = 1000, seed: int = 0) -> list[Result]:
    """For each model the agreement over all of its labelled videos, then of each segment in order of its name."""
    results = []
    for model in labelled.models:
        results.append(Result(model, ALL, agree(model.scores, model.labels, model.sources, n_resamples, seed)))
        for segment in sorted(set(model.segments or ())):
            places = [place for place, own in enumerate(model.segments or ()) if own == segment]
            sources = None if model.sources is None else [model.sources[place] for place in places]
            agreement = agree(model.scores[places], model.labels[places], sources, n_resamples, seed)
            results.append(Result(model, segment, agreement))
    return results


def rows_of(labelled: Labelled, results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row of COLUMNS for each result."""
    dataset = labelled.labels.dataset
    return [
        {"dataset": dataset, "model_id": result.model.model_id, "segment": result.segment} | result.agreement.row()
        for result in results
    ]


def write_files(labelled: Labelled, results: Sequence[Result], out: Path, scale: Scale | None) -> list[Path]:
    """Writes every file below the folder `out`, and returns their paths. Raises: SpecError where that fails."""
    agreement = pa.Table.from_pylist(rows_of(labelled, results), _AGREEMENT)
    wholes = [result for result in results if result.segment == ALL]
    written = write_table(agreement, out / "agreement")
    written += write_table(pa.concat_tables([_videos(result) for result in wholes]), out / "videos")
    for result in wholes:
        if result.agreement.num_videos:
            written.append(out / f"{result.model.model_id}.png")
            draw_scatter(_scatter(labelled, result, scale), written[-1])
        if _curve_for_mos(result, scale) is not None and not result.agreement.is_step:
            written.append(out / f"{result.model.model_id}{CALIBRATION}")
            try:
                written[-1].write_text(json.dumps(calibration(labelled, result, scale), indent=1) + "\n")
            except OSError as error:
                raise SpecError(f"{written[-1]} cannot be written: {error}") from error
    return written


def calibration(labelled: Labelled, result: Result, scale: Scale | None) -> dict[str, Any]:
    """The curve for `mos`, what it is for and what it is worth; a name of a card's `calibrations` and its numbers."""
    curve, model = _curve_for_mos(result, scale), result.model
    if curve is None:
        raise ValueError(f"{model.model_id} has no fitted curve")
    fitted = curve(model.scores)
    return {
        "calibration": labelled.labels.dataset,
        "model_id": model.model_id,
        "model_name": model.model_name,
        "formula": "mos = b2 + (b1 - b2) / (1 + exp(-(raw_score - b3) / |b4|))",
        **dict(zip(("b1", "b2", "b3", "b4"), curve.parameters, strict=True)),
        "scale": None if scale is None else [scale.low, scale.high],
        "fitted_on_scores": [float(model.scores.min()), float(model.scores.max())],
        "num_videos": result.agreement.num_videos,
        "num_sources": result.agreement.num_sources,
        "srcc": result.agreement.figures["srcc"].value,
        "plcc": float(np.corrcoef(fitted, model.labels)[0, 1]),
        "rmse": float(np.sqrt(np.mean((fitted - model.labels) ** 2))),
    }


def _curve_for_mos(result: Result, scale: Scale | None) -> Logistic | None:
    """The fitted curve; with `scale`, the one of least error of those that stay on it. None where there is none."""
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
        "source": pa.array(model.sources or [None] * num, pa.string()),
        "segment": pa.array(model.segments or [None] * num, pa.string()),
        "label": pa.array(model.labels, pa.float64()),
        "raw_score": pa.array(model.scores, pa.float64()),
        "fitted": missing if fitted is None else pa.array(fitted),
        "residual": missing if fitted is None else pa.array(fitted - model.labels),
    })  # fmt: skip


def _scatter(labelled: Labelled, result: Result, scale: Scale | None) -> Scatter:
    model, agreement, dataset = result.model, result.agreement, labelled.labels.dataset
    has_sources = model.sources is not None
    of = f"{agreement.num_videos} videos" + (f" of {agreement.num_sources} sources" if has_sources else "")
    shown = {name: agreement.figures[name].value for name in ("srcc", "plcc", "rmse")}
    figures = ", ".join(f"{name.upper()} {value:.3f}" for name, value in shown.items() if value is not None)
    title = [(f"{model.model_id} on {dataset}: {of}", False), (figures or agreement.row()["remarks"], False)]
    if model.origin == "untrained":
        title.append(("UNTRAINED: random weights, no quality", True))
    return Scatter(
        scores=model.scores,
        labels=model.labels,
        curve=agreement.curve,
        title=title,
        x_name="raw score (the model's own, without unit)",
        y_name=f"label of {dataset}, {'scale not named' if scale is None else f'scale {scale}'}",
        groups=model.segments,
    )
