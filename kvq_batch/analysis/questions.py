"""Ready-made questions about the quality of a catalog: their SQL over the views, for `kvq-batch analyze`.

Each question is one SELECT over current scores, joined with the columns of the catalog. `build` fills in a condition
and a grouping column; the text can be run with `kvq-batch query` as it is. `find_worst` adds the worst moment, its
region and its cause.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.sandbox import check_expression
from kvq_batch.tables.session import Session
from kvq_batch.tables.views import RAW_PREFIX

_QUALITY = "coalesce(mos, raw_score)"

_CLEAR = 0.25
"""Least severity of a cause to be named: over a video, or the mean over a zone."""

_ZONES = """
CASE {row} WHEN 0 THEN CASE {col} WHEN 0 THEN 'upper left' WHEN 1 THEN 'top' ELSE 'upper right' END
    WHEN 1 THEN CASE {col} WHEN 0 THEN 'left' WHEN 1 THEN 'centre' ELSE 'right' END
    ELSE CASE {col} WHEN 0 THEN 'lower left' WHEN 1 THEN 'bottom' ELSE 'lower right' END END
"""


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `sql` has the fields {selected}, {by} (a column with a comma, or empty) and {limit}."""

    name: str
    summary: str
    sql: str


# A model of causes has no score.
_WORST = f"""
SELECT model_name, {{by}} video_id, mos, raw_score, duration_s, model_id, model_origin, commit_seq
FROM ({{selected}}) s WHERE raw_score IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY model_name ORDER BY {_QUALITY}, video_id) <= {{limit}}
ORDER BY model_name, {_QUALITY}, video_id
"""

_DISTRIBUTION = f"""
SELECT model_name, {{by}} count(*) AS videos, CASE WHEN count(mos) > 0 THEN 'mos' ELSE 'raw_score' END AS scale,
    avg({_QUALITY}) AS mean, min({_QUALITY}) AS lowest, quantile_cont({_QUALITY}, 0.05) AS p5,
    quantile_cont({_QUALITY}, 0.25) AS p25, median({_QUALITY}) AS median, quantile_cont({_QUALITY}, 0.75) AS p75,
    quantile_cont({_QUALITY}, 0.95) AS p95, max({_QUALITY}) AS highest
FROM ({{selected}}) s WHERE raw_score IS NOT NULL GROUP BY ALL ORDER BY ALL
"""

# Means and shares of the sample are known to half a percent of their spread.
_SAMPLED = """
-- A sample of more than 50,000 videos of a model. Remove the condition on `place` to read all maps.
WITH chosen AS (
    SELECT s.model_name, {by} s.video_id, s.model_id, s.commit_seq,
        hash(s.video_id)::DOUBLE / 18446744073709551615 AS place
    FROM ({selected}) s
),
counted AS (SELECT model_name, count(*) AS num FROM chosen GROUP BY ALL),
sampled AS (
    SELECT c.* EXCLUDE (place) FROM chosen c JOIN counted k ON k.model_name = c.model_name
    WHERE c.place <= 50000 / k.num
),
"""

_BY_CELL = f"""
{_SAMPLED.strip()}
clips AS (
    SELECT s.* EXCLUDE (model_id, commit_seq), m.num_rows, m.num_cols, m.texture_scale, m.texture_offset,
        m.saliency_scale, m.saliency_offset, {{texture}} AS texture, {{saliency}} AS saliency, {{weight}} AS weight
    FROM sampled s
    JOIN maps m ON m.video_id = s.video_id AND m.model_id = s.model_id AND m.commit_seq = s.commit_seq
),
cells AS (
    SELECT * EXCLUDE (texture, saliency), unnest(texture) AS texture, unnest(saliency) AS saliency,
        unnest(range(greatest(len(texture), len(saliency)))) AS cell
    FROM clips
)
SELECT * EXCLUDE (video_id, num_rows, num_cols, texture_scale, texture_offset, saliency_scale, saliency_offset, weight,
    texture, saliency, cell),
    (cell // num_cols % num_rows)::INTEGER AS cell_row, (cell % num_cols)::INTEGER AS cell_col,
    sum(weight * (texture * texture_scale + texture_offset)) / sum(weight) FILTER (texture IS NOT NULL) AS texture,
    sum(weight * (saliency * saliency_scale + saliency_offset) ** 2) / sum(weight) FILTER (saliency IS NOT NULL)
        AS saliency,
    count(DISTINCT video_id) AS videos
FROM cells GROUP BY ALL ORDER BY ALL
"""

