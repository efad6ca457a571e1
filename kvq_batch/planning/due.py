"""Why each (video, model) is due, as one small integer each: set-wise in DuckDB, gathered in an array.

The catalog is what is held in memory, once, as the inner side of each join; scores and failures, which may be many
times more, only stream past it, and of their parts only those whose bounds can hold one of the videos. Every join is
written in the order in which it runs. This module makes no plan and asks no store.
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
"""States beside the places of REASONS, which are reasons to plan a pair; from the end, as Python counts."""

NUM_STATES = 2

_NEW = REASONS.index("new")
_RETRY = REASONS.index("retry")
_RE_SCORE = REASONS.index("re-score")

_BATCH_ROWS = 100_000

# Which side of a join is held in memory is ours to say: DuckDB does not know how many rows a dataset has.
_IN_THIS_ORDER = "SET disabled_optimizers = 'join_order,build_side_probe_side'"

_CURRENT = """
SELECT v.place, r.ref FROM scores s
JOIN refs r ON r.model_id = s.model_id AND r.fingerprint = s.fingerprint
JOIN videos v ON v.video_id = s.video_id AND v.content_id = s.content_id
WHERE {within} AND s.model_id IN ({model_ids}) {young}
"""

# What the newest row of the video and the model's name differs in.
_NEWEST = f"""
SELECT v.place, r.ref, arg_max(
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
GROUP BY v.place, r.ref
"""

_STANDING = """
SELECT v.place, r.ref, max(s.commit_seq) AS scored_seq FROM scores s
JOIN refs r ON r.model_id = s.model_id AND r.fingerprint = s.fingerprint
JOIN videos v ON v.video_id = s.video_id AND v.content_id = s.content_id
WHERE {within} AND s.model_id IN ({model_ids})
GROUP BY v.place, r.ref
"""

# A failure is permanent until a newer row of the same identity says otherwise: another try, or somebody who asked.
# Failures are few beside videos.
_TRIED = """
SELECT v.place, f.ref, arg_max(f.is_permanent, (f.commit_seq, f.attempt, f.final)) AS is_permanent,
    max(f.commit_seq) AS failed_seq
FROM videos v JOIN (
    SELECT s.video_id, s.content_id, r.ref, coalesce(s.final AND s.permanent, false) AS is_permanent, s.commit_seq,
        s.attempt, s.final
    FROM failures s JOIN refs r ON r.model_id = s.model_id AND r.fingerprint = s.fingerprint WHERE {within}
) f ON f.video_id = v.video_id AND f.content_id = v.content_id
GROUP BY v.place, f.ref
"""


@dataclass(frozen=True, slots=True)
class Reasons:
    """`states` is int8 [row of the videos, model]: the place of the reason in REASONS, CURRENT or QUARANTINED.

    `oldest_stale_at` is the time (UTC) of the oldest score that is the newest of a pair which has a reason, and which
    another one is to replace; None where no such pair has a score.
    """

    states: NDArray[np.int8]
    oldest_stale_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Parameters:
    """What the statements are completed with; texts of users only as parameters."""

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
) -> Reasons:
    """Why each video is due, for each model. `videos` has video_id and content_id. Without tables everything is new."""
    states = np.full((videos.num_rows, len(models)), _NEW, np.int8)
    if tables is None or not videos.num_rows or not models:
        return Reasons(states)
    connection.execute(_IN_THIS_ORDER)
    for schema in (SCORES, FAILURES):
        connection.register(schema.name, tables.dataset(schema.name))
    connection.register("refs", _refs(models))
    asked = _parameters(videos, models, select, now)
    _look_at(connection, videos, None)
    for indices, refs in _found(connection, _CURRENT, asked, "place", "ref"):
        states[indices, refs] = CURRENT
    due = np.flatnonzero((states != CURRENT).any(axis=1))
    if not len(due):
        return Reasons(states)
    is_due = states != CURRENT
    if len(due) < videos.num_rows:
        _look_at(connection, videos, due)
        asked = _parameters(videos.take(pa.array(due)), models, select, now)
    scored_at_s = np.zeros(states.shape, np.uint32)
    for indices, refs, reasons, times_s in _found(connection, _NEWEST, asked, "place", "ref", "reason", "scored_at_s"):
        states[indices, refs] = np.where(is_due[indices, refs], reasons, CURRENT)
        scored_at_s[indices, refs] = times_s
    scored_seq: NDArray[np.int64] | None = None
    if select.age is not None:
        # Only where an age is asked for can a pair that is due have a score.
        scored_seq = np.full(states.shape, -1, np.int64)
        for indices, refs, seqs in _found(connection, _STANDING, asked, "place", "ref", "scored_seq"):
            scored_seq[indices, refs] = seqs
        states[is_due & (scored_seq >= 0)] = _RE_SCORE
    _judge_tries(connection, asked, states, is_due, scored_seq, permanent_too=select.retry == "permanent")
    is_stale = (states >= 0) & (states != _RE_SCORE) & (scored_at_s > 0)
    if not is_stale.any():
        return Reasons(states)
    return Reasons(states, datetime.fromtimestamp(int(scored_at_s[is_stale].min()), UTC))


def _judge_tries(
    connection: duckdb.DuckDBPyConnection,
    asked: _Parameters,
    states: NDArray[np.int8],
    is_due: NDArray[np.bool_],
    scored_seq: NDArray[np.int64] | None,
    permanent_too: bool,
) -> None:
    for indices, refs, permanent, seqs in _found(
        connection, _TRIED, asked, "place", "ref", "is_permanent", "failed_seq"
    ):
        scored = np.full(len(seqs), -1) if scored_seq is None else scored_seq[indices, refs]
        is_out = permanent & (seqs > scored) & (not permanent_too)
        judged = np.where(is_out, QUARANTINED, np.where(scored >= 0, _RE_SCORE, _RETRY))
        states[indices, refs] = np.where(is_due[indices, refs], judged, CURRENT)


def _look_at(connection: duckdb.DuckDBPyConnection, videos: pa.Table, rows: NDArray[np.int64] | None) -> None:
    """Makes the named rows of `videos` (None for all) the inner side of the joins."""
    indices = pa.array(np.arange(videos.num_rows) if rows is None else rows)
    chosen = videos if rows is None else videos.take(indices)
    connection.register("videos", chosen.append_column("place", indices))


def _found(
    connection: duckdb.DuckDBPyConnection, query: str, asked: _Parameters, *columns: str
) -> Iterator[tuple[NDArray[Any], ...]]:
    """The named columns of the answer as arrays, some rows at a time."""
    text = query.format(within=asked.within, model_ids=asked.model_ids, young=asked.young)
    values = {name: value for name, value in asked.values.items() if f"${name}" in text}
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


def _refs(models: Sequence[ModelRef]) -> pa.Table:
    return pa.table(
        {
            "ref": pa.array(range(len(models)), pa.int32()),
            "model_name": pa.array([model.name for model in models], pa.string()),
            "model_id": pa.array([model.model_id for model in models], pa.string()),
            "fingerprint": pa.array([model.fingerprint for model in models], pa.string()),
        }
    )
