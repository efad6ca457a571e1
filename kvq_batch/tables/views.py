"""The views that questions are asked of, as SQL over the raw Delta datasets, and what each of their columns means.

A run appends; what is current is said here, by commit order and never by a clock. Maps and clips count only beside a
score of the same commit, so that what a dying run left behind is never seen. This module runs no statement of a user.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from kvq_batch.tables.schemas import RETRY_REQUESTED, TABLES, Column

RAW_PREFIX = "raw_"
"""Every table is registered as raw_<table>; the views of these names read them."""

_CATALOG = """
WITH newest AS (
    SELECT * FROM raw_catalog QUALIFY row_number() OVER (PARTITION BY video_id, catalog ORDER BY commit_seq DESC) = 1
),
first_seen AS (SELECT video_id, catalog, arg_min(run_id, commit_seq) AS first_run_id FROM raw_catalog GROUP BY ALL),
last_run AS (SELECT catalog, arg_max(run_id, commit_seq) AS last_run_id FROM raw_runs GROUP BY ALL)
SELECT n.* EXCLUDE (in_catalog), f.first_run_id, coalesce(l.last_run_id, n.run_id) AS last_run_id
FROM newest n
JOIN first_seen f ON f.video_id = n.video_id AND f.catalog = n.catalog
LEFT JOIN last_run l ON l.catalog = n.catalog
WHERE n.in_catalog
QUALIFY row_number() OVER (PARTITION BY n.video_id ORDER BY n.commit_seq DESC) = 1
"""

_MODELS = """
WITH newest AS (
    SELECT * FROM raw_models
    QUALIFY row_number() OVER (PARTITION BY model_id, calibration ORDER BY commit_seq DESC) = 1
)
SELECT * REPLACE (
    is_default AND calibration IS NOT NULL AND 1 = row_number() OVER (
        PARTITION BY model_id
        ORDER BY (is_default AND calibration IS NOT NULL) DESC NULLS LAST, commit_seq DESC, calibration
    ) AS is_default
) FROM newest
"""

_SCORES = """
SELECT s.*, m.b2 + (m.b1 - m.b2) / (1 + exp(-(s.raw_score - m.b3) / abs(m.b4))) AS mos
FROM raw_scores s
LEFT JOIN (SELECT model_id, b1, b2, b3, b4 FROM models WHERE is_default) m ON m.model_id = s.model_id
"""

# The models that count are those of the newest run of the video's catalog that used the name; a video that was scored
# under another catalog's name falls back to the newest run of any catalog.
_SCORES_LATEST = """
WITH used AS (SELECT catalog, commit_seq, unnest(models) AS model FROM raw_runs),
current_of_catalog AS (
    SELECT catalog, model.name AS model_name, arg_max(model, commit_seq) AS model FROM used GROUP BY ALL
),
current_of_any AS (SELECT model.name AS model_name, arg_max(model, commit_seq) AS model FROM used GROUP BY ALL),
judged AS (
    SELECT s.video_id, s.model_name, s.model_id, s.run_id, s.commit_seq, coalesce(
        s.content_id = v.content_id
        AND s.model_id = coalesce(c.model, a.model).model_id
        AND s.fingerprint = coalesce(c.model, a.model).fingerprint, false
    ) AS is_current
    FROM raw_scores s
    JOIN catalog v ON v.video_id = s.video_id
    LEFT JOIN current_of_catalog c ON c.catalog = v.catalog AND c.model_name = s.model_name
    LEFT JOIN current_of_any a ON a.model_name = s.model_name
),
chosen AS (
    SELECT video_id, model_name, arg_max({'model_id': model_id, 'commit_seq': commit_seq, 'is_current': is_current},
        (is_current, commit_seq)) AS best
    FROM judged GROUP BY ALL
)
SELECT s.*, NOT c.best.is_current AS is_stale
FROM scores s JOIN chosen c
ON s.video_id = c.video_id AND s.model_id = c.best.model_id AND s.commit_seq = c.best.commit_seq
"""

_BESIDE_A_SCORE = """
SELECT t.* FROM raw_{table} t
SEMI JOIN raw_scores s ON s.video_id = t.video_id AND s.model_id = t.model_id AND s.commit_seq = t.commit_seq
"""

_NEWEST = "SELECT * FROM raw_{table} QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY commit_seq DESC) = 1"

_RUNS = "SELECT * FROM raw_runs QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY commit_seq DESC) = 1"

# A row by which somebody asks for another try is no failure: it tells of those of the same identity before it.
_FAILURES = f"""
SELECT f.*, coalesce(r.requested_seq > f.commit_seq, false) AS is_retry_requested FROM raw_failures f LEFT JOIN (
    SELECT video_id, content_id, model_id, fingerprint, max(commit_seq) AS requested_seq FROM raw_failures
    WHERE error = '{RETRY_REQUESTED}' GROUP BY ALL
) r ON r.video_id = f.video_id AND r.content_id = f.content_id AND r.model_id = f.model_id
    AND r.fingerprint = f.fingerprint
