"""Computes why each task (video, model) is due: joins in DuckDB, gathered in an array of one small integer per task.

Only the catalog is held in memory, once, as the build side of each join. Scores and failures, which may be many times
larger, are streamed, and only from data files whose bounds may contain one of the videos. Every join is written in the
order in which it runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvq_batch.config.selection import Select
from kvq_batch.domain.identity import REASONS, ModelRef
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import FAILURES, SCORES

CURRENT, QUARANTINED = -1, -2
"""States of a task that is not due. A task that is due has the index of its reason in REASONS. Negative, so that they
index an array of all states from the end."""

NUM_STATES = 2

_NEW = REASONS.index("new")
_RETRY = REASONS.index("retry")
_RE_SCORE = REASONS.index("re-score")

_BATCH_ROWS = 100_000

# Join order and build side are fixed by the queries: DuckDB does not know how many rows a dataset has.
_FIXED_JOIN_ORDER = "SET disabled_optimizers = 'join_order,build_side_probe_side'"

_CURRENT = """
SELECT v.row_index, r.model_index FROM scores s
JOIN refs r ON r.model_id = s.model_id AND r.fingerprint = s.fingerprint
JOIN videos v ON v.video_id = s.video_id AND v.content_id = s.content_id
WHERE {within} AND s.model_id IN ({model_ids}) {young}
"""

# How the newest row of the video and the model name differs from what is planned.
_NEWEST = f"""
SELECT v.row_index, r.model_index, arg_max(
    CASE WHEN s.content_id <> v.content_id THEN {REASONS.index("content changed")}
    WHEN s.model_id <> r.model_id THEN {REASONS.index("model changed")}
    ELSE {REASONS.index("preprocessing changed")} END, s.commit_seq) AS reason,
    coalesce(epoch(max(s.scored_at)), 0)::UINTEGER AS scored_at_s
FROM (
    SELECT video_id, model_name, content_id, model_id, commit_seq, scored_at FROM scores s WHERE {{within}}
    UNION ALL
    SELECT video_id, model_name, content_id, model_id, commit_seq, NULL AS scored_at FROM failures s WHERE {{within}}
) s
JOIN refs r ON r.model_name = s.model_name
JOIN videos v ON v.video_id = s.video_id
GROUP BY v.row_index, r.model_index
"""

_SCORED = """
SELECT v.row_index, r.model_index, max(s.commit_seq) AS scored_seq FROM scores s
JOIN refs r ON r.model_id = s.model_id AND r.fingerprint = s.fingerprint
JOIN videos v ON v.video_id = s.video_id AND v.content_id = s.content_id
WHERE {within} AND s.model_id IN ({model_ids})
GROUP BY v.row_index, r.model_index
"""

# A failure is permanent until a newer row of the same identity says otherwise: another attempt, or a retry request.
# There are few failures compared with videos, so here they are the build side.
_FAILED = """
SELECT v.row_index, f.model_index, arg_max(f.is_permanent, (f.commit_seq, f.attempt, f.final)) AS is_permanent,
    max(f.commit_seq) AS failed_seq
