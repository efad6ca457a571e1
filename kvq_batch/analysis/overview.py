"""Everything that a report about a catalog shows, as plain rows: one function for each chapter.

The rows hold numbers, texts and None, and nothing about how they are drawn. `select_model` chooses the model that the
chapters about single videos follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvq_batch.analysis.quality_scale import QualityScale, load_scale
from kvq_batch.analysis.questions import (
    ask,
    build,
    quote_identifier,
    quote_literal,
    quote_literals,
    select_current,
    selected_columns,
)
from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.questions import count_failures, count_totals, list_runs, select_failures
from kvq_batch.tables.session import Session

Row = dict[str, Any]

NUM_BINS = 20
MIN_SEVERITY = 0.25
"""Least severity over a whole video, from 0 to 1, for a cause to be named."""
MAX_SEGMENTS = 30
"""Values of a column that are listed, those with the most videos."""
MAX_AUTOMATIC_COLUMNS = 3

# Columns of the view `catalog` that are not the user's.
_OWN_COLUMNS = frozenset(
    (
        "video_id", "catalog", "uri", "content_id", "size_bytes", "start_s", "end_s", "in_catalog", "run_id",
        "commit_seq", "first_run_id", "last_run_id",
    )
)  # fmt: skip

_MODELS = """
SELECT s.model_id, s.model_name, any_value(s.model_origin) AS model_origin, count(*) AS videos,
    any_value(m.summary) AS summary, any_value(m.training_data) AS training_data, any_value(m.licence) AS licence,
    any_value(c.calibration) AS calibration
FROM ({selected}) s
LEFT JOIN (FROM models WHERE calibration IS NULL) m ON m.model_id = s.model_id
LEFT JOIN (FROM models WHERE is_default) c ON c.model_id = s.model_id
-- Models of causes or features have no score.
WHERE s.raw_score IS NOT NULL
GROUP BY s.model_id, s.model_name
ORDER BY any_value(c.calibration) IS NULL, any_value(s.model_origin) = 'untrained', count(*) DESC, s.model_name
"""

_HISTOGRAM = """
SELECT least({bins} - 1, greatest(0, floor({bins} * ({quality} - {low}) / {span})))::INTEGER AS bin, count(*) AS videos
FROM ({selected}) s WHERE s.model_id = {model_id} AND {quality} IS NOT NULL GROUP BY ALL ORDER BY ALL
"""

# Most videos first, so that the list can be cut. One query for each column.
_SEGMENTS = """
SELECT {column}::VARCHAR AS value, count(*) AS videos, quantile_cont({quality}, 0.05) AS p5,
    quantile_cont({quality}, 0.25) AS p25, median({quality}) AS median, quantile_cont({quality}, 0.75) AS p75,
    quantile_cont({quality}, 0.95) AS p95
FROM ({selected}) s WHERE s.model_id = {model_id} GROUP BY ALL ORDER BY videos DESC, value LIMIT {limit}
"""

_RUN = """
SELECT run_id, job, catalog, state, message, started_at, finished_at, seconds, num_videos, num_planned, num_scored,
    num_failed, num_remaining, core_hours, gpu_hours, cost, currency
FROM runs ORDER BY commit_seq DESC LIMIT 1
"""

# A video that the newest run scored again, beside its newest score of any earlier run.
_CHANGES = """
WITH now AS (SELECT * FROM ({selected}) WHERE run_id = {run_id} AND model_name = {model_name}),
earlier AS (
    SELECT s.video_id, s.model_id, s.content_id, s.fingerprint, s.mos, s.raw_score FROM scores s JOIN now n
        ON n.video_id = s.video_id AND n.model_name = s.model_name AND s.commit_seq < n.commit_seq
        AND s.run_id <> n.run_id
    QUALIFY row_number() OVER (PARTITION BY s.video_id ORDER BY s.commit_seq DESC) = 1
)
SELECT n.video_id,
    concat_ws(', ', CASE WHEN n.content_id <> e.content_id THEN 'content' END,
        CASE WHEN n.model_id <> e.model_id THEN 'model' END,
        CASE WHEN n.fingerprint <> e.fingerprint AND n.model_id = e.model_id THEN 'preprocessing' END) AS changed,
    {quality_before} AS before, {quality_now} AS now, {quality_now} - {quality_before} AS difference