WHERE f.error <> '{RETRY_REQUESTED}'
"""

# The newest of several says what is wrong now.
_STANDING_FAILURES = """
SELECT f.* REPLACE (f.permanent AND NOT f.is_retry_requested AS permanent) FROM failures f
WHERE f.final AND NOT EXISTS (
    FROM raw_scores s WHERE s.video_id = f.video_id AND s.model_name = f.model_name AND s.commit_seq > f.commit_seq
)
QUALIFY row_number() OVER (PARTITION BY f.video_id, f.model_name ORDER BY f.commit_seq DESC, f.attempt DESC) = 1
"""

# Lists start at 1 in SQL; cells lie in the order slot, row, column.
_REGIONS = """
WITH cells AS (
    SELECT m.video_id, m.model_id, m.clip_index, k.slot_start_s, m.num_rows, m.num_cols,
        m.texture_offset, m.texture_scale, m.saliency_offset, m.saliency_scale,
        unnest(m.texture) AS texture_level, unnest(m.saliency) AS saliency_level,
        unnest(range(m.num_slots * m.num_rows * m.num_cols)) AS cell
    FROM raw_maps m
    SEMI JOIN (SELECT video_id, model_id, commit_seq FROM scores_latest WHERE NOT is_stale) s
        ON s.video_id = m.video_id AND s.model_id = m.model_id AND s.commit_seq = m.commit_seq
    LEFT JOIN raw_clips k ON k.video_id = m.video_id AND k.model_id = m.model_id AND k.commit_seq = m.commit_seq
        AND k.clip_index = m.clip_index
),
valued AS (
    SELECT *, texture_level * texture_scale + texture_offset AS texture,
        (saliency_level * saliency_scale + saliency_offset) ** 2 AS saliency
    FROM cells
)
SELECT video_id, model_id, clip_index, (cell // (num_rows * num_cols))::INTEGER AS slot,
    slot_start_s[(cell // (num_rows * num_cols) + 1)::INTEGER] AS slot_start_s,
    (cell // num_cols % num_rows)::INTEGER AS cell_row, (cell % num_cols)::INTEGER AS cell_col,
    texture, saliency, texture * saliency AS weighted
FROM valued
"""

# In this order: a view reads those before it.
VIEWS: Mapping[str, str] = {
    "catalog": _CATALOG,
    "models": _MODELS,
    "runs": _RUNS,
    "scores": _SCORES,
    "scores_latest": _SCORES_LATEST,
    "clips": _BESIDE_A_SCORE.format(table="clips"),
    "maps": _BESIDE_A_SCORE.format(table="maps"),
    "failures": _FAILURES,
    "labels": _NEWEST.format(table="labels", keys="label_id"),
    "opinions": f"SELECT * FROM ({_NEWEST.format(table='opinions', keys='dataset, video_id')}) WHERE NOT is_withdrawn",
    "unresolved_failures": _STANDING_FAILURES,
    "regions": _REGIONS,
}

_ABOUT: Mapping[str, str] = {
    "catalog": "the videos that the catalogs list now, one row each",
    "models": "cards and calibrations of the models, newest of each",
    "runs": "runs, with the newest state of each",
    "scores": "every score that was ever committed",
    "scores_latest": "one score for each video of the catalog and model: of the current content and model, or marked "
    "stale",
    "clips": "the clips of every score",
    "maps": "the stored maps of every score",
    "failures": "every failure that was committed",
    "labels": "one row for each version of a source segment that was made and measured",
    "opinions": "the newest opinion of people on each video and data set",
    "unresolved_failures": "the newest final failure of each video and model that was not scored since",
    "regions": "one row for each cell of the maps of the current scores",
}

_DERIVED: Mapping[str, str] = {
    "mos": "raw_score under the default calibration of its model, null where it has none",
    "is_stale": "true where the current content, model and preprocessing have no score, and this is an older one",
    "is_retry_requested": "true where somebody has asked since for another try (`kvq-batch failures --retry`)",
    "first_run_id": "run that first saw the video in this catalog",
    "last_run_id": "newest run of this catalog",
    "slot": "slot of the clip, two frames each, from 0",
    "slot_start_s": "time of the slot's first frame in the video, seconds",
    "cell_row": "row of the cell, from the top, from 0",
    "cell_col": "column of the cell, from the left, from 0",
    "texture": "quality of the cell",
    "saliency": "weight of the cell, mean 1 over a slot",
    "weighted": "texture * saliency; its mean over all cells of a video is raw_score",
}


@dataclass(frozen=True, slots=True)
class View:
    """A view as help shows it."""

    name: str
    about: str
    columns: tuple[Column, ...]


def create_views(connection: duckdb.DuckDBPyConnection) -> None:
    """Creates every view; the raw tables must be registered before."""
    for name, query in VIEWS.items():
        connection.execute(f'CREATE VIEW "{name}" AS {query}')


def describe_views() -> dict[str, View]:
    """What can be asked: each view with its columns, DuckDB's types and one line for each. Needs no tables."""
    with duckdb.connect() as connection:
        for schema in TABLES:
            connection.register(f"{RAW_PREFIX}{schema.name}", schema.arrow().empty_table())
        create_views(connection)
        return {name: View(name, _ABOUT[name], _columns(connection, name)) for name in VIEWS}


def _columns(connection: duckdb.DuckDBPyConnection, view: str) -> tuple[Column, ...]:
    comments = {"scores_latest": "scores", "unresolved_failures": "failures", "regions": ""}.get(view, view)
    own = {c.name: c.comment for schema in TABLES if schema.name == comments for c in schema.columns}
    rows = connection.execute(f'DESCRIBE "{view}"').fetchall()
    known = {column.name: column.comment for schema in TABLES for column in schema.columns}
    return tuple(
        Column(name, kind.lower(), own.get(name) or _DERIVED.get(name) or known[name]) for name, kind, *_ in rows
    )
