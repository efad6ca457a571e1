"""The plan of a run: the tasks (video, model) of a catalog that have no current score, each with its reason.

A task is current if a score with the same content id, model id and fingerprint exists, however old it is: a file that
is rolled back to an earlier state already has its score. All other tasks are planned if the job selects them. The plan
of each run is stored beside the tables before work starts, so that "why was this video scored that night" can be
answered later. No run reads a stored plan back.

`compute_due_reasons` joins in DuckDB and gathers one small integer per task. Only the catalog is held in memory, once,
as the build side of each join. Scores and failures, which may be many times larger, are streamed, and only from data
files whose bounds may contain one of the videos. Every join is written in the order in which it runs.
"""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kvq_batch.catalog.reader import CATALOG_COLUMNS, check_catalog
from kvq_batch.catalog.selection import select_indices, shard_condition, sort_selected
from kvq_batch.config.job import EVERYTHING, Select
from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.identity import REASONS, ModelRef
from kvq_batch.domain.shard import Shard
from kvq_batch.planning.job_models import JobModel
from kvq_batch.storage.errors import explain_error, foreign_errors
from kvq_batch.storage.masking import mask_rows
from kvq_batch.storage.objects import put_file
from kvq_batch.storage.options import display_uri, join
from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import FAILURES, FEATURES, SCORES