FROM now n JOIN earlier e ON e.video_id = n.video_id
WHERE {quality_before} IS NOT NULL AND {quality_now} IS NOT NULL
"""

_CHANGE_COUNTS = """
SELECT count(*) AS videos, count(*) FILTER (difference < 0) AS worse, count(*) FILTER (difference > 0) AS better,
    median(difference) AS median_difference, min(difference) AS lowest, max(difference) AS highest FROM ({changes})
"""

# Failures of the newest run that are new, and earlier ones that it resolved.
_FAILURE_CHANGES = """
WITH final AS (SELECT video_id, model_name, run_id, commit_seq FROM failures WHERE final),
scored AS (SELECT video_id, model_name FROM scores WHERE run_id = {run_id})
SELECT
    (SELECT count(*) FROM (SELECT DISTINCT video_id, model_name FROM final WHERE run_id = {run_id}) n
        ANTI JOIN (FROM final WHERE run_id <> {run_id}) o ON o.video_id = n.video_id AND o.model_name = n.model_name
    ) AS new_failures,
    (SELECT count(*) FROM scored s SEMI JOIN (FROM final WHERE run_id <> {run_id}) o
        ON o.video_id = s.video_id AND o.model_name = s.model_name) AS resolved_failures
"""

_FAILED_VIDEOS = """
SELECT video_id, string_agg(DISTINCT model_name, ', ' ORDER BY model_name) AS models, stage, error, permanent, message,
    max(failed_at) AS failed_at
FROM unresolved_failures GROUP BY ALL ORDER BY video_id, stage, error LIMIT {limit}
"""


# Severities of the model `causes` over whole videos, beside the quality by a model with scores.
_CAUSES = """
WITH measured AS (
    SELECT video_id, unnest(map_entries(outputs)) AS entry FROM ({selected}) WHERE model_name = 'causes'
),
severe AS (SELECT video_id, entry.key AS cause, entry.value AS severity FROM measured)
SELECT c.cause, count(*) AS measured, count(*) FILTER (c.severity >= {least}) AS videos,
    avg(c.severity) AS mean_severity,
    median(s.{quality}) FILTER (c.severity >= {least}) AS median_with,
    median(s.{quality}) FILTER (c.severity < {least}) AS median_without
