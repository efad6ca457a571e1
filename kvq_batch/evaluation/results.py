"""Results of an evaluation of scores against labels, as rows and as files.

    agreement.csv, .parquet         one row per model and segment: all metrics with their intervals
    videos.csv, .parquet            one row per labelled video: label, score, fitted label, residual
    <model id>.calibration.json     the fitted curve, for `kvq-batch calibrate`; not written if it is a step

`report.plots` draws scores against labels.
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
from kvq_batch.labels.files import Scale
from kvq_batch.metrics.agreement import METRICS, Agreement, agree
from kvq_batch.metrics.logistic import Logistic, fit_logistic
from kvq_batch.metrics.ranks import Real
from kvq_batch.tables.calibrations import END_MARGIN
from kvq_batch.tables.table_files import write_csv_and_parquet

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