ITEMS = pa.schema(
    [
        ("item", pa.int64()),
        ("attempt", pa.int32()),
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("content_id", pa.string()),
        ("size_bytes", pa.int64()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("model_mask", pa.int64()),
    ]
)
"""One row per video of a run. Executors hand blocks of items to the decode stage."""

PLANS_FOLDER = "plans"

_TASKS_PER_CHUNK = 1_000_000
"""Tasks per chunk of the plan: an Arrow string array holds at most 2 GiB."""

_REMOVED = """
SELECT video_id FROM known WHERE catalog = $catalog AND {in_shard}
GROUP BY video_id HAVING arg_max(in_catalog, commit_seq) AND video_id NOT IN (SELECT video_id FROM catalog)
ORDER BY video_id
"""

_OTHER_ROOTS = "SELECT 1 FROM runs WHERE catalog_root <> $root LIMIT 1"

_FOREIGN_ROOT = """
WITH current_rows AS (
    SELECT video_id, catalog, arg_max(in_catalog, commit_seq) AS is_listed, arg_max(run_id, commit_seq) AS run_id
    FROM known GROUP BY ALL
),
roots AS (SELECT run_id, arg_max(catalog_root, commit_seq) AS root FROM runs GROUP BY ALL)
SELECT video_id, k.catalog, root FROM current_rows k JOIN roots USING (run_id) SEMI JOIN catalog USING (video_id)
WHERE is_listed AND root <> $root
ORDER BY video_id LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do; immutable and complete before any video is read.

    - `tasks`: [video_id, uri, content_id, size_bytes, start_s, end_s, model_name, model_id, fingerprint, reason], the
      last four as dictionaries. One row per task, in the requested order or in that of the catalog, then by model. The
      tasks of one video are adjacent. They are of `num_videos` videos.
    - `counts`: {reason: {model name: number of tasks}}, with every reason and model.
    - `num_current`, `num_quarantined`, `num_other_reasons`: tasks of the `num_selected` videos that are not planned,
      because they are current, quarantined, or due for a reason that the job does not select.
    - `removed`: ids of the videos that were removed from the catalog.
    - `oldest_stale_at`: time of the oldest score that the plan replaces.
    """

    tasks: pa.Table
    counts: Mapping[str, Mapping[str, int]]
    num_current: int
    num_quarantined: int
    num_other_reasons: int
    num_selected: int
    num_videos: int
    removed: tuple[str, ...]
    oldest_stale_at: datetime | None = None

    @property
    def by_reason(self) -> dict[str, int]:
        """Number of tasks per reason, over all models."""
        return {reason: sum(by_model.values()) for reason, by_model in self.counts.items()}


def make_plan(
    tables: Tables | None,
    catalog: pa.Table,
    catalog_name: str,
    models: Sequence[ModelRef],
    select: Select = EVERYTHING,
    now: datetime | None = None,
    with_features: Collection[str] = (),
) -> Plan:
    """Return the plan for `catalog` (at least video_id, uri, content_id, size_bytes, start_s, end_s).

    It holds only videos of `select.scope`. Without tables every task is new. The age of a score is relative to `now`
    (time-zone aware; default: the current time). For the models `with_features` (names) a score is current only if its
    features are stored.

    Raises:
        SpecError: a null or repeated video id, a null content id, two models with the same name, a selection that does
            not fit this catalog, or tables that cannot be read.
    """
    check_catalog(catalog)
    if len({model.name for model in models}) != len(models):
        names = ", ".join(sorted(model.name for model in models))
        raise SpecError(f"duplicate models: {names}; list each model once")
    indices = select_indices(catalog, select)
    videos = catalog.select(["video_id", "content_id"])
    with connect() as connection, translate_read_errors(tables.uri if tables else ""):
        due = compute_due_reasons(
            connection, tables, videos if indices is None else videos.take(indices), models, select, now, with_features
        )
        states = due.states
        removed = _removed_videos(connection, tables, catalog, catalog_name, select.scope)
    # Indexed by state: reasons first, then CURRENT and QUARANTINED, which are negative indices.
    is_selected = np.array(
        [not select.reasons or reason in select.reasons for reason in REASONS] + [False] * NUM_STATES
    )
    is_planned = is_selected[states]
    rows, model_indices = np.nonzero(is_planned)
    planned = pa.table({
        "row_index": pa.array(rows) if indices is None else indices.take(pa.array(rows)),
        "model_index": pa.array(model_indices.astype(np.int32)), "reason": pa.array(states[rows, model_indices]),
    })  # fmt: skip
    return Plan(
        tasks=_to_tasks(sort_selected(planned, catalog, select), catalog, models),
        counts={
            str(reason): {
                model.name: int(np.count_nonzero(is_planned[:, index] & (states[:, index] == code)))
                for index, model in enumerate(models)
            }
            for code, reason in enumerate(REASONS)
        },
        num_current=int(np.count_nonzero(states == CURRENT)),
        num_quarantined=int(np.count_nonzero(states == QUARANTINED)),
        num_other_reasons=int(np.count_nonzero((states >= 0) & ~is_planned)),
        num_selected=len(states),
        num_videos=int(np.count_nonzero(is_planned.any(axis=1))),
        removed=removed,
        oldest_stale_at=due.oldest_stale_at,
    )


def check_roots(tables: Tables, catalog: pa.Table, catalog_root: str) -> None:
    """Check that the tables list no video id of `catalog` under another catalog root.

    Raises:
        SpecError: with one such video id and both roots.
    """
    with connect() as connection:
        connection.register("runs", tables.dataset("runs"))
        with translate_read_errors(tables.uri):
            # Usually there is only one root, and nothing to compare.
            if not connection.execute(_OTHER_ROOTS, {"root": catalog_root}).fetchall():
                return
            connection.register("catalog", catalog.select(["video_id"]))
            connection.register("known", tables.dataset("catalog"))
            row = connection.execute(_FOREIGN_ROOT, {"root": catalog_root}).fetchone()
    if row is not None:
        video_id, name, root = row
        raise SpecError(
            f"video id {video_id!r} exists in catalog {name!r} of {root!r}, but this catalog is {catalog_root!r}: "
            "set id_prefix in the job's catalog, or use other tables"
        )


def tasks_to_items(tasks: pa.Table, models: Sequence[JobModel], max_videos: int | None = None) -> pa.Table:
    """Return the tasks of a plan as one row per video (ITEMS), in the order of the plan; at most `max_videos`.

    `model_mask` has bit i set if model i of `models` is to score the video.
    """
    if max_videos is not None:
        # The tasks of one video are adjacent, so these contain the first `max_videos` videos.
        return tasks_to_items(tasks.slice(0, max_videos * len(models)), models).slice(0, max_videos)
    if not tasks.num_rows:
        return ITEMS.empty_table()
    names = pa.array([model.ref.name for model in models], pa.string())
    bits = 1 << pc.index_in(tasks["model_name"].cast(pa.string()), value_set=names).to_numpy().astype(np.int64)
    ids = tasks["video_id"]
    is_first = np.ones(tasks.num_rows, bool)
    is_first[1:] = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy()
    starts = np.flatnonzero(is_first)
    items = tasks.select(list(CATALOG_COLUMNS)).take(pa.array(starts))
    items = items.append_column("model_mask", pa.array(np.add.reduceat(bits, starts)))
    items = items.append_column("item", pa.array(np.arange(items.num_rows)))
    items = items.append_column("attempt", pa.array(np.ones(items.num_rows, np.int32)))
    return items.select(ITEMS.names).cast(ITEMS)


def store_plan(tables: Tables, run_id: str, tasks: pa.Table) -> str:
    """Store the tasks of a run as `plans/RUN_ID.parquet` below the tables, and return the address of the file.

    Raises:
        FatalError: the file cannot be written.
    """
    uri = join(join(tables.uri, PLANS_FOLDER), f"{run_id}.parquet")
    content = io.BytesIO()
    pq.write_table(mask_rows(tasks), content, compression="zstd")
    try:
        put_file(uri, content.getvalue(), tables.options)
    except foreign_errors() as error:
        raise FatalError(f"{display_uri(uri)}: cannot store the plan: {explain_error(error, uri)}") from error
    return uri


def _removed_videos(
    connection: duckdb.DuckDBPyConnection, tables: Tables | None, catalog: pa.Table, catalog_name: str, shard: Shard
) -> tuple[str, ...]:
    if tables is None:
        return ()
    connection.register("catalog", catalog.select(["video_id"]))
    connection.register("known", tables.dataset("catalog"))
    query = _REMOVED.format(in_shard=shard_condition(shard))
    rows = connection.execute(query, {"catalog": catalog_name}).fetchall()
    return tuple(row[0] for row in rows)


def _to_tasks(planned: pa.Table, catalog: pa.Table, models: Sequence[ModelRef]) -> pa.Table:
    """Add the columns of the catalog and of the models; repeated values are stored as dictionaries."""
    values = {
        "model_name": [model.name for model in models],
        "model_id": [model.model_id for model in models],
        "fingerprint": [model.fingerprint for model in models],
        "reason": REASONS,
    }
    columns = catalog.select(list(CATALOG_COLUMNS))
    chunks = []
    for start in range(0, max(planned.num_rows, 1), _TASKS_PER_CHUNK):
        chunk = planned.slice(start, _TASKS_PER_CHUNK).combine_chunks()
        tasks = columns.take(chunk.column("row_index"))
        for name, texts in values.items():
            codes = chunk.column("reason" if name == "reason" else "model_index").combine_chunks()
            column = pa.DictionaryArray.from_arrays(codes, pa.array(texts, pa.string()))
            tasks = tasks.append_column(name, column)
        chunks.append(tasks)
    return pa.concat_tables(chunks)


CURRENT, QUARANTINED = -1, -2
"""States of a task that is not due. A task that is due has the index of its reason in REASONS. Negative, so that they
index an array of all states from the end."""

NUM_STATES = 2

_NEW = REASONS.index("new")
_RETRY = REASONS.index("retry")
_RE_SCORE = REASONS.index("re-score")
_NO_FEATURES = REASONS.index("features missing")

_BATCH_ROWS = 100_000

# Join order and build side are fixed by the queries: DuckDB does not know how many rows a dataset has.
_FIXED_JOIN_ORDER = "SET disabled_optimizers = 'join_order,build_side_probe_side'"

_CURRENT = """
SELECT v.row_index, r.model_index FROM scores s
JOIN refs r ON r.model_id = s.model_id AND r.fingerprint = s.fingerprint
JOIN videos v ON v.video_id = s.video_id AND v.content_id = s.content_id
WHERE {within} AND s.model_id IN ({model_ids}) {young}
"""

_HAS_FEATURES = """
SELECT v.row_index, r.model_index FROM features s
JOIN refs r ON r.model_id = s.model_id AND r.fingerprint = s.fingerprint
JOIN videos v ON v.video_id = s.video_id AND v.content_id = s.content_id
WHERE {within} AND s.model_id IN ({model_ids})
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
    with_features: Collection[str],
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
    lacks_features = _lack_features(connection, tables, parameters, states, models, with_features)
    states[lacks_features] = _NO_FEATURES
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
    if select.age is not None or lacks_features.any():
        # Only then can a task that is due have a score of the same identity.
        scored_seq = np.full(states.shape, -1, np.int64)
        for rows, refs, seqs in _fetch(connection, _SCORED, parameters, "row_index", "model_index", "scored_seq"):
            scored_seq[rows, refs] = seqs
        states[is_due & (scored_seq >= 0)] = _RE_SCORE
    _apply_failures(connection, parameters, states, is_due, scored_seq, include_permanent=select.include_permanent)
    states[lacks_features & (states >= 0)] = _NO_FEATURES
    is_stale = (states >= 0) & (states != _RE_SCORE) & (states != _NO_FEATURES) & (scored_at_s > 0)
    if not is_stale.any():
        return DueReasons(states)
    return DueReasons(states, datetime.fromtimestamp(int(scored_at_s[is_stale].min()), UTC))


def _lack_features(
    connection: duckdb.DuckDBPyConnection,
    tables: Tables,
    parameters: _Parameters,
    states: NDArray[np.int8],
    models: Sequence[ModelRef],
    with_features: Collection[str],
) -> NDArray[np.bool_]:
    """Return which current tasks have no stored features although their model is to store them."""
    lacks: NDArray[np.bool_] = (states == CURRENT) & np.array([model.name in with_features for model in models])
    if lacks.any():
        connection.register(FEATURES.name, tables.dataset(FEATURES.name))
        for rows, refs in _fetch(connection, _HAS_FEATURES, parameters, "row_index", "model_index"):
            lacks[rows, refs] = False
    return lacks


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