_OVER_TIME = """
WITH timed AS (
    SELECT s.model_name, {by} s.video_id, t.mos, t.raw_score,
        least(9, floor(10 * (t.from_s + t.until_s) / 2 / s.duration_s)) AS tenth
    FROM ({selected}) s JOIN timeline t ON t.video_id = s.video_id AND t.model_id = s.model_id
    WHERE s.duration_s > 0 AND t.raw_score IS NOT NULL
)
SELECT * EXCLUDE (video_id, mos, raw_score, tenth), tenth / 10 AS from_share, (tenth + 1) / 10 AS until_share,
    avg(mos) AS mos, avg(raw_score) AS raw_score, count(DISTINCT video_id) AS videos
FROM timed GROUP BY ALL ORDER BY ALL
"""

# The zone of a video with the lowest texture is where it loses most.
_WHERE_LOST = f"""
{_SAMPLED.strip()}
clips AS (
    SELECT s.* EXCLUDE (model_id, commit_seq), m.num_rows, m.num_cols, m.texture_scale, m.texture_offset,
        m.saliency_scale, m.saliency_offset, {{texture}} AS texture, {{saliency}} AS saliency
    FROM sampled s
    JOIN maps m ON m.video_id = s.video_id AND m.model_id = s.model_id AND m.commit_seq = s.commit_seq
    WHERE {{texture}} IS NOT NULL
),
cells AS (
    SELECT * EXCLUDE (texture, saliency), unnest(texture) AS texture, unnest(saliency) AS saliency,
        unnest(range(len(texture))) % (num_rows * num_cols) AS cell
    FROM clips
),
zones AS (
    SELECT * EXCLUDE (num_rows, num_cols, texture_scale, texture_offset, saliency_scale, saliency_offset, texture,
            saliency, cell), cell // num_cols * 3 // num_rows AS zone_row, cell % num_cols * 3 // num_cols AS zone_col,
        avg(texture * texture_scale + texture_offset) AS texture,
        avg((saliency * saliency_scale + saliency_offset) ** 2) AS saliency
    FROM cells GROUP BY ALL
),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY model_name, video_id ORDER BY texture, zone_row, zone_col) = 1 AS is_worst
    FROM zones
)
SELECT * EXCLUDE (video_id, zone_row, zone_col, texture, saliency, is_worst),
    {_ZONES.format(row="zone_row", col="zone_col").strip()} AS zone,
    avg(texture) AS texture, avg(saliency) AS saliency, count(*) FILTER (is_worst) AS videos_worst_here,
    count(*) FILTER (is_worst) / count(*) AS share_worst_here
FROM ranked GROUP BY ALL ORDER BY model_name, videos_worst_here DESC, zone
"""

_BY_RUN = f"""
SELECT r.run_id, r.state, s.model_name, count(s.video_id) AS scored, median({_QUALITY}) AS median,
    quantile_cont({_QUALITY}, 0.05) AS p5, r.num_failed AS failed, r.seconds
FROM runs r LEFT JOIN (
    SELECT a.* FROM scores a SEMI JOIN ({{selected}}) b ON b.video_id = a.video_id AND b.model_name = a.model_name
) s ON s.run_id = r.run_id
GROUP BY ALL ORDER BY r.run_id DESC, s.model_name LIMIT {{limit}}
"""

