"""The plan: catalog minus what the tables hold as current, set-wise in DuckDB over the Delta datasets.

A pair (video, model) is current when a score stands under the same content, model and fingerprint, however old it is:
a file that is rolled back to an earlier state has its score already. Everything else is planned with its reason, as far
as the job's selection takes it. This module reads two tables and asks no store which objects exist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import REASONS, ModelRef
from kvq_batch.io.database import connect, reading
from kvq_batch.io.schemas import FAILURES, SCORES
from kvq_batch.io.selection import in_order, select_places
from kvq_batch.io.tables import Tables
from kvq_batch.spec.selection import EVERYTHING, Select

_IDENTITY = ("video_id", "content_id", "model_id", "fingerprint")
_SCORE_COLUMNS = ("model_name", *_IDENTITY, "commit_seq", "scored_at")
_FAILURE_COLUMNS = ("model_name", *_IDENTITY, "commit_seq", "attempt", "final", "permanent")
_CATALOG_COLUMNS = ("video_id", "uri", "content_id", "size_bytes", "start_s", "end_s")

# The models of the job are numbered, so that five million rows carry one small integer, not two long texts.
_DONE = """
CREATE TEMP TABLE pending AS
SELECT c.place, c.video_id, c.content_id, r.ref FROM selected c CROSS JOIN refs r
ANTI JOIN (
    SELECT s.video_id, s.content_id, r.ref FROM scores s JOIN refs r USING (model_id, fingerprint) {young}
) d ON d.video_id = c.video_id AND d.content_id = c.content_id AND d.ref = r.ref
"""

# Only where an age is asked for can a pending pair have a score.
_STANDING = """
    SELECT p.place, p.ref, max(s.commit_seq) AS scored_seq FROM pending p JOIN refs r USING (ref)
    JOIN scores s ON s.video_id = p.video_id AND s.content_id = p.content_id
        AND s.model_id = r.model_id AND s.fingerprint = r.fingerprint
    GROUP BY ALL
"""
_NONE_STANDING = "SELECT place, ref, NULL::BIGINT AS scored_seq FROM pending WHERE false"

# A failure is permanent until a newer row of the same identity says otherwise: another try, or somebody who asked.
_REASONED = """
CREATE TEMP TABLE reasoned AS
WITH tried AS (
    SELECT p.place, p.ref,
        arg_max(f.final AND f.permanent, (f.commit_seq, f.attempt, f.final)) AS is_quarantined,
        max(f.commit_seq) AS failed_seq
    FROM pending p JOIN refs r USING (ref)
    JOIN failures f ON f.video_id = p.video_id AND f.content_id = p.content_id
        AND f.model_id = r.model_id AND f.fingerprint = r.fingerprint
    GROUP BY ALL
),
standing AS ({standing}),
seen AS (
    SELECT video_id, model_name, content_id, model_id, fingerprint, commit_seq FROM scores
    UNION ALL SELECT video_id, model_name, content_id, model_id, fingerprint, commit_seq FROM failures
),
newest AS (
    SELECT s.video_id, s.model_name,
        arg_max(struct_pack(content_id := s.content_id, model_id := s.model_id, fingerprint := s.fingerprint),
            s.commit_seq) AS was
    FROM seen s
    SEMI JOIN refs r ON r.model_name = s.model_name
    SEMI JOIN pending p ON p.video_id = s.video_id
    GROUP BY ALL
)
SELECT p.place, p.ref, CASE
    WHEN t.is_quarantined AND NOT {permanent_too} AND t.failed_seq > coalesce(d.scored_seq, -1) THEN 'quarantined'
    WHEN d.place IS NOT NULL THEN 're-score'
    WHEN t.place IS NOT NULL THEN 'retry'
    WHEN n.was IS NULL THEN 'new'
    WHEN n.was.content_id <> p.content_id THEN 'content changed'
    WHEN n.was.model_id <> r.model_id THEN 'model changed'
    ELSE 'preprocessing changed' END AS reason
