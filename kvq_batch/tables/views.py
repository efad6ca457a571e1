"""Views for SQL queries: their definitions over the raw Delta tables, and descriptions of their columns.

Runs only append. The views select what is current, by commit order and not by time. Maps, clips and features are
shown only together with a score of the same commit, so rows that a crashed run left are never visible.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from kvq_batch.tables.schemas import RETRY_REQUESTED, TABLES, Column

RAW_PREFIX = "raw_"
"""Tables are registered in DuckDB as raw_<table>; the views read these."""

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
-- A row with is_default NULL removes its calibration.
WHERE calibration IS NULL OR is_default IS NOT NULL
"""

_SCORES = """
SELECT s.*, m.b2 + (m.b1 - m.b2) / (1 + exp(-(s.raw_score - m.b3) / abs(m.b4))) AS mos
FROM raw_scores s
LEFT JOIN (SELECT model_id, b1, b2, b3, b4 FROM models WHERE is_default) m ON m.model_id = s.model_id
"""

# A score is current if its model and fingerprint are those of the newest run of the video's catalog that used a model
# of this name. A video that was scored under the name of another catalog uses the newest run of any catalog.
_SCORES_LATEST = """
WITH used AS (SELECT catalog, commit_seq, unnest(models) AS model FROM raw_runs),
current_of_catalog AS (
    SELECT catalog, model.name AS model_name, arg_max(model, commit_seq) AS model FROM used GROUP BY ALL
),
current_of_any AS (SELECT model.name AS model_name, arg_max(model, commit_seq) AS model FROM used GROUP BY ALL),
compared AS (
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
    FROM compared GROUP BY ALL
)
SELECT s.*, NOT c.best.is_current AS is_stale
FROM scores s JOIN chosen c
ON s.video_id = c.video_id AND s.model_id = c.best.model_id AND s.commit_seq = c.best.commit_seq
"""

_WITH_SCORE = """
SELECT t.* FROM raw_{table} t
SEMI JOIN raw_scores s ON s.video_id = t.video_id AND s.model_id = t.model_id AND s.commit_seq = t.commit_seq
"""

# `is_stale` is that of the score.
_FEATURES_LATEST = """
SELECT f.*, s.is_stale FROM raw_features f
JOIN (SELECT video_id, model_id, commit_seq, is_stale FROM scores_latest) s
    ON s.video_id = f.video_id AND s.model_id = f.model_id AND s.commit_seq = f.commit_seq
"""

_NEWEST = "SELECT * FROM raw_{table} QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY commit_seq DESC) = 1"

_RUNS = "SELECT * FROM raw_runs QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY commit_seq DESC) = 1"

# A retry request is not a failure: it applies to earlier failures of the same identity.
_FAILURES = f"""
SELECT f.*, coalesce(r.requested_seq > f.commit_seq, false) AS is_retry_requested FROM raw_failures f LEFT JOIN (
    SELECT video_id, content_id, model_id, fingerprint, max(commit_seq) AS requested_seq FROM raw_failures
    WHERE error = '{RETRY_REQUESTED}' GROUP BY ALL
) r ON r.video_id = f.video_id AND r.content_id = f.content_id AND r.model_id = f.model_id
    AND r.fingerprint = f.fingerprint
WHERE f.error <> '{RETRY_REQUESTED}'
"""

# The newest of several failures is the one that matters now.
_UNRESOLVED_FAILURES = """
SELECT f.* REPLACE (f.permanent AND NOT f.is_retry_requested AS permanent) FROM failures f
WHERE f.final AND NOT EXISTS (
    FROM raw_scores s WHERE s.video_id = f.video_id AND s.model_name = f.model_name AND s.commit_seq > f.commit_seq
)
QUALIFY row_number() OVER (PARTITION BY f.video_id, f.model_name ORDER BY f.commit_seq DESC, f.attempt DESC) = 1
"""

# Lists in SQL start at 1. Cells are in the order slot, row, column.
_CURRENT_MAPS = """
SELECT m.* FROM raw_maps m
SEMI JOIN (SELECT video_id, model_id, commit_seq FROM scores_latest WHERE NOT is_stale) s
    ON s.video_id = m.video_id AND s.model_id = m.model_id AND s.commit_seq = m.commit_seq
"""

_EDGES = """
cell_col / num_cols AS x0, cell_row / num_rows AS y0, (cell_col + 1) / num_cols AS x1, (cell_row + 1) / num_rows AS y1
"""