_COVERAGE = """
WITH asked AS (SELECT DISTINCT catalog, unnest(models).name AS model_name FROM runs),
wanted AS (SELECT v.*, a.model_name FROM ({videos}) v JOIN asked a ON a.catalog = v.catalog)
SELECT s.model_name, {by} count(*) AS videos, count(r.video_id) FILTER (NOT r.is_stale) AS current,
    count(r.video_id) FILTER (r.is_stale) AS stale,
    count(f.video_id) FILTER (f.permanent AND r.video_id IS NULL) AS failed_permanently,
    count(f.video_id) FILTER (NOT f.permanent AND r.video_id IS NULL) AS failed_for_now,
    count(*) FILTER (r.video_id IS NULL AND f.video_id IS NULL) AS missing,
    count(r.video_id) FILTER (NOT r.is_stale) / count(*) AS share_current
FROM wanted s
LEFT JOIN scores_latest r ON r.video_id = s.video_id AND r.model_name = s.model_name
LEFT JOIN unresolved_failures f ON f.video_id = s.video_id AND f.model_name = s.model_name
GROUP BY ALL ORDER BY ALL
"""

_COST = """
SELECT model_name, {by} count(*) AS videos, sum(duration_s) / 3600 AS video_hours, avg(fetch_s) AS fetch_s_per_video,
    avg(decode_s) AS decode_s_per_video, avg(score_s) AS score_s_per_video,
    sum(decode_s + score_s) / nullif(sum(duration_s), 0) AS core_s_per_video_s
FROM ({selected}) s GROUP BY ALL ORDER BY ALL
"""

# The mean severity over a zone: cells that the view leaves out have severity 0. A zone of 14 rows has 4 or 5 of them.
_ZONES_OF_CAUSES = f"""
SELECT video_id, model_id, cause, clip_index, slot, from_s, until_s,
    CASE WHEN zone_row IS NULL THEN 'whole frame' ELSE {_ZONES.format(row="zone_row", col="zone_col").strip()}
    END AS zone,
    CASE WHEN zone_row IS NULL THEN max(severity) ELSE sum(severity) / (
        (((zone_row + 1) * max(num_rows) + 2) // 3 - (zone_row * max(num_rows) + 2) // 3)
        * (((zone_col + 1) * max(num_cols) + 2) // 3 - (zone_col * max(num_cols) + 2) // 3)
    ) END AS severity
FROM (
    SELECT *, cell_row * 3 // num_rows AS zone_row, cell_col * 3 // num_cols AS zone_col FROM causes
    WHERE video_id IN ({{videos}})
) GROUP BY video_id, model_id, cause, clip_index, slot, from_s, until_s, zone_row, zone_col
"""

# A cause is named if it is clear over the whole video, or strong in a zone. Blur and noise in a zone only are often an
# area out of focus, or fine texture.
_MOST_DEGRADED = """
SELECT {by} s.video_id, s.model_id, s.outputs, list_max(map_values(s.outputs)) AS most
FROM ({selected}) s WHERE s.model_name = 'causes'
QUALIFY row_number() OVER (ORDER BY most DESC, s.video_id) <= {limit}
"""

_OUTPUTS_OF_CAUSES = """
SELECT video_id, outputs FROM scores_latest WHERE model_name = 'causes' AND NOT is_stale AND video_id IN ({videos})
"""

_CHOSEN = "SELECT video_id FROM chosen"

_WHY = f"""
WITH chosen AS ({_MOST_DEGRADED.strip()}),
zones AS ({_ZONES_OF_CAUSES.format(videos=_CHOSEN).strip()}),
peaks AS (
    SELECT * FROM zones QUALIFY 1 = row_number() OVER (
        PARTITION BY video_id, model_id, cause ORDER BY severity DESC, clip_index, slot, zone
    )
)
SELECT s.* EXCLUDE (model_id, outputs, most), p.cause, coalesce(s.outputs[p.cause], 0) AS severity,
    p.from_s AS worst_at_s, p.zone AS worst_region, p.severity AS worst_severity
FROM chosen s JOIN peaks p ON p.video_id = s.video_id AND p.model_id = s.model_id
WHERE s.outputs[p.cause] >= {_CLEAR} OR (p.severity >= 0.5 AND p.cause NOT IN ('blur', 'noise'))
QUALIFY row_number() OVER (PARTITION BY s.video_id ORDER BY s.outputs[p.cause] DESC, p.severity DESC, p.cause) <= 3
ORDER BY s.most DESC, s.video_id, s.outputs[p.cause] DESC, p.severity DESC, p.cause
"""

