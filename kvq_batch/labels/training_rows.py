"""Query the rows of a training set: labels of a label job, imported opinions, or scores of a teacher model.

All three have the same columns, except the label: `raw_score` of a teacher, `mos` of the others. The column names are
those of a catalog and of a label list, so a set can be read as either.
"""

from typing import Literal

import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.tables.sandbox import check_expression
from kvq_batch.tables.session import Session

Target = Literal["labels", "opinions", "teacher"]

COLUMNS = (
    "video_id", "uri", "mos", "raw_score", "scene_id", "group_id", "target", "cells", "num_slots", "num_rows",
    "num_cols", "num_frames", "height_px", "width_px", "frame_rate",
)  # fmt: skip
"""First columns of a set, as far as it has them. `target` is the kind of the label, which `label_column` names.

`cells` holds the labels of the texture map's cells, flattened.
"""

_LABELS = """
SELECT *, parse_filename(rendition_uri) AS file, 'vmaf' AS target FROM labels
"""

_SELECT_LABELS = """
SELECT file AS video_id, rendition_uri AS uri, vmaf AS mos, scene_id, group_id, target, cells, num_slots, num_rows,
    num_cols, num_frames, height_px, width_px, frame_rate, content_id AS reference_content_id,
    * EXCLUDE (file, rendition_uri, content_id, vmaf, scene_id, group_id,
    target, cells, num_slots, num_rows, num_cols, num_frames, height_px, width_px, frame_rate, video_id, uri,
    vmaf_slots, psnr_db_slots, ssim_slots)
FROM ({rows}) WHERE {where} ORDER BY video_id
"""

_OPINIONS = """
SELECT o.video_id, coalesce(o.uri, c.uri) AS uri, o.mos, o.scene_id, o.scene_id AS group_id,
    'opinion' AS target, NULL::FLOAT[] AS cells, NULL::INTEGER AS num_slots, NULL::INTEGER AS num_rows,
    NULL::INTEGER AS num_cols, NULL::INTEGER AS num_frames, NULL::INTEGER AS height_px, NULL::INTEGER AS width_px,
    NULL::DOUBLE AS frame_rate, o.dataset, o.opinion, o.scale_low, o.scale_high, o.spread, o.num_opinions
FROM opinions o LEFT JOIN catalog c USING (video_id)
"""

# A map belongs to one clip, so a video with several clips has no cells.
_TEACHER = """
SELECT s.video_id, s.uri, s.raw_score, {scene} AS scene_id, {scene} AS group_id,
    s.model_id AS target, [q * m.texture_scale + m.texture_offset FOR q IN m.texture]::FLOAT[] AS cells, m.num_slots,
    m.num_rows, m.num_cols, NULL::INTEGER AS num_frames, s.height_px, s.width_px, s.frame_rate, s.model_name,
    s.model_origin, s.content_id, s.mos AS calibrated_mos
FROM scores_latest s LEFT JOIN maps m
    ON m.video_id = s.video_id AND m.model_id = s.model_id AND m.commit_seq = s.commit_seq AND s.num_clips = 1
LEFT JOIN catalog c ON c.video_id = s.video_id
WHERE NOT s.is_stale
"""


def label_column(target: Target) -> str:
    """Return the column of the label: `mos`, or `raw_score` of a teacher, which has a scale of its own."""
    return "raw_score" if target == "teacher" else "mos"


def training_rows(
    session: Session, target: Target, where: str | None, model: str | None, split_sql: str | None = None
) -> pa.Table:
    """Return COLUMNS and further columns of every row that meets `where`, sorted by video.

    `split_sql` is an expression over these columns that becomes the column `split`.

    Raises:
        SpecError: DuckDB rejects the condition or the expression, or no row matches.
    """
    selected = "SELECT *" if split_sql is None else f"SELECT *, ({check_expression(split_sql, '--split-sql')}) AS split"
    condition = f"({check_expression(where, '--where')})" if where else "true"
    if target == "labels":
        rows = session.sql(f"{selected} FROM ({_SELECT_LABELS.format(rows=_LABELS, where=condition)})")
    elif target == "opinions":
        rows = session.sql(f"{selected} FROM ({_OPINIONS}) WHERE {condition} ORDER BY video_id")
    else:
        known = session.sql("SELECT * FROM catalog LIMIT 0").column_names
        # A catalog of renditions has the scene of each; without that column every video is its own scene.
        scene = "coalesce(c.scene_id::VARCHAR, s.video_id)" if "scene_id" in known else "s.video_id"
        asked = _TEACHER.format(scene=scene)
        if model is not None:
            condition += " AND model_name = '{}'".format(model.replace("'", "''"))
        rows = session.sql(f"{selected} FROM ({asked}) WHERE {condition} ORDER BY video_id")
        models = set(rows["target"].to_pylist())
        if len(models) > 1:
            raise SpecError(
                f"the tables hold scores of {len(models)} models ({', '.join(sorted(models))}); choose one with --model"
            )
    if rows.num_rows == 0:
        condition = "" if where is None else f" that meets {where!r}"
        raise SpecError(f"no row of {target}{condition} in these tables; make or import labels, or change the options")
    return rows