FROM videos v JOIN (
    SELECT s.video_id, s.content_id, r.model_index, coalesce(s.final AND s.permanent, false) AS is_permanent,
        s.commit_seq, s.attempt, s.final
    FROM failures s JOIN refs r ON r.model_id = s.model_id AND r.fingerprint = s.fingerprint WHERE {within}
) f ON f.video_id = v.video_id AND f.content_id = v.content_id
GROUP BY v.row_index, f.model_index
"""


@dataclass(frozen=True, slots=True)
class DueReasons:
    """State of each task.

    `states` is int8 [row of the videos, model]: the index of the reason in REASONS, or CURRENT or QUARANTINED.
    `oldest_stale_at` is the time (UTC) of the oldest score that is due to be replaced, counting only the newest score
    of each task; None if there is no such score.
    """

    states: NDArray[np.int8]
    oldest_stale_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Parameters:
    """What the statements are completed with. Texts of users are passed only as query parameters (`values`)."""

    within: str
    model_ids: str
    young: str
    values: dict[str, Any]


def compute_due_reasons(
    connection: duckdb.DuckDBPyConnection,
    tables: Tables | None,
    videos: pa.Table,
    models: Sequence[ModelRef],
    select: Select,
    now: datetime | None,
) -> DueReasons:
    """Return why each of `videos` (video_id, content_id) is due for each model. Without tables all are new."""
    states = np.full((videos.num_rows, len(models)), _NEW, np.int8)
    if tables is None or not videos.num_rows or not models:
        return DueReasons(states)
    connection.execute(_FIXED_JOIN_ORDER)
    for schema in (SCORES, FAILURES):
        connection.register(schema.name, tables.dataset(schema.name))
    connection.register("refs", _refs_table(models))
    parameters = _parameters(videos, models, select, now)
    _register_videos(connection, videos, None)
    for rows, refs in _fetch(connection, _CURRENT, parameters, "row_index", "model_index"):
        states[rows, refs] = CURRENT
    is_due = states != CURRENT
    due_rows = np.flatnonzero(is_due.any(axis=1))
    if not len(due_rows):
        return DueReasons(states)
    if len(due_rows) < videos.num_rows:
        _register_videos(connection, videos, due_rows)
        parameters = _parameters(videos.take(pa.array(due_rows)), models, select, now)
    scored_at_s = np.zeros(states.shape, np.uint32)
    columns = ("row_index", "model_index", "reason", "scored_at_s")
    for rows, refs, reasons, times_s in _fetch(connection, _NEWEST, parameters, *columns):
        states[rows, refs] = np.where(is_due[rows, refs], reasons, CURRENT)
        scored_at_s[rows, refs] = times_s
    scored_seq: NDArray[np.int64] | None = None
    if select.age is not None:
        # Only if a maximum age is selected can a task that is due have a score of the same identity.
        scored_seq = np.full(states.shape, -1, np.int64)
        for rows, refs, seqs in _fetch(connection, _SCORED, parameters, "row_index", "model_index", "scored_seq"):
            scored_seq[rows, refs] = seqs
        states[is_due & (scored_seq >= 0)] = _RE_SCORE
    _apply_failures(connection, parameters, states, is_due, scored_seq, include_permanent=select.include_permanent)
    is_stale = (states >= 0) & (states != _RE_SCORE) & (scored_at_s > 0)
    if not is_stale.any():
        return DueReasons(states)
    return DueReasons(states, datetime.fromtimestamp(int(scored_at_s[is_stale].min()), UTC))


def _apply_failures(
    connection: duckdb.DuckDBPyConnection,
    parameters: _Parameters,
    states: NDArray[np.int8],
    is_due: NDArray[np.bool_],
    scored_seq: NDArray[np.int64] | None,
    include_permanent: bool,
) -> None:
    """Quarantine due tasks whose newest row is a permanent failure; those with another failure are retried."""
    columns = ("row_index", "model_index", "is_permanent", "failed_seq")
    for rows, refs, is_permanent, seqs in _fetch(connection, _FAILED, parameters, *columns):
        scored = np.full(len(seqs), -1) if scored_seq is None else scored_seq[rows, refs]
        is_quarantined = is_permanent & (seqs > scored) & (not include_permanent)
        state = np.where(is_quarantined, QUARANTINED, np.where(scored >= 0, _RE_SCORE, _RETRY))
        states[rows, refs] = np.where(is_due[rows, refs], state, CURRENT)


def _register_videos(connection: duckdb.DuckDBPyConnection, videos: pa.Table, rows: NDArray[np.int64] | None) -> None:
    """Make the given rows of `videos` (None: all) the build side of the joins."""
    indices = pa.array(np.arange(videos.num_rows) if rows is None else rows)
    chosen = videos if rows is None else videos.take(indices)
    connection.register("videos", chosen.append_column("row_index", indices))


def _fetch(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: _Parameters, *columns: str
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield the named columns of the result as arrays, in batches."""
    text = query.format(within=parameters.within, model_ids=parameters.model_ids, young=parameters.young)
    values = {name: value for name, value in parameters.values.items() if f"${name}" in text}
    for batch in connection.sql(text, params=values).to_arrow_reader(_BATCH_ROWS):
        yield tuple(batch.column(name).to_numpy(zero_copy_only=False) for name in columns)


def _parameters(videos: pa.Table, models: Sequence[ModelRef], select: Select, now: datetime | None) -> _Parameters:
    bounds = pc.min_max(videos.column("video_id")).as_py()
    ids = {f"model_id_{number}": model.model_id for number, model in enumerate(models)}
    values: dict[str, Any] = {"lowest": bounds["min"], "highest": bounds["max"], **ids}
    young = ""
    if select.age is not None:
        young = "AND s.scored_at >= $since"
        values["since"] = (now or datetime.now(UTC)) - select.age
    return _Parameters("s.video_id BETWEEN $lowest AND $highest", ", ".join(f"${name}" for name in ids), young, values)


def _refs_table(models: Sequence[ModelRef]) -> pa.Table:
    return pa.table(
        {
            "model_index": pa.array(range(len(models)), pa.int32()),
            "model_name": pa.array([model.name for model in models], pa.string()),
            "model_id": pa.array([model.model_id for model in models], pa.string()),
            "fingerprint": pa.array([model.fingerprint for model in models], pa.string()),
        }
    )