QUESTIONS: Mapping[str, Question] = {
    question.name: question
    for question in (
        Question("worst", "the worst videos, with their worst moment, region and cause", _WORST),
        Question("distribution", "how many videos have which quality", _DISTRIBUTION),
        Question("by-cell", "mean maps over all videos, cell by cell", _BY_CELL),
        Question("over-time", "quality from the start to the end of a video, in tenths", _OVER_TIME),
        Question("where-lost", "in which ninth of the frame videos are at their worst", _WHERE_LOST),
        Question("why", "the main causes of bad quality of the most degraded videos, with moment and region", _WHY),
        Question("by-run", "what each run scored, newest first", _BY_RUN),
        Question("coverage", "how many videos have a current score, and why others do not", _COVERAGE),
        Question("cost", "time per video of each stage", _COST),
    )
}


_HISTOGRAM = f"""
WITH valued AS (
    SELECT model_name, {_QUALITY} AS quality, CASE WHEN mos IS NULL THEN 'raw_score' ELSE 'mos' END AS scale
    FROM ({{selected}}) WHERE raw_score IS NOT NULL
),
spans AS (
    SELECT model_name, min(quality) AS lowest, greatest(max(quality) - min(quality), 1e-9) / {{bins}} AS width,
        min(scale) AS scale
    FROM valued GROUP BY ALL
)
SELECT s.model_name, s.scale, s.lowest + bin * s.width AS low, s.lowest + (bin + 1) * s.width AS high,
    count(*) AS videos
FROM valued v JOIN spans s ON s.model_name = v.model_name,
    LATERAL (SELECT least({{bins}} - 1, floor((v.quality - s.lowest) / s.width)) AS bin)
GROUP BY ALL ORDER BY s.model_name, low
"""


def build(session: Session, name: str, where: str | None = None, by: str | None = None, limit: int = 10) -> str:
    """Return the SQL of the question `name`.

    `where` is a condition over the columns of `scores_latest` and the catalog; `by` one of these columns, to group by.

    Raises:
        SpecError: an unknown column, or a condition that is not one expression.
    """
    question = QUESTIONS[name]
    own, known = _columns(session, "catalog"), selected_columns(session)
    videos = "SELECT * FROM catalog"
    if where:
        videos = f"SELECT * FROM catalog WHERE ({check_expression(where, '--where')})"
    if name == "coverage":
        known = own
    if by is not None and name == "by-run":
        raise SpecError("by-run groups by run already: leave --by out.")
    if by is not None and by not in known:
        raise SpecError(f"--by: there is no column {by!r}. Columns: {', '.join(known)}.")
    group = "" if by is None else f"s.{quote_identifier(by)},"
    selected = select_current(session, where)
    maps = _map_columns(session) if name in ("by-cell", "where-lost") else {}
    return question.sql.format(selected=selected, videos=videos, by=group, limit=int(limit), **maps).strip()


_HAS_OLD_MAPS = f"""
SELECT EXISTS (
    FROM {RAW_PREFIX}maps WHERE (texture_scale IS NOT NULL AND texture_mean IS NULL)
        OR (saliency_scale IS NOT NULL AND saliency_mean IS NULL)
) AS has_old
"""


def _map_columns(session: Session) -> dict[str, str]:
    """Return the columns for the maps of a clip, and for the weight of each of their values.

    Releases before `texture_mean` stored whole maps only, with a value for each time slot. Whole maps are read only if
    there are such rows: they are as much larger as a clip has time slots.
    """
    found = session.sql(_HAS_OLD_MAPS)
    if not found["has_old"][0].as_py():
        return {"texture": "m.texture_mean", "saliency": "m.saliency_mean", "weight": "1"}
    return {
        "texture": "coalesce(m.texture_mean, m.texture)",
        "saliency": "coalesce(m.saliency_mean, m.saliency)",
        "weight": "CASE WHEN m.texture_mean IS NULL AND m.saliency_mean IS NULL THEN 1 / m.num_slots ELSE 1 END",
    }


def selected_columns(session: Session) -> list[str]:
    """Return the columns of `select_current`: those of `scores_latest`, then those that the catalog adds."""
    scores = _columns(session, "scores_latest")
    return [*scores, *(column for column in _columns(session, "catalog") if column not in scores)]