_REGIONS = f"""
WITH cells AS (
    SELECT m.video_id, m.model_id, m.clip_index, k.slot_start_s, m.num_rows, m.num_cols,
        m.texture_offset, m.texture_scale, m.saliency_offset, m.saliency_scale,
        unnest(m.texture) AS texture_level, unnest(m.saliency) AS saliency_level,
        unnest(range(m.num_slots * m.num_rows * m.num_cols)) AS cell
    FROM ({_CURRENT_MAPS}) m
    LEFT JOIN raw_clips k ON k.video_id = m.video_id AND k.model_id = m.model_id AND k.commit_seq = m.commit_seq
        AND k.clip_index = m.clip_index
    WHERE m.texture IS NOT NULL OR m.saliency IS NOT NULL
),
valued AS (
    SELECT *, (cell // (num_rows * num_cols))::INTEGER AS slot,
        (cell // num_cols % num_rows)::INTEGER AS cell_row, (cell % num_cols)::INTEGER AS cell_col,
        texture_level * texture_scale + texture_offset AS texture,
        (saliency_level * saliency_scale + saliency_offset) ** 2 AS saliency
    FROM cells
)
SELECT video_id, model_id, clip_index, slot, slot_start_s[slot + 1] AS slot_start_s, cell_row, cell_col,
    texture, saliency, texture * saliency AS weighted, num_rows, num_cols, {_EDGES}
FROM valued
"""

# Releases before `texture_mean` and `saliency_mean` stored whole maps only: their means are computed here.
_CELLS = f"""
WITH current_maps AS (SELECT * FROM ({_CURRENT_MAPS}) WHERE texture IS NOT NULL OR saliency IS NOT NULL),
levels AS (
    SELECT video_id, model_id, clip_index, num_rows, num_cols, texture_offset, texture_scale, saliency_offset,
        saliency_scale, unnest(texture_mean) AS texture_level, unnest(saliency_mean) AS saliency_level,
        unnest(range(num_rows * num_cols)) AS cell
    FROM current_maps WHERE texture_mean IS NOT NULL OR saliency_mean IS NOT NULL
),
whole AS (
    SELECT video_id, model_id, clip_index, num_rows, num_cols, texture_offset, texture_scale, saliency_offset,
        saliency_scale, unnest(texture) AS texture_level, unnest(saliency) AS saliency_level,
        unnest(range(num_slots * num_rows * num_cols)) % (num_rows * num_cols) AS cell
    FROM current_maps WHERE texture_mean IS NULL AND saliency_mean IS NULL
),
valued AS (
    SELECT video_id, model_id, clip_index, num_rows, num_cols, cell,
        texture_level * texture_scale + texture_offset AS texture,
        (saliency_level * saliency_scale + saliency_offset) ** 2 AS saliency
    FROM levels
    UNION ALL
    SELECT video_id, model_id, clip_index, num_rows, num_cols, cell,
        avg(texture_level * texture_scale + texture_offset),
        avg((saliency_level * saliency_scale + saliency_offset) ** 2)
    FROM whole GROUP BY ALL
),
placed AS (
    SELECT *, (cell // num_cols)::INTEGER AS cell_row, (cell % num_cols)::INTEGER AS cell_col FROM valued
)
SELECT video_id, model_id, clip_index, cell_row, cell_col, texture, saliency, num_rows, num_cols, {_EDGES}
FROM placed
"""

# A region has the value of the cells that it overlaps, weighted by the area of the overlap. The newest run of the
# catalog of a video defines its regions.
_NAMED_REGIONS = """
WITH defined AS (
    SELECT r.run_id, region.key AS region, unnest([region.value::DOUBLE[]]) AS edges
    FROM runs r, json_each(try_cast(r.job_spec AS JSON), '$.regions') region
),
named AS (
    SELECT v.video_id, d.region, edges[1] AS left_edge, edges[2] AS top, edges[3] AS right_edge, edges[4] AS bottom
    FROM catalog v JOIN defined d ON d.run_id = v.last_run_id
),
covered AS (
    SELECT c.video_id, c.model_id, c.clip_index, n.region, c.texture, c.saliency,
        greatest(0, least(c.x1, n.right_edge) - greatest(c.x0, n.left_edge))
            * greatest(0, least(c.y1, n.bottom) - greatest(c.y0, n.top)) AS area
    FROM cells c JOIN named n ON n.video_id = c.video_id
)
SELECT video_id, model_id, clip_index, region,
    sum(texture * area) / sum(area) AS texture, sum(saliency * area) / sum(area) AS saliency
FROM covered WHERE area > 0 GROUP BY ALL
"""

