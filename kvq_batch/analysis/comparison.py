"""Comparison of two models, or of two runs, over the videos that both scored, for `kvq-batch compare`.

A side is the name of a model (its current scores), a model id (its newest scores), or a run id (what that run scored).
Scores of different bytes say nothing about models, so pairs have equal content ids; only two runs are compared across
new content, which is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvq_batch.analysis.questions import quote_identifier, quote_literal
from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.agreement import MIN_VIDEOS, correlate
from kvq_batch.tables.sandbox import evaluate
from kvq_batch.tables.session import Session

MAX_MAPS = 20_000
"""Videos whose maps are compared: those with the lowest hashes of their ids."""

_MAX_LISTED = 12
_QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95}

Real = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Side:
    """One side: what the user named it, what it is, the model, and SQL for its scores, one row a video."""

    name: str
    is_run: bool
    model_name: str
    sql: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result. `summary` and each of `segments` have equal keys; `movers` and `cells` may be empty.

    `scores` has the columns video_id, segment, score_from and score_to of all pairs, for pictures. `remarks` say why a
    number is null.
    """

    summary: Mapping[str, Any]
    segments: Sequence[Mapping[str, Any]]
    movers: Sequence[Mapping[str, Any]]
    cells: Sequence[Mapping[str, Any]]
    scores: pa.Table
    remarks: Sequence[str] = field(default=())

    def record(self) -> dict[str, Any]:
        """Return everything but the pairs as one JSON object."""
        lists = {"segments": list(self.segments), "movers": list(self.movers), "cells": list(self.cells)}
        return {**self.summary, **lists, "remarks": list(self.remarks)}


# Newest first by commit. A model id may have scores of older content, too.
_NEWEST = """
SELECT * FROM scores WHERE {condition}
QUALIFY row_number() OVER (PARTITION BY video_id, content_id ORDER BY commit_seq DESC) = 1
"""

_PAIRS = """
SELECT f.video_id, {by} AS segment, f.content_id AS content_from, t.content_id AS content_to,
    f.raw_score AS raw_from, t.raw_score AS raw_to, f.mos AS mos_from, t.mos AS mos_to,
    f.model_id AS model_from, t.model_id AS model_to, f.commit_seq AS seq_from, t.commit_seq AS seq_to
FROM ({from_sql}) f JOIN ({to_sql}) t ON t.video_id = f.video_id {same_content}
LEFT JOIN catalog c ON c.video_id = f.video_id
ORDER BY f.video_id
"""

_COUNT = "SELECT count(DISTINCT video_id) AS n FROM ({sql})"

_SHARED = "SELECT count(*) AS n FROM (SELECT video_id FROM ({a}) INTERSECT SELECT video_id FROM ({b}))"

_MAPS = """
WITH chosen AS (SELECT * FROM ({pairs}) ORDER BY hash(video_id) LIMIT {limit}),
one AS (
    SELECT video_id, model_id, commit_seq, clip_index, num_slots, num_rows, num_cols, texture_offset, texture_scale,
        coalesce(texture_mean, texture) AS levels, texture_mean IS NULL AS is_whole
    FROM maps WHERE texture IS NOT NULL AND video_id IN (SELECT video_id FROM chosen)
)
SELECT c.video_id, a.num_rows, a.num_cols, a.levels AS levels_from, a.texture_scale AS scale_from,
    a.texture_offset AS offset_from, b.levels AS levels_to, b.texture_scale AS scale_to, b.texture_offset AS offset_to
FROM chosen c
JOIN one a ON a.video_id = c.video_id AND a.model_id = c.model_from AND a.commit_seq = c.seq_from
JOIN one b ON b.video_id = c.video_id AND b.model_id = c.model_to AND b.commit_seq = c.seq_to
    AND b.clip_index = a.clip_index AND b.num_rows = a.num_rows AND b.num_cols = a.num_cols
"""