FROM severe c LEFT JOIN (SELECT * FROM ({selected}) WHERE model_id = {model_id}) s ON s.video_id = c.video_id
GROUP BY ALL HAVING count(*) FILTER (c.severity >= {least}) > 0 ORDER BY videos DESC, mean_severity DESC, c.cause
"""

# The greatest severities first.
_CAUSES_OF_VIDEOS = """
WITH measured AS (
    SELECT video_id, unnest(map_entries(outputs)) AS entry FROM scores_latest
    WHERE NOT is_stale AND model_name = 'causes' AND video_id IN ({videos})
)
SELECT video_id, entry.key AS cause, entry.value AS severity FROM measured
WHERE entry.value >= {least} ORDER BY video_id, severity DESC, cause
"""


@dataclass(frozen=True, slots=True)
class Model:
    """A model with current scores: its card, its calibration (None without), and its scale. `videos` counts them."""

    model_id: str
    model_name: str
    model_origin: str
    videos: int
    summary: str | None
    training_data: str | None
    licence: str | None
    calibration: str | None
    scale: QualityScale

    @property
    def column(self) -> str:
        """The column of `scores` that holds the values of the scale."""
        return "mos" if self.scale.unit == "mos" else "raw_score"


def list_scored_models(session: Session, where: str | None = None) -> list[Model]:
    """Return the models with current scores, calibrated and trained ones first. Raises: SpecError as `build`."""
    rows = session.sql(_MODELS.format(selected=select_current(session, where))).to_pylist()
    return [Model(**row, scale=load_scale(session, row["model_id"])) for row in rows]


def select_model(models: Sequence[Model], name: str | None) -> Model | None:
    """Return the model `name`, or the first one; None if there are no scores and no name is given.

    Raises:
        SpecError: no current scores of the model `name`.
    """
    if name is None:
        return models[0] if models else None
    for model in models:
        if name in (model.model_name, model.model_id):
            return model
    known = ", ".join(model.model_name for model in models) or "no model"
    raise SpecError(f"There are no current scores of model {name!r}. There are scores of {known}.")


def _only(model: Model, where: str | None) -> str:
    """Return a condition for the scores of one model where `where` holds. `list_scored_models` has checked `where`."""
    condition = f"({where}) AND " if where else ""
    return f"{condition}model_id = {quote_literal(model.model_id)}"


def find_run(session: Session) -> Row | None:
    """Return the newest run, or None."""
    rows: list[Row] = session.sql(_RUN).to_pylist()
    return rows[0] if rows else None


def find_totals(session: Session) -> Row:
    """Return the numbers of videos, runs, scores and failures."""
    return count_totals(session)


def find_distribution(session: Session, model: Model, where: str | None = None) -> Row:
    """Return quantiles of the current scores of a model, and `bins`: videos in NUM_BINS equal parts of its scale."""
    (row,) = ask(session, "distribution", _only(model, where)).to_pylist()
    scale = model.scale
    counts = session.sql(
        _HISTOGRAM.format(
            selected=select_current(session, where),
            model_id=quote_literal(model.model_id),
            quality=model.column,
            low=repr(scale.low),
            span=repr(scale.high - scale.low or 1.0),
            bins=NUM_BINS,
        )
    ).to_pylist()
    bins = [0] * NUM_BINS
    for found in counts:
        bins[found["bin"]] = found["videos"]
    return {**row, "bins": bins}


def find_segment_columns(session: Session, where: str | None = None) -> list[str]:
    """Return columns that divide the videos into 2 to MAX_SEGMENTS segments: those of the user's catalog, then codec.

    Segments have two videos or more on average: a title is not a segment.
    """
    own = [column for column in selected_columns(session) if column in set(user_columns(session))]
    candidates = [*own, "codec"]
    counts = ", ".join(f"count(DISTINCT {quote_identifier(c)})" for c in candidates)
    selected = select_current(session, where)
    (row,) = session.sql(f"SELECT count(DISTINCT s.video_id) AS videos, {counts} FROM ({selected}) s").to_pylist()
    videos, *numbers = row.values()
    found = [c for c, n in zip(candidates, numbers, strict=True) if 2 <= n <= min(MAX_SEGMENTS, videos // 2)]
    return found[:MAX_AUTOMATIC_COLUMNS]


def find_segments(session: Session, model: Model, column: str, where: str | None = None) -> list[Row]:
    """Return the quantiles of each value of a column, those with the most videos first.

    Raises:
        SpecError: there is no such column.
    """
    known = selected_columns(session)
    if column not in known:
        raise SpecError(f"--by: there is no column {column!r}. Columns: {', '.join(known)}.")
    rows: list[Row] = session.sql(
        _SEGMENTS.format(
            selected=select_current(session, where),
            column=f"s.{quote_identifier(column)}",
            quality=model.column,
            model_id=quote_literal(model.model_id),
            limit=MAX_SEGMENTS,
        )
    ).to_pylist()
    return rows


def find_cells(session: Session, model: Model, where: str | None = None) -> list[Row]:
    """Return cell_row, cell_col, quality (in the unit of the scale), saliency and videos; empty without maps."""
    rows = [row for row in ask(session, "by-cell", _only(model, where)).to_pylist() if row["texture"] is not None]
    values = model.scale.values(np.array([row["texture"] for row in rows], np.float64))
    return [{**row, "quality": float(value)} for row, value in zip(rows, values, strict=True)]


def find_tenths(session: Session, model: Model, where: str | None = None) -> list[Row]:
    """Return from_share, until_share, quality and videos for each tenth of the length of the videos."""
    rows = ask(session, "over-time", _only(model, where)).to_pylist()
    return [{**row, "quality": row[model.column]} for row in rows if row[model.column] is not None]


def find_worst_videos(session: Session, model: Model, where: str | None = None, limit: int = 50) -> list[Row]:
    """Return the worst videos of one model, worst first: id, quality, worst moment, `catalog` and `causes`.

    `catalog` holds the columns of the user's catalog, `causes` the rows of `find_causes_of_videos`.
    """
    rows: list[Row] = ask(session, "worst", _only(model, where), limit=limit).to_pylist()
    columns = ", ".join(map(quote_identifier, ("video_id", *user_columns(session))))
    videos = quote_literals(row["video_id"] for row in rows)
    own = session.sql(f"SELECT {columns} FROM catalog WHERE video_id IN ({videos})").to_pylist()
    by_id = {row["video_id"]: {name: row[name] for name in row if name != "video_id"} for row in own}
    causes = find_causes_of_videos(session, list(by_id))
    return [
        {
            **row,
            "quality": row[model.column],
            "catalog": by_id.get(row["video_id"], {}),
            "causes": causes.get(row["video_id"], []),
        }
        for row in rows
    ]


def count_causes(session: Session, model: Model, where: str | None = None) -> list[Row]:
    """Return the causes that videos have, most frequent first; empty if the model `causes` measured none.

    `videos` of `measured` ones have the cause with a severity of MIN_SEVERITY or more. `median_with` and
    `median_without` are the quality of these and of the others by `model`.
    """
    if not _has_causes(session):
        return []
    rows: list[Row] = session.sql(
        _CAUSES.format(
            selected=select_current(session, where),
            model_id=quote_literal(model.model_id),
            quality=model.column,
            least=MIN_SEVERITY,
        )
    ).to_pylist()
    return rows


def find_causes_of_videos(session: Session, video_ids: Sequence[str]) -> dict[str, list[Row]]:
    """Return cause and severity of each video that has causes, the greatest severity first."""
    found: dict[str, list[Row]] = {}
    if not _has_causes(session):
        return found
    query = _CAUSES_OF_VIDEOS.format(videos=quote_literals(video_ids), least=MIN_SEVERITY)
    for row in session.sql(query).to_pylist():
        found.setdefault(row["video_id"], []).append(row)
    return found


def _has_causes(session: Session) -> bool:
    """Return whether the model `causes` was used: without it, a million scores need not be read."""
    return bool(session.sql("SELECT 1 FROM models WHERE model_name = 'causes' LIMIT 1").num_rows)


def user_columns(session: Session) -> list[str]:
    """Return the columns that the user's catalog adds."""
    names = session.sql("SELECT * FROM catalog LIMIT 0").column_names
    return [name for name in names if name not in _OWN_COLUMNS]


