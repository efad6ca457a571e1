"""The plan of a run: the tasks (video, model) of a catalog that have no current score, each with its reason.

A task is current if a score with the same content id, model id and fingerprint exists, however old it is: a file that
is rolled back to an earlier state already has its score. All other tasks are planned if the job selects them. The plan
of each run is stored beside the tables before work starts, so that "why was this video scored that night" can be
answered later. No run reads a stored plan back.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kvq_batch.catalog.reader import CATALOG_COLUMNS, check_catalog
from kvq_batch.catalog.selection import select_indices, shard_condition, sort_selected
from kvq_batch.config.selection import EVERYTHING, Select
from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.identity import REASONS, ModelRef
from kvq_batch.domain.shard import Shard
from kvq_batch.planning.due import CURRENT, NUM_STATES, QUARANTINED, compute_due_reasons
from kvq_batch.planning.job_models import JobModel
from kvq_batch.storage.errors import FOREIGN_ERRORS, explain_error
from kvq_batch.storage.objects import put_file
from kvq_batch.storage.options import display_uri, display_uris, join
from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import Tables

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
) -> Plan:
    """Return the plan for `catalog` (at least video_id, uri, content_id, size_bytes, start_s, end_s).

    It holds only videos of `select.scope`. Without tables every task is new. The age of a score is relative to `now`
    (time-zone aware; default: the current time).

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
            connection, tables, videos if indices is None else videos.take(indices), models, select, now
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
    redacted = tasks.set_column(tasks.column_names.index("uri"), "uri", display_uris(tasks["uri"]))
    content = io.BytesIO()
    pq.write_table(redacted, content, compression="zstd")
    try:
        put_file(uri, content.getvalue(), tables.options)
    except FOREIGN_ERRORS as error:
        raise FatalError(f"{display_uri(uri)}: cannot store the plan: {explain_error(error)}") from error
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