# A model without time slots has one row for each clip.
_TIMELINE = """
WITH slots AS (
    SELECT k.video_id, k.model_id, s.model_name, k.clip_index, k.start_s, k.end_s, k.slot_start_s, k.slot_scores,
        k.raw_score AS clip_score, unnest(range(greatest(1, len(k.slot_scores)))) AS slot
    FROM raw_clips k
    JOIN (SELECT video_id, model_id, model_name, commit_seq FROM scores_latest WHERE NOT is_stale) s
        ON s.video_id = k.video_id AND s.model_id = k.model_id AND s.commit_seq = k.commit_seq
),
timed AS (
    SELECT video_id, model_id, model_name, clip_index, slot::INTEGER AS slot,
        CASE WHEN slot = 0 THEN start_s ELSE slot_start_s[slot + 1] END AS from_s,
        coalesce(slot_start_s[slot + 2], end_s) AS until_s, coalesce(slot_scores[slot + 1], clip_score) AS raw_score
    FROM slots
)
SELECT t.*, m.b2 + (m.b1 - m.b2) / (1 + exp(-(t.raw_score - m.b3) / abs(m.b4))) AS mos
FROM timed t LEFT JOIN (SELECT model_id, b1, b2, b3, b4 FROM models WHERE is_default) m ON m.model_id = t.model_id
"""

# A cause of the whole frame has one level for each slot, others have one for each cell.
_CAUSES = f"""
WITH found AS (
    SELECT m.video_id, m.model_id, m.run_id, m.clip_index, m.num_slots, m.num_rows, m.num_cols, k.start_s, k.end_s,
        k.slot_start_s, unnest(map_entries(m.causes)) AS entry
    FROM ({_CURRENT_MAPS}) m
    LEFT JOIN raw_clips k ON k.video_id = m.video_id AND k.model_id = m.model_id AND k.commit_seq = m.commit_seq
        AND k.clip_index = m.clip_index
    WHERE m.causes IS NOT NULL
),
levels AS (
    SELECT * EXCLUDE (entry), entry.key AS cause, len(entry.value) // num_slots AS per_slot,
        unnest(entry.value) AS percent, unnest(range(len(entry.value))) AS cell
    FROM found
),
placed AS (
    SELECT *, (cell // per_slot)::INTEGER AS slot,
        CASE WHEN per_slot > 1 THEN (cell // num_cols % num_rows)::INTEGER END AS cell_row,
        CASE WHEN per_slot > 1 THEN (cell % num_cols)::INTEGER END AS cell_col
    FROM levels WHERE percent > 0
)
SELECT video_id, model_id, run_id, clip_index, slot,
    CASE WHEN slot = 0 THEN start_s ELSE slot_start_s[slot + 1] END AS from_s,
    coalesce(slot_start_s[slot + 2], end_s) AS until_s,
    cell_row, cell_col, cause, percent / 100 AS severity, num_rows, num_cols,
    coalesce(cell_col / num_cols, 0) AS x0, coalesce(cell_row / num_rows, 0) AS y0,
    coalesce((cell_col + 1) / num_cols, 1) AS x1, coalesce((cell_row + 1) / num_rows, 1) AS y1
FROM placed
"""

# In this order: views use those before them.
VIEWS: Mapping[str, str] = {
    "catalog": _CATALOG,
    "models": _MODELS,
    "runs": _RUNS,
    "scores": _SCORES,
    "scores_latest": _SCORES_LATEST,
    "clips": _WITH_SCORE.format(table="clips"),
    "maps": _WITH_SCORE.format(table="maps"),
    "features": _WITH_SCORE.format(table="features"),
    "features_latest": _FEATURES_LATEST,
    "failures": _FAILURES,
    "labels": _NEWEST.format(table="labels", keys="label_id"),
    "opinions": f"SELECT * FROM ({_NEWEST.format(table='opinions', keys='dataset, video_id')}) WHERE NOT is_withdrawn",
    "unresolved_failures": _UNRESOLVED_FAILURES,
    "regions": _REGIONS,
    "cells": _CELLS,
    "named_regions": _NAMED_REGIONS,
    "timeline": _TIMELINE,
    "causes": _CAUSES,
}