def compare(
    session: Session, from_: str, to: str, by: str | None = None, limit: int = 10, model: str | None = None
) -> Comparison:
    """Compare the scores of `from_` and `to`: each a model name, a model id or a run id.

    `by` is a column of the catalog, for one row a segment. `model` chooses one model of runs with several.

    Raises:
        SpecError: an unknown model, run or column (with those that exist), a run with several models, or no video that
            both sides scored.
    """
    a, b = _find_side(session, from_, model), _find_side(session, to, model)
    if by is not None and by not in (known := session.sql("SELECT * FROM catalog LIMIT 0").column_names):
        raise SpecError(f"--by: the catalog has no column {by!r}. Columns: {', '.join(known)}.")
    are_runs = a.is_run and b.is_run
    pairs = _PAIRS.format(
        by="NULL" if by is None else f"c.{quote_identifier(by)}::VARCHAR",
        from_sql=a.sql,
        to_sql=b.sql,
        same_content="" if are_runs else "AND t.content_id = f.content_id",
    )
    found = session.sql(pairs)
    counts = [session.sql(_COUNT.format(sql=side.sql)).to_pylist()[0]["n"] for side in (a, b)]
    shared = session.sql(_SHARED.format(a=a.sql, b=b.sql)).to_pylist()[0]["n"]
    if not found.num_rows:
        raise SpecError(_no_overlap(a, b, counts, shared))
    scale, remarks = _find_scale(session, a, b, found)
    scores = _scored(found, "raw_score" if scale is None else scale)
    pair_counts = {
        "only_from": counts[0] - shared,
        "only_to": counts[1] - shared,
        "other_content": (
            int(np.count_nonzero(found["content_from"].to_numpy() != found["content_to"].to_numpy()))
            if are_runs
            else shared - found.num_rows
        ),
    }
    cells, num_maps = _compare_maps(session, pairs)
    plcc = [row["plcc"] for row in cells if row["plcc"] is not None]
    maps = {
        "map_videos": num_maps,
        "maps_plcc": float(np.median(plcc)) if plcc else None,
        "maps_plcc_lowest": min(plcc) if plcc else None,
    }
    if not num_maps:
        remarks.append("maps: no video has maps with equal numbers of cells on both sides")
    head = {"from": from_, "to": to, "scale": scale}
    x, y = (scores[name].to_numpy() for name in ("score_from", "score_to"))
    summary = {**head, "segment": "(all)", **_agreement(x, y, scale is not None), **pair_counts, **maps}
    if summary["srcc"] is None:
        remarks.append(f"srcc, krcc, plcc: fewer than {MIN_VIDEOS} videos, or all scores of a side are equal")
    segments = [] if by is None else _by_segment(scores, head, scale is not None)
    return Comparison(summary, segments, _top_movers(scores, scale is not None, limit), cells, scores, remarks)


def holds(comparison: Comparison, condition: str) -> bool:
    """Return whether a condition in SQL over the columns of the summary holds.

    It is evaluated in a database of its own that holds one row, read-only as every query of users.

    Raises:
        SpecError: it is not one expression, names an unknown column, or is not true or false (a column is null).
    """
    row = dict(comparison.summary)
    # A column of nulls needs a type, or a comparison with it is an error about types.
    texts = ("from", "to", "scale", "segment")
    schema = pa.schema([pa.field(name, pa.string() if name in texts else pa.float64()) for name in row])
    value = evaluate(pa.Table.from_pylist([row], schema), condition, "--fail-if")
    if isinstance(value, bool):
        return value
    nulls = [name for name, number in row.items() if number is None and name in condition]
    why = f"{', '.join(nulls)} is null" if nulls else f"its value is {value!r}"
    raise SpecError(
        f"--fail-if: {condition!r} is neither true nor false: {why}. {' '.join(comparison.remarks)}".strip()
    )


