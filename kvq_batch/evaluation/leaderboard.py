"""Leaderboard: all models of the tables on one list of labels, with what they cost.

A model is compared on the labelled videos that it scored, or on those that every model scored (`with_common_videos`).
PLCC and RMSE are computed after a logistic fit for each model (`metrics/agreement.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kvq_batch.domain.errors import SpecError
from kvq_batch.evaluation.scores import Labelled, LabelledModel, evaluate
from kvq_batch.tables.session import Session

RANKED = ("srcc", "krcc", "plcc", "rmse")
COLUMNS = (
    "rank", "model_name", "model_id", "model_origin", "videos", "references",
    *(f"{name}{end}" for name in RANKED for end in ("", "_low", "_high")),
    "core_s", "decode_core_s", "num_parameters", "unscored", "stale", "remarks",
)  # fmt: skip

# Decoding is shared by the models of a run, so each of them has all of it. Numbers that are measured while decoding
# (NIQE, ...) are part of it. Older rows do not say how many cores a model used.
_COSTS = """
SELECT s.model_id, avg(s.decode_s) AS decode_core_s, avg(s.decode_s + s.score_s * coalesce(s.score_cores, 1)) AS core_s,
    any_value(m.num_parameters) AS num_parameters
FROM scores_latest s LEFT JOIN (SELECT * FROM models WHERE calibration IS NULL) m ON m.model_id = s.model_id
GROUP BY s.model_id
"""


def read_costs(session: Session) -> dict[str, dict[str, Any]]:
    """Return decode_core_s, core_s (both core-seconds a video) and num_parameters by model id."""
    return {row.pop("model_id"): row for row in session.sql(_COSTS).to_pylist()}


def with_common_videos(labelled: Labelled) -> Labelled:
    """Return the labelled scores of the videos that every model scored.

    Raises:
        SpecError: there is no such video.
    """
    common = set.intersection(*(set(model.video_ids) for model in labelled.models)) if labelled.models else set()
    if not common:
        raise SpecError("No labelled video has a score of every model. Select models with --model, or omit --common.")
    return replace(labelled, models=tuple(_take(model, common) for model in labelled.models))


def _take(model: LabelledModel, videos: set[str]) -> LabelledModel:
    indices = [i for i, video_id in enumerate(model.video_ids) if video_id in videos]
    references = None if model.references is None else tuple(model.references[i] for i in indices)
    return replace(
        model,
        video_ids=tuple(model.video_ids[i] for i in indices),
        scores=model.scores[np.array(indices)],
        labels=model.labels[np.array(indices)],
        references=references,
        segments=None,
    )


def leaderboard_rows(
    labelled: Labelled, costs: Mapping[str, Mapping[str, Any]], n_resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Return one row of COLUMNS for each model, the highest SRCC first; models without one are last, without a rank."""
    rows = []
    for result in evaluate(labelled, n_resamples, seed):
        model, found = result.model, result.agreement.row()
        rows.append(
            {
                **dict.fromkeys(COLUMNS),
                **{name: value for name, value in found.items() if name in COLUMNS},
                **costs.get(model.model_id, {}),
                "model_name": model.model_name,
                "model_id": model.model_id,
                "model_origin": model.origin,
                "unscored": model.num_unscored,
                "stale": model.num_stale,
            }
        )
    rows.sort(key=lambda row: (row["srcc"] is None, -(row["srcc"] or 0.0), row["model_id"]))
    for rank, row in enumerate((row for row in rows if row["srcc"] is not None), 1):
        row["rank"] = rank
    return rows


def differing_counts(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether models were compared on different numbers of videos."""
    return len({row["videos"] for row in rows}) > 1
