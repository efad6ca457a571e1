"""The plan: catalog minus what the tables hold as current, set-wise in DuckDB over the Delta datasets.

A pair (video, model) is current when a score stands under the same content, model and fingerprint, however old it is:
a file that is rolled back to an earlier state has its score already. Everything else is planned with its reason, as far
as the job's selection takes it. This module reads two tables and asks no store which objects exist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from kvq_batch.catalog.reader import CATALOG_COLUMNS, check_catalog
from kvq_batch.catalog.selection import in_order, select_indices, shard_condition
from kvq_batch.config.selection import EVERYTHING, Select
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import REASONS, ModelRef
from kvq_batch.domain.shard import Shard
from kvq_batch.planning.due import CURRENT, NUM_STATES, QUARANTINED, compute_due_reasons
from kvq_batch.tables.database import connect, reading
from kvq_batch.tables.delta import Tables

_PAIRS_AT_ONCE = 1_000_000
"""Rows of the plan that are put together at a time: Arrow's texts end at 2 GiB a piece."""

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
    """What a run would do. Immutable, and all of it known before a video is touched.

    `pairs` is a pa.Table [video_id, uri, content_id, size_bytes, start_s, end_s, model_name, model_id, fingerprint,
    reason], the last four as dictionaries, one row per (video, model) to score, in the order that was asked for or that
    of the catalog, then of the models; those of one video stand together, `num_videos` of them. `counts` is {reason:
    {model name: pairs}} with every reason and model. `departed` are the ids that left the catalog. Of the pairs of the
    `num_selected` videos, each is planned, current, quarantined, or due for another reason than those asked for
    (`num_other_reasons`). `oldest_stale_at` is when the oldest score was made that is due to be replaced.
    """

    tasks: Any
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
        """Pairs by reason, over all models."""
        return {reason: sum(by_model.values()) for reason, by_model in self.counts.items()}


def make_plan(
    tables: Tables | None,
    catalog: Any,
    catalog_name: str,
    models: Sequence[ModelRef],
    select: Select = EVERYTHING,
    now: datetime | None = None,
) -> Plan:
    """The plan for `catalog` (pa.Table with at least video_id, uri, content_id, size_bytes, start_s, end_s).

    It holds the videos of `select.scope` and no others. Without tables everything is new. Ages of scores are counted
    back from `now` (aware; by default this moment).

    Raises: SpecError for a null or repeated video id, a null content id, two models of one name, a selection that this
    catalog cannot answer, or tables out of reach.
    """
    check_catalog(catalog)
    if len({model.name for model in models}) != len(models):
        raise SpecError(f"models named twice: {', '.join(sorted(model.name for model in models))}; name each once")
    indices = select_indices(catalog, select)
    videos = catalog.select(["video_id", "content_id"])
    with connect() as connection, reading(tables.uri if tables else ""):
        reasons = compute_due_reasons(
            connection, tables, videos if indices is None else videos.take(indices), models, select, now
        )
        states = reasons.states
        removed = _removed(connection, tables, catalog, catalog_name, select.scope)
    model_mask = np.array([not select.reasons or reason in select.reasons for reason in REASONS] + [False] * NUM_STATES)
    is_planned = model_mask[states]
    rows, refs = np.nonzero(is_planned)
    found = pa.table({
        "place": pa.array(rows) if indices is None else indices.take(pa.array(rows)),
        "ref": pa.array(refs.astype(np.int32)), "reason": pa.array(states[rows, refs]),
    })  # fmt: skip
    return Plan(
        tasks=_tasks(in_order(found, catalog, select), catalog, models),
        counts={
            str(reason): {
                model.name: int(np.count_nonzero(is_planned[:, ref] & (states[:, ref] == code)))
                for ref, model in enumerate(models)
            }
            for code, reason in enumerate(REASONS)
        },
        num_current=int(np.count_nonzero(states == CURRENT)),
        num_quarantined=int(np.count_nonzero(states == QUARANTINED)),
        num_other_reasons=int(np.count_nonzero((states >= 0) & ~is_planned)),
        num_selected=len(states),
        num_videos=int(np.count_nonzero(is_planned.any(axis=1))),
        removed=removed,
        oldest_stale_at=reasons.oldest_stale_at,
    )


def check_roots(tables: Tables, catalog: Any, catalog_root: str) -> None:
    """Returns if no video id of `catalog` is listed in the tables under another root.

    Raises: SpecError naming one such video id and both roots.
    """
    with connect() as connection:
        connection.register("runs", tables.dataset("runs"))
        with reading(tables.uri):
            # Mostly there is no other root, and nothing to compare.
            if not connection.execute(_OTHER_ROOTS, {"root": catalog_root}).fetchall():
                return
            connection.register("catalog", catalog.select(["video_id"]))
            connection.register("known", tables.dataset("catalog"))
            row = connection.execute(_FOREIGN_ROOT, {"root": catalog_root}).fetchone()
    if row is not None:
        video_id, name, root = row
        raise SpecError(
            f"video id {video_id!r} is known from catalog {name!r} below {root!r} and stands here below "
            f"{catalog_root!r}: set id_prefix in the job's catalog, or use other tables"
        )


def _removed(
    connection: duckdb.DuckDBPyConnection, tables: Tables | None, catalog: Any, catalog_name: str, shard: Shard
) -> tuple[str, ...]:
    if tables is None:
        return ()
    connection.register("catalog", catalog.select(["video_id"]))
    connection.register("known", tables.dataset("catalog"))
    query = _REMOVED.format(in_shard=shard_condition(shard))
    rows = connection.execute(query, {"catalog": catalog_name}).fetchall()
    return tuple(row[0] for row in rows)


def _tasks(found: Any, catalog: Any, models: Sequence[ModelRef]) -> Any:
    """`found` with the columns of the catalog and of the models; what repeats is stored as a dictionary."""
    texts = {
        "model_name": [model.name for model in models],
        "model_id": [model.model_id for model in models],
        "fingerprint": [model.fingerprint for model in models],
        "reason": REASONS,
    }
    columns = catalog.select(list(CATALOG_COLUMNS))
    pieces = []
    for start in range(0, max(found.num_rows, 1), _PAIRS_AT_ONCE):
        piece = found.slice(start, _PAIRS_AT_ONCE).combine_chunks()
        tasks = columns.take(piece.column("place"))
        for name, values in texts.items():
            codes = piece.column("reason" if name == "reason" else "ref").combine_chunks()
            named = pa.DictionaryArray.from_arrays(codes, pa.array(values, pa.string()))
            tasks = tasks.append_column(name, named)
        pieces.append(tasks)
    return pa.concat_tables(pieces)