def find_failure_counts(session: Session) -> list[Row]:
    """Return failures that have no score yet, counted by stage, error and whether they are permanent."""
    rows: list[Row] = count_failures(session, select_failures("unresolved_failures")).to_pylist()
    return rows


def find_failed_videos(session: Session, limit: int = 200) -> list[Row]:
    """Return up to `limit` videos with a failure and no score yet, with reason and message."""
    rows: list[Row] = session.sql(_FAILED_VIDEOS.format(limit=int(limit))).to_pylist()
    return rows


def find_coverage(session: Session) -> list[Row]:
    """Return how many videos have a current score of each model, and why others do not."""
    rows: list[Row] = session.sql(build(session, "coverage")).to_pylist()
    return rows


def find_changes(session: Session, model: Model, run_id: str, limit: int = 10, where: str | None = None) -> Row:
    """Return what the run `run_id` changed, compared with the newest earlier score of the same videos.

    The keys are those of a summary (videos, worse, better, median_difference, new_failures, resolved_failures), and
    `movers`: up to `limit` videos that got worse and as many that got better, by difference. Raw scores of different
    models have no common scale, so without a calibration only scores of one model id are compared.
    """
    quality = {"quality_now": f"n.{model.column}", "quality_before": f"e.{model.column}"}
    if model.column == "raw_score":
        quality["quality_before"] = "CASE WHEN e.model_id = n.model_id THEN e.raw_score END"
    names = {"run_id": quote_literal(run_id), "model_name": quote_literal(model.model_name)}
    changes = _CHANGES.format(selected=select_current(session, where), **quality, **names)
    (counts,) = session.sql(_CHANGE_COUNTS.format(changes=changes)).to_pylist()
    (failures,) = session.sql(_FAILURE_CHANGES.format(run_id=names["run_id"])).to_pylist()
    movers = session.sql(
        f"SELECT * FROM ({changes}) WHERE difference <> 0 QUALIFY row_number() OVER (ORDER BY difference) <= {limit} "
        f"OR row_number() OVER (ORDER BY difference DESC) <= {limit} ORDER BY difference, video_id"
    ).to_pylist()
    return {**counts, **failures, "movers": movers}


def find_runs(session: Session, limit: int = 10) -> list[Row]:
    """Return the newest runs with their counts, hours and cost, newest first."""
    rows: list[Row] = list_runs(session, limit).to_pylist()
    return rows


def find_cost(session: Session, where: str | None = None) -> list[Row]:
    """Return the seconds per video of each stage, by model."""
    rows: list[Row] = ask(session, "cost", where).to_pylist()
    return rows