FROM pending p JOIN refs r USING (ref)
LEFT JOIN tried t ON t.place = p.place AND t.ref = p.ref
LEFT JOIN standing d ON d.place = p.place AND d.ref = p.ref
LEFT JOIN newest n ON n.video_id = p.video_id AND n.model_name = r.model_name
"""

_DEPARTED = """
SELECT video_id FROM known WHERE catalog = $catalog
GROUP BY video_id HAVING arg_max(in_catalog, commit_seq) AND video_id NOT IN (SELECT video_id FROM catalog)
ORDER BY video_id
"""

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
    reason], one row per (video, model) to score, in the order that was asked for or that of the catalog, then of the
    models; those of one video stand together, `num_videos` of them. `counts` is {reason: {model name: pairs}} with
    every reason and model. `departed` are the ids that left the catalog. Of the pairs of the `num_selected` videos,
    each is planned, current, quarantined, or due for another reason than those asked for (`num_other_reasons`).
    """

    pairs: Any
    counts: Mapping[str, Mapping[str, int]]
    num_current: int
    num_quarantined: int
    num_other_reasons: int
    num_selected: int
    num_videos: int
    departed: tuple[str, ...]

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

    Without tables everything is new. Ages of scores are counted back from `now` (aware; by default this moment).
    Raises: SpecError for a null or repeated video id, a null content id, two models of one name, a selection that this
    catalog cannot answer, or tables out of reach.
    """
    check_catalog(catalog)
    if len({model.name for model in models}) != len(models):
        raise SpecError(f"models named twice: {', '.join(sorted(model.name for model in models))}; name each once")
    places = select_places(catalog, select)
    num_selected = catalog.num_rows if places is None else len(places)
    with connect() as connection:
        _register(connection, catalog, places, tables, (("scores", _SCORE_COLUMNS), ("failures", _FAILURE_COLUMNS)))
        connection.register("refs", _refs(models))
        with reading(tables.uri if tables else ""):
            connection.execute(_DONE.format(young=_young(select, now)))
            connection.execute(
                _REASONED.format(
                    standing=_NONE_STANDING if select.age is None else _STANDING,
                    permanent_too=str(select.retry == "permanent").lower(),
                )
            )
            found = connection.sql("SELECT place, ref, reason FROM reasoned ORDER BY place, ref").to_arrow_table()
            departed = _departed(connection, tables, catalog_name)
    num_due = found.num_rows
    found = found.filter(pc.not_equal(found.column("reason"), "quarantined"))
    num_quarantined = num_due - found.num_rows
    if select.reasons:
        found = found.filter(pc.is_in(found.column("reason"), pa.array(select.reasons, pa.string())))
    pairs = _pairs(in_order(found, catalog, select), catalog, models)
    return Plan(
        pairs=pairs,
        counts=_counts(pairs, models),
        num_current=num_selected * len(models) - num_due,
        num_quarantined=num_quarantined,
        num_other_reasons=num_due - num_quarantined - found.num_rows,
        num_selected=num_selected,
        num_videos=pc.count_distinct(found.column("place")).as_py(),
        departed=departed,
    )


def _young(select: Select, now: datetime | None) -> str:
    if select.age is None:
        return ""
    since = (now or datetime.now(UTC)) - select.age
    return f"WHERE s.scored_at >= TIMESTAMPTZ '{since.isoformat()}'"


def check_catalog(catalog: Any) -> None:
    """Raises: SpecError for a missing column, a null or repeated video id, or a null content id."""
    missing = [name for name in _CATALOG_COLUMNS if name not in catalog.column_names]
    if missing:
        raise SpecError(f"the catalog has no column {', '.join(missing)}")
    ids = catalog.column("video_id")
    if ids.null_count:
        raise SpecError(f"the catalog has {ids.null_count} rows without a video id")
    contents = catalog.column("content_id")
    if contents.null_count:
        nameless = ids.filter(pc.is_null(contents))[0].as_py()
        raise SpecError(f"video {nameless!r} has no content id, so nobody could tell when it changes")
    if pc.count_distinct(ids).as_py() != catalog.num_rows:
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise SpecError(f"video id {repeated['values']!r} stands {repeated['counts']} times in the catalog")


def check_roots(tables: Tables, catalog: Any, catalog_root: str) -> None:
    """Returns if no video id of `catalog` is listed in the tables under another root.

    Raises: SpecError naming one such video id and both roots.
    """
    with connect() as connection:
        _register(connection, catalog, None, tables, ())
        connection.register("known", tables.dataset("catalog"))
        connection.register("runs", tables.dataset("runs"))
        with reading(tables.uri):
            row = connection.execute(_FOREIGN_ROOT, {"root": catalog_root}).fetchone()
    if row is not None:
        video_id, name, root = row
        raise SpecError(
            f"video id {video_id!r} is known from catalog {name!r} below {root!r} and stands here below "
            f"{catalog_root!r}: set id_prefix in the job's catalog, or use other tables"
        )


def _register(
    connection: duckdb.DuckDBPyConnection,
    catalog: Any,
    places: Any,
    tables: Tables | None,
    needed: Sequence[tuple[str, Sequence[str]]],
) -> None:
    """The catalog as `catalog`, its rows at `places` (None for all) as `selected`, and the tables that are needed."""
    numbers = pa.array(range(catalog.num_rows), pa.int64())
    videos = catalog.select(["video_id", "content_id"]).append_column("place", numbers)
    connection.register("catalog", videos)
    connection.register("selected", videos if places is None else videos.take(places))
    for name, columns in needed:
        if tables is None:
            schema = {"scores": SCORES, "failures": FAILURES}[name]
            connection.register(name, schema.arrow().empty_table().select(list(columns)))
        else:
            connection.register(name, tables.dataset(name))


def _refs(models: Sequence[ModelRef]) -> Any:
    return pa.table(
        {
            "ref": pa.array(range(len(models)), pa.int32()),
            "model_name": pa.array([model.name for model in models], pa.string()),
            "model_id": pa.array([model.model_id for model in models], pa.string()),
            "fingerprint": pa.array([model.fingerprint for model in models], pa.string()),
        }
    )


def _departed(connection: duckdb.DuckDBPyConnection, tables: Tables | None, catalog_name: str) -> tuple[str, ...]:
    if tables is None:
        return ()
    connection.register("known", tables.dataset("catalog"))
    rows = connection.execute(_DEPARTED, {"catalog": catalog_name}).fetchall()
    return tuple(row[0] for row in rows)


def _pairs(found: Any, catalog: Any, models: Sequence[ModelRef]) -> Any:
    pairs = catalog.select(list(_CATALOG_COLUMNS)).take(found.column("place"))
    refs = _refs(models).take(found.column("ref"))
    for name in ("model_name", "model_id", "fingerprint"):
        pairs = pairs.append_column(name, refs.column(name))
    return pairs.append_column("reason", found.column("reason").cast(pa.string()))


def _counts(pairs: Any, models: Sequence[ModelRef]) -> dict[str, dict[str, int]]:
    counts = {str(reason): {model.name: 0 for model in models} for reason in REASONS}
    grouped = pairs.group_by(["reason", "model_name"]).aggregate([([], "count_all")]).to_pylist()
    for row in grouped:
        counts[row["reason"]][row["model_name"]] = row["count_all"]
    return counts