def select_current(session: Session, where: str | None = None) -> str:
    """Return SQL for current scores with the columns of their catalog, where `where` holds.

    Raises:
        SpecError: the condition is not one expression.
    """
    scores = _columns(session, "scores_latest")
    added = selected_columns(session)[len(scores) :]
    columns = ", ".join(["s.*", *(f"v.{quote_identifier(column)}" for column in added)])
    selected = f"SELECT {columns} FROM scores_latest s JOIN catalog v ON v.video_id = s.video_id WHERE NOT s.is_stale"
    if where:
        selected = f"SELECT * FROM ({selected}) WHERE ({check_expression(where, '--where')})"
    return selected


def histogram(session: Session, where: str | None = None, num_bins: int = 40) -> pa.Table:
    """Return the histogram of current scores: model_name, scale (mos or raw_score), low, high, videos.

    Bins of a model have equal width and span its scores; those without videos are left out.
    """
    return session.sql(_HISTOGRAM.format(selected=select_current(session, where), bins=int(num_bins)))


def ask(session: Session, name: str, where: str | None = None, by: str | None = None, limit: int = 10) -> pa.Table:
    """Return the answer to the question `name`; see `build`."""
    if name not in QUESTIONS:
        raise SpecError(f"There is no question {name!r}. Questions: {', '.join(QUESTIONS)}.")
    if name == "worst":
        return find_worst(session, where, by, limit)
    sql = build(session, name, where, by, limit)
    if name == "why":
        # With their ids as text, only the maps of these videos are read.
        chosen = session.sql(_MOST_DEGRADED.format(selected=select_current(session, where), by="", limit=int(limit)))
        sql = sql.replace(_CHOSEN, quote_literals(chosen["video_id"].to_pylist()))
    return session.sql(sql)


# Two queries: only the maps of the videos that were found are read.
_DETAILS = f"""
WITH keys (video_id, model_id, commit_seq) AS (VALUES {{keys}}),
timed AS (
    SELECT k.*, unnest(range(greatest(1, len(k.slot_scores)))) AS slot
    FROM clips k SEMI JOIN keys USING (video_id, model_id, commit_seq) WHERE k.video_id IN ({{videos}})
),
slots AS (
    SELECT video_id, model_id, commit_seq, clip_index, slot,
        CASE WHEN slot = 0 THEN start_s ELSE slot_start_s[slot + 1] END AS from_s
    FROM timed QUALIFY 1 = row_number() OVER (
        PARTITION BY video_id, model_id ORDER BY coalesce(slot_scores[slot + 1], raw_score), clip_index, slot
    )
),
cells AS (
    SELECT m.video_id, m.model_id, m.num_rows, m.num_cols, m.texture_scale, m.texture_offset,
        unnest(m.texture[t.slot * m.num_rows * m.num_cols + 1:(t.slot + 1) * m.num_rows * m.num_cols]) AS level,
        unnest(range(m.num_rows * m.num_cols)) AS cell
    FROM maps m JOIN slots t ON t.video_id = m.video_id AND t.model_id = m.model_id AND t.commit_seq = m.commit_seq
        AND t.clip_index = m.clip_index
    WHERE m.video_id IN ({{videos}}) AND m.texture IS NOT NULL
),
zones AS (
    SELECT video_id, model_id, cell // num_cols * 3 // num_rows AS zone_row,
        cell % num_cols * 3 // num_cols AS zone_col, avg(level * texture_scale + texture_offset) AS texture
    FROM cells GROUP BY ALL
),
worst AS (
    FROM zones QUALIFY 1 = row_number() OVER (PARTITION BY video_id, model_id ORDER BY texture, zone_row, zone_col)
)
SELECT t.video_id, t.model_id, t.from_s AS worst_at_s,
    {_ZONES.format(row="z.zone_row", col="z.zone_col").strip()} AS worst_region, z.texture IS NOT NULL AS has_maps
FROM slots t LEFT JOIN worst z ON z.video_id = t.video_id AND z.model_id = t.model_id
"""