def _find_side(session: Session, name: str, model: str | None) -> Side:
    """Return the side that `name` names. Raises: SpecError with the models and runs that exist."""
    literal = quote_literal(name)
    # Models of causes or features have no score.
    has_score = "raw_score IS NOT NULL"
    of_run = session.sql(f"SELECT DISTINCT model_name FROM scores WHERE run_id = {literal} AND {has_score} ORDER BY 1")
    names = of_run["model_name"].to_pylist()
    if names:
        if model is not None and model not in names:
            raise SpecError(f"Run {name} has no scores of model {model!r}; it has {', '.join(names)}.")
        if model is None and len(names) > 1:
            raise SpecError(f"Run {name} has scores of several models: add --model with one of {', '.join(names)}.")
        chosen = model or names[0]
        condition = f"run_id = {literal} AND model_name = {quote_literal(chosen)}"
        query = f"SELECT * FROM scores WHERE {condition} QUALIFY {_first_of('video_id')}"
        return Side(name, True, chosen, query)
    models = session.sql(f"SELECT DISTINCT model_name, model_id FROM scores WHERE {has_score} ORDER BY ALL").to_pylist()
    if name in {row["model_name"] for row in models}:
        return Side(name, False, name, f"SELECT * FROM scores_latest WHERE NOT is_stale AND model_name = {literal}")
    for row in models:
        if row["model_id"] == name:
            return Side(name, False, row["model_name"], _NEWEST.format(condition=f"model_id = {literal}"))
    raise SpecError(_unknown(session, name, models))


def _first_of(keys: str) -> str:
    return f"row_number() OVER (PARTITION BY {keys} ORDER BY commit_seq DESC) = 1"


def _unknown(session: Session, name: str, models: Sequence[Mapping[str, Any]]) -> str:
    """Return the message for a name of neither a model nor a run with scores."""
    runs = session.sql(
        "SELECT r.run_id, (SELECT count(*) FROM scores s WHERE s.run_id = r.run_id) AS n FROM runs r "
        "ORDER BY r.commit_seq DESC"
    ).to_pylist()
    if name in {row["run_id"] for row in runs}:
        return f"Run {name} has no scores."
    listed = [row["run_id"] for row in runs if row["n"]][:_MAX_LISTED]
    known = sorted({row["model_name"] for row in models} | {row["model_id"] for row in models})
    return (
        f"There is no model and no run {name!r} here. Models: {', '.join(known) or 'none'}. "
        f"Runs with scores, newest first: {', '.join(listed) or 'none'}."
    )


def _no_overlap(a: Side, b: Side, counts: Sequence[int], shared: int) -> str:
    sizes = f"{a.name} has {counts[0]} and {b.name} has {counts[1]} scored videos"
    if shared:
        return (
            f"{sizes}; {shared} are shared, but scored from different content, which cannot be compared. "
            "Run the job again, so that both score the current content."
        )
    hint = "" if all(counts) else " Scores that are not current are not compared; name a model id or a run for them."
    return f"No video was scored by both: {sizes}.{hint}"


def _find_scale(session: Session, a: Side, b: Side, pairs: pa.Table) -> tuple[str | None, list[str]]:
    """Return the scale on which both sides can be subtracted (mos, raw_score or None), and why there is none."""
    ids = {*pairs["model_from"].unique().to_pylist(), *pairs["model_to"].unique().to_pylist()}
    rows = session.sql("SELECT model_id, calibration FROM models WHERE is_default").to_pylist()
    calibrations = {row["model_id"]: row["calibration"] for row in rows}
    is_calibrated = all(model_id in calibrations for model_id in ids)
    if is_calibrated and (a.model_name == b.model_name or len({calibrations[i] for i in ids}) == 1):
        return "mos", []
    if a.model_name == b.model_name and not any(model_id in calibrations for model_id in ids):
        remarks = [] if len(ids) == 1 else ["shifts: raw scores of two versions of a model may have different scales"]
        return "raw_score", remarks
    return None, [
        "shifts and changes: the scores have no common scale; calibrate both models on the same labels "
        "(kvq-batch calibrate)"
    ]


def _scored(pairs: pa.Table, scale: str) -> pa.Table:
    prefix = "mos" if scale == "mos" else "raw"
    columns = ["video_id", "segment", f"{prefix}_from", f"{prefix}_to"]
    return pairs.select(columns).rename_columns(["video_id", "segment", "score_from", "score_to"])


