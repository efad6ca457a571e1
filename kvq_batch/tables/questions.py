"""Queries behind `status`, `score`, `failures` and `query --views`: totals, runs, models, failures, view columns.

Each function takes an open `Session` and returns rows or a `pa.Table`. How they are printed is decided by the caller.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from kvq_batch.tables.sandbox import check_expression
from kvq_batch.tables.session import Session
from kvq_batch.tables.views import describe_views

_TOTALS = """
SELECT (SELECT count(*) FROM catalog) AS videos, (SELECT count(*) FROM runs) AS num_runs,
    (SELECT count(*) FROM scores_latest WHERE NOT is_stale) AS current_scores,
    (SELECT count(*) FROM scores_latest WHERE is_stale) AS stale_scores,
    (SELECT count(*) FROM unresolved_failures) AS failures,
    (SELECT max(scored_at) FROM scores) AS last_scored_at,
    (SELECT max(commit_seq) FROM (
        SELECT commit_seq FROM scores UNION ALL SELECT commit_seq FROM failures UNION ALL SELECT commit_seq FROM runs
    )) AS last_commit_seq
"""

_MODELS = """
SELECT m.model_id, m.origin AS model_origin, count(s.video_id) FILTER (NOT s.is_stale) AS current_scores,
    count(s.video_id) FILTER (s.is_stale) AS stale_scores,
    (SELECT count(*) FROM unresolved_failures f WHERE f.model_id = m.model_id) AS failures
FROM models m LEFT JOIN scores_latest s ON s.model_id = m.model_id
WHERE m.calibration IS NULL GROUP BY ALL ORDER BY m.model_id
"""

_RUNS = """
SELECT run_id, job, state, started_at, seconds, num_planned AS planned, num_scored AS scored, num_failed AS failed,
    num_remaining AS remaining, expected_s, core_hours, gpu_hours, cost, currency, message
FROM runs ORDER BY commit_seq DESC LIMIT {limit}
"""

# No start time: a run id begins with it.
_RUNS_SHORT = """
SELECT run_id, job, num_planned AS planned, num_scored AS scored, num_failed AS failed, num_remaining AS remaining,
    state || CASE WHEN message <> '' THEN ': ' || message ELSE '' END AS state
FROM runs ORDER BY commit_seq DESC LIMIT {limit}
"""

_FAILURES = """
SELECT video_id, model_id, model_name, stage, error, message, exit_signal, attempt, final, permanent,
    is_retry_requested, run_id, uri, content_id, failed_at
FROM ({failures}) ORDER BY video_id, model_name, commit_seq DESC, attempt
"""

_FAILURES_SHORT = """
SELECT video_id, string_agg(model_name, ', ' ORDER BY model_name) AS models, stage, error,
    CASE WHEN permanent THEN 'when it changes' ELSE 'next run' END AS retried, message
FROM ({failures}) GROUP BY ALL ORDER BY ALL
"""

_FAILURE_COUNTS = """
SELECT stage, error, permanent, count(DISTINCT video_id) AS videos, max(failed_at) AS last_failed_at,
    any_value(message) AS example
FROM ({failures}) GROUP BY ALL ORDER BY videos DESC, stage, error
"""

_OUTCOMES = """
SELECT video_id, mos, raw_score, model_id, model_origin, NULL AS error, NULL AS message FROM scores_latest
UNION ALL BY NAME SELECT video_id, model_id, error, message FROM unresolved_failures
ORDER BY video_id, model_id
"""

_COLUMNS = """
SELECT table_name, column_name, lower(data_type) AS type FROM information_schema.columns
ORDER BY table_name, ordinal_position
"""


def count_totals(session: Session) -> dict[str, Any]:
    """Return the numbers of videos, runs, scores and failures, and the last score and commit."""
    return dict(session.sql(_TOTALS).to_pylist()[0])


def list_outcomes(session: Session) -> pa.Table:
    """Return one row per video and model: its score, or why it has none."""
    return session.sql(_OUTCOMES)


def list_models(session: Session) -> pa.Table:
    """Return the numbers of scores and failures of each model."""
    return session.sql(_MODELS)


def list_runs(session: Session, limit: int, is_short: bool = False) -> pa.Table:
    """Return the newest `limit` runs, newest first; if `is_short`, only the columns that fit on a screen."""
    return session.sql((_RUNS_SHORT if is_short else _RUNS).format(limit=limit))


def select_failures(view: str, error: str | None = None, stage: str | None = None, where: str | None = None) -> str:
    """Return SQL for the rows of `view` (failures or unresolved_failures) that match all given filters.

    `where` is a condition in SQL over the columns of the view. Raises: SpecError if it is not one expression.
    """
    conditions = [f"{column} = '{_escape(value)}'" for column, value in (("error", error), ("stage", stage)) if value]
    conditions += [f"({check_expression(where, '--where')})"] if where else []
    return f"SELECT * FROM {view}" + (f" WHERE {' AND '.join(conditions)}" if conditions else "")


def list_failures(session: Session, selected: str, is_short: bool = False) -> pa.Table:
    """Return the failures of `selected` (SQL of `select_failures`); short: one row per video and reason."""
    return session.sql((_FAILURES_SHORT if is_short else _FAILURES).format(failures=selected))


def count_failures(session: Session, selected: str) -> pa.Table:
    """Return the failures of `selected` (SQL of `select_failures`), counted by stage and error."""
    return session.sql(_FAILURE_COUNTS.format(failures=selected))


def list_view_columns(session: Session) -> list[dict[str, str]]:
    """Return view, column, type and meaning of every column of every view, including the user's catalog columns."""
    known = describe_views()
    meanings = {(view.name, column.name): column.comment for view in known.values() for column in view.columns}
    columns: dict[str, list[dict[str, str]]] = {name: [] for name in known}
    for row in session.sql(_COLUMNS).to_pylist():
        view, column = row["table_name"], row["column_name"]
        if view in columns:
            meaning = meanings.get((view, column), "column of your catalog")
            columns[view].append({"view": view, "column": column, "type": row["type"], "meaning": meaning})
    return [row for rows in columns.values() for row in rows]


def find_low_bounds(session: Session, model_ids: Sequence[str]) -> dict[str, float]:
    """Return {model name: 5th percentile of its raw scores} of the models with at least 1000 scores."""
    ids = ", ".join(f"'{_escape(model_id)}'" for model_id in model_ids)
    rows = session.sql(
        "SELECT model_name, quantile_cont(raw_score, 0.05) AS low FROM scores "
        f"WHERE model_id IN ({ids}) AND raw_score IS NOT NULL GROUP BY ALL HAVING count(*) >= 1000"
    ).to_pylist()
    return {row["model_name"]: row["low"] for row in rows}


def list_untrained_models(session: Session) -> list[str]:
    """Return the ids of models without trained weights that have scores in these tables."""
    rows = session.sql("SELECT DISTINCT model_id FROM scores WHERE model_origin = 'untrained'").to_pylist()
    return [row["model_id"] for row in rows]


def _escape(text: str) -> str:
    return text.replace("'", "''")