def find_causes(session: Session, moments: Sequence[tuple[str, float | None, str | None]]) -> list[str | None]:
    """Return the cause with the highest severity at each moment: (video id, seconds, zone).

    Without a zone that is the one with the highest severity over the video. None where no cause is clear, or `causes`
    was not measured.
    """
    videos = quote_literals(video for video, _, _ in moments)
    zones: dict[str, list[dict[str, Any]]] = {}
    if any(zone is not None for _, _, zone in moments):
        for row in session.sql(_ZONES_OF_CAUSES.format(videos=videos)).to_pylist():
            zones.setdefault(row["video_id"], []).append(row)
    whole: dict[str, dict[str, float]] = {}
    if any(zone is None for _, _, zone in moments):
        found = session.sql(_OUTPUTS_OF_CAUSES.format(videos=videos)).to_pylist(maps_as_pydicts="strict")
        whole = {row["video_id"]: row["outputs"] for row in found}
    names: list[str | None] = []
    for video, at_s, zone in moments:
        severities = dict(whole.get(video, {})) if zone is None else {}
        for row in zones.get(video, []) if zone is not None and at_s is not None else []:
            if row["from_s"] <= at_s < row["until_s"] and row["zone"] in (zone, "whole frame"):
                severities[row["cause"]] = row["severity"]
        cause = max(severities, key=lambda name: (severities[name], name), default=None)
        names.append(cause if cause is not None and severities[cause] >= _CLEAR else None)
    return names


def find_worst(session: Session, where: str | None = None, by: str | None = None, limit: int = 10) -> pa.Table:
    """Return the worst videos of each model, the worst first.

    `worst_at_s` is the start of the time slot with the lowest score, `worst_region` the ninth of the frame with the
    lowest texture in it; null for a model without maps. `worst_cause` is the cause there; null if none is clear, or the
    model `causes` did not measure the video. Raises: SpecError as `build`.
    """
    found = session.sql(build(session, "worst", where, by, limit))
    details: dict[tuple[str, str], Mapping[str, Any]] = {}
    if found.num_rows:
        videos = quote_literals(found["video_id"].to_pylist())
        columns = (found[name].to_pylist() for name in ("video_id", "model_id", "commit_seq"))
        keys = ", ".join(
            f"({quote_literal(video)}, {quote_literal(model)}, {seq})"
            for video, model, seq in zip(*columns, strict=True)
        )
        rows = session.sql(_DETAILS.format(videos=videos, keys=keys)).to_pylist()
        details = {(row["video_id"], row["model_id"]): row for row in rows}
    scored = list(zip(found["video_id"].to_pylist(), found["model_id"].to_pylist(), strict=True))
    place = found.column_names.index("raw_score") + 1
    moments = [details.get(key, {}).get("worst_at_s") for key in scored]
    regions = [row["worst_region"] if (row := details.get(key)) and row["has_maps"] else None for key in scored]
    found = found.add_column(place, "worst_at_s", pa.array(moments, pa.float64()))
    found = found.add_column(place + 1, "worst_region", pa.array(regions, pa.string()))
    named = find_causes(session, [(video, *rest) for (video, _), *rest in zip(scored, moments, regions, strict=True)])
    found = found.add_column(place + 2, "worst_cause", pa.array(named, pa.string()))
    return found.drop_columns(["commit_seq"])


def default_calibrations(session: Session) -> dict[str, str]:
    """Return {model_id: name of the calibration that `mos` uses} of the models that have one."""
    return {row["model_id"]: row["calibration"] for row in list_calibrations(session)}


def list_calibrations(session: Session) -> list[dict[str, Any]]:
    """Return model_id, model_name, calibration and b1 to b4 of the calibrations that `mos` uses."""
    columns = "model_id, model_name, calibration, b1, b2, b3, b4"
    rows: list[dict[str, Any]] = session.sql(f"SELECT {columns} FROM models WHERE is_default").to_pylist()
    return rows


def _columns(session: Session, view: str) -> list[str]:
    return list(session.sql(f"SELECT * FROM {view} LIMIT 0").column_names)


def quote_identifier(name: str) -> str:
    """Return `name` as a quoted identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Return `text` as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def quote_literals(texts: Iterable[str]) -> str:
    """Return texts as literals of SQL for IN (...), each once; NULL if there are none."""
    return ", ".join(sorted({quote_literal(text) for text in texts})) or "NULL"
