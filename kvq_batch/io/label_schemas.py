"""The columns of the tables that training sets come from: labels that were made, and opinions that were imported.

Beside the tables of scores (`schemas`), in the same style. This module declares; it opens no table.
"""

import pyarrow as pa

from kvq_batch.io.columns import COMMIT_SEQ, FLAG, INT, REAL, RUN_ID, TEXT, TIME, Column, TableSchema

_REALS, _FLOATS = pa.list_(REAL), pa.list_(pa.float32())

LABELS = TableSchema(
    "labels",
    (
        Column("label_id", TEXT, "names source, bytes, segment, recipe and way of making: the same label, the same id"),
        Column("video_id", TEXT, "source file or procedural scene, unique in its job"),
        Column("source_id", TEXT, "the scene that videos share; a training set keeps it in one split"),
        Column("group_id", TEXT, "source and rate: source_id, a slash, and the codec step of the whole frame"),
        Column("uri", TEXT, "where the source stood, without credentials"),
        Column("content_id", TEXT, "names the bytes of the source that were read"),
        RUN_ID,
        COMMIT_SEQ,
        Column("segment", TEXT, "stretch, framing and size, as JSON"),
        Column("recipe", TEXT, "steps, patches and seed, as JSON"),
        Column("name", TEXT, "the recipe for people: h264-35, none~blur-3"),
        Column("kind", TEXT, "clean, single, chain, region or mix"),
        Column("vmaf", REAL, "mean over frames against the source, 0 to 100; no opinion of people"),
        Column("psnr_db", REAL, "mean over frames, luma, at most 60"),
        Column("ssim", REAL, "mean over frames, luma"),
        Column("vmaf_slots", _FLOATS, "VMAF of each slot, two frames each"),
        Column("psnr_db_slots", _FLOATS, "PSNR of each slot"),
        Column("ssim_slots", _FLOATS, "SSIM of each slot"),
        Column("num_slots", INT, "slots of the cells"),
        Column("num_rows", INT, "rows of cells"),
        Column("num_cols", INT, "columns of cells"),
        Column("cells", _FLOATS, "[slot, row, column] flat: VMAF in the slot of the version that stands in the cell"),
        Column("num_frames", INT, "frames of the version"),
        Column("height_px", INT, "height of the version"),
        Column("width_px", INT, "width of the version"),
        Column("frame_rate", REAL, "frames per second"),
        Column("version_uri", TEXT, "where the version is kept, lossless; null where it is not"),
        Column("ffmpeg", TEXT, "version of the ffmpeg that made it"),
        Column("libvmaf", TEXT, "version of the library that measured it"),
        Column("vmaf_model", TEXT, "model of VMAF"),
        Column("make_s", REAL, "seconds spent to make and measure it, what it shares with others left to the first"),
        Column("attempt", INT, "which try succeeded, from 1"),
        Column("labelled_at", TIME, "when it was made"),
    ),
    sort_by=("source_id", "video_id", "label_id"),
)

OPINIONS = TableSchema(
    "opinions",
    (
        Column("dataset", TEXT, "name under which the opinions were imported"),
        Column("video_id", TEXT, "the video that was judged, as the catalog names it"),
        Column("source_id", TEXT, "the scene that videos share; a training set keeps it in one split"),
        RUN_ID,
        COMMIT_SEQ,
        Column("uri", TEXT, "where the video stands, null where the file did not say"),
        Column("opinion", REAL, "mean opinion, in its own scale"),
        Column("scale_low", REAL, "the worst opinion that can be given"),
        Column("scale_high", REAL, "the best one; below scale_low where less is better"),
        Column("mos", REAL, "the opinion on 0 (worst) to 100 (best)"),
        Column("spread", REAL, "standard deviation over people, in its own scale; null where unknown"),
        Column("num_opinions", INT, "people who judged it; null where unknown"),
        Column("is_withdrawn", FLAG, "true where this row takes an earlier opinion back"),
        Column("imported_at", TIME, "when it was imported"),
    ),
    sort_by=("dataset", "video_id"),
)