def _agreement(x: Real, y: Real, is_common_scale: bool) -> dict[str, Any]:
    """Return number, correlations, and quantiles of both sides with their shifts; shifts are null without a scale."""
    row: dict[str, Any] = {"videos": len(x), **correlate(x, y)}
    for name, share in _QUANTILES.items():
        before, after = float(np.quantile(x, share)), float(np.quantile(y, share))
        row |= {f"{name}_from": before, f"{name}_to": after}
        row[f"{name}_shift"] = after - before if is_common_scale else None
    change = y - x
    row["mean_shift"] = float(change.mean()) if is_common_scale else None
    row["largest_drop"] = float(max(0.0, -change.min())) if is_common_scale else None
    row["largest_gain"] = float(max(0.0, change.max())) if is_common_scale else None
    return row


def _by_segment(scores: pa.Table, head: Mapping[str, Any], is_common_scale: bool) -> list[dict[str, Any]]:
    x, y = (scores[name].to_numpy() for name in ("score_from", "score_to"))
    names = np.array(["(null)" if name is None else name for name in scores["segment"].to_pylist()], dtype=object)
    distinct, segment_of = np.unique(names.astype(str), return_inverse=True)
    order = np.argsort(segment_of, kind="stable")
    ends = np.cumsum(np.bincount(segment_of))
    return [
        {**head, "segment": str(name), **_agreement(x[own], y[own], is_common_scale)}
        for name, own in zip(distinct, np.split(order, ends[:-1]), strict=True)
    ]


def _top_movers(scores: pa.Table, is_common_scale: bool, limit: int) -> list[dict[str, Any]]:
    """Return the videos that changed most: by score, or by rank if the scores have no common scale."""
    x, y = (scores[name].to_numpy() for name in ("score_from", "score_to"))
    ranks = [_percentiles(values) for values in (x, y)]
    by = y - x if is_common_scale else ranks[1] - ranks[0]
    chosen = np.lexsort((np.arange(len(by)), -np.abs(by)))[:limit]
    return [
        {
            "video_id": scores["video_id"][int(i)].as_py(),
            "score_from": float(x[i]),
            "score_to": float(y[i]),
            "change": float(y[i] - x[i]) if is_common_scale else None,
            "rank_from": float(ranks[0][i]),
            "rank_to": float(ranks[1][i]),
        }
        for i in chosen
    ]


def _percentiles(values: Real) -> Real:
    """Return the rank of each value in percent, 0 for the lowest and 100 for the highest; ties share a rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    result: Real = 100 * middle[group] / max(1, len(values) - 1)
    return result


def _compare_maps(session: Session, pairs: str) -> tuple[list[dict[str, Any]], int]:
    """Return the correlation of the textures of each cell over videos, and the number of videos with maps."""
    found = session.sql(_MAPS.format(pairs=pairs, limit=MAX_MAPS))
    grids: dict[tuple[int, int], list[int]] = {}
    for index, grid in enumerate(zip(found["num_rows"].to_pylist(), found["num_cols"].to_pylist(), strict=True)):
        grids.setdefault(grid, []).append(index)
    if not grids:
        return [], 0
    (rows, cols), indices = max(grids.items(), key=lambda item: len(item[1]))
    taken = found.take(indices)
    x, y = (_cell_means(taken, side, rows * cols) for side in ("from", "to"))
    cells = [
        {"cell_row": cell // cols, "cell_col": cell % cols, "plcc": correlate(x[:, cell], y[:, cell])["plcc"]}
        for cell in range(rows * cols)
    ]
    return cells, len(set(taken["video_id"].to_pylist()))


def _cell_means(maps: pa.Table, side: str, num_cells: int) -> Real:
    """Return the texture of each cell, float64 [N, cells], means over time slots.

    Releases before `texture_mean` stored whole maps only, which are averaged here.
    """
    scale, offset = (maps[f"{name}_{side}"].to_numpy()[:, None] for name in ("scale", "offset"))
    levels = np.stack([
        np.asarray(row, np.float64).reshape(-1, num_cells).mean(axis=0)
        for row in maps[f"levels_{side}"].to_numpy()
    ])  # fmt: skip
    values: Real = levels * scale + offset
    return values