_DESCRIPTIONS: Mapping[str, str] = {
    "catalog": "videos that are in a catalog now, one row per video",
    "models": "model cards and calibrations, the newest of each",
    "runs": "runs, with the newest state of each",
    "scores": "all committed scores",
    "scores_latest": "one score per video of the catalog and model: the current one, or an older one marked as stale",
    "clips": "clips of all scores",
    "maps": "stored maps of all scores",
    "features": "stored features of all scores",
    "features_latest": "stored features of the scores in scores_latest",
    "failures": "all committed failures",
    "labels": "one row per rendition of a reference segment that was made and measured",
    "opinions": "the newest opinion on each video in each data set",
    "unresolved_failures": "newest final failure of each video and model without a later score",
    "regions": "one row per cell and time slot of the maps of current scores",
    "cells": "one row per cell of the maps of current scores, means over the time slots of a clip",
    "named_regions": "means of current maps over the regions that the job names ([regions])",
    "timeline": "one row per time slot of current scores: from when until when, and how good",
    "causes": "one row per cause of bad quality, time slot and cell where its severity is above 0 (docs/causes.md)",
}

_COMPUTED: Mapping[str, str] = {
    "mos": "raw_score mapped by the default calibration of its model; null if there is none",
    "is_stale": "true if there is no score for the current content, model and preprocessing, and this is an older one",
    "is_retry_requested": "true if a retry was requested after this failure (`kvq-batch failures retry`)",
    "first_run_id": "run that first saw the video in this catalog",
    "last_run_id": "newest run of this catalog",
    "slot": "time slot of the clip (two frames each), from 0",
    "slot_start_s": "time of the first frame of the time slot in the video, seconds",
    "cell_row": "row of the cell, from the top, from 0",
    "cell_col": "column of the cell, from the left, from 0",
    "texture": "quality of the cell",
    "saliency": "weight of the cell; the mean over a time slot is 1",
    "weighted": "texture * saliency; the mean over all cells of a video is raw_score",
    "x0": "left edge of the cell, as a share of the width of the frame",
    "y0": "upper edge of the cell, as a share of the height of the frame",
    "x1": "right edge of the cell, as a share of the width of the frame",
    "y1": "lower edge of the cell, as a share of the height of the frame",
    "region": "name of the region in the job",
    "from_s": "start of the time slot in the video, seconds",
    "until_s": "end of the time slot in the video, seconds",
    "cause": "blur, noise, banding, ... (docs/causes.md)",
    "severity": "0 to 1: 0.5 is clearly visible; its scale is fixed and the same for all videos",
}


_TABLE_OF: Mapping[str, str] = {
    "scores_latest": "scores",
    "features_latest": "features",
    "unresolved_failures": "failures",
    "timeline": "",
    "regions": "",
    "cells": "",
    "named_regions": "",
    "causes": "",
}
"""Tables whose descriptions the columns of a view share, where its name differs."""


@dataclass(frozen=True, slots=True)
class View:
    """Name, description and columns of a view; the type of a column is DuckDB's name for it."""

    name: str
    description: str
    columns: tuple[Column, ...]


def create_views(connection: duckdb.DuckDBPyConnection) -> None:
    """Create all views. The raw tables must be registered before."""
    for name, query in VIEWS.items():
        connection.execute(f'CREATE VIEW "{name}" AS {query}')


def describe_views() -> dict[str, View]:
    """Return {name: view} of all views with their columns. Needs no tables."""
    with duckdb.connect() as connection:
        for schema in TABLES:
            connection.register(f"{RAW_PREFIX}{schema.name}", schema.arrow().empty_table())
        create_views(connection)
        return {name: View(name, _DESCRIPTIONS[name], _columns(connection, name)) for name in VIEWS}


def _columns(connection: duckdb.DuckDBPyConnection, view: str) -> tuple[Column, ...]:
    table = _TABLE_OF.get(view, view)
    own = {c.name: c.comment for schema in TABLES if schema.name == table for c in schema.columns}
    known = {column.name: column.comment for schema in TABLES for column in schema.columns}
    rows = connection.execute(f'DESCRIBE "{view}"').fetchall()
    return tuple(
        Column(name, kind.lower(), own.get(name) or _COMPUTED.get(name) or known[name]) for name, kind, *_ in rows
    )
