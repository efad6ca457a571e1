"""TypedDicts of the rows that modules pass to `make_rows`, one per table, without `run_id` and `commit_seq`.

tests/tables/test_row_types.py checks names and types against the table schemas. Columns of a sort order or a partition
are never null. A column that is not required may be missing, which means null.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NotRequired, TypedDict, TypeVar

V = TypeVar("V")
MapItems = Sequence[tuple[str, V]]
"""Items of a map column."""


class IdentityRow(TypedDict):
    """Columns that identify a result, together with the clip index."""

    video_id: str
    content_id: str
    model_id: str
    fingerprint: str


class CatalogRow(TypedDict):
    video_id: str
    catalog: str
    uri: str
    content_id: str
    size_bytes: int | None
    start_s: float | None
    end_s: float | None
    in_catalog: bool


class VideoFactColumns(TypedDict):
    """Columns of `scores` with the facts of the video (`domain.video.VideoFacts`)."""

    width_px: int
    height_px: int
    rotation_deg: int
    is_mirrored: bool
    sample_aspect_ratio: float
    frame_rate: float
    is_variable_frame_rate: bool
    duration_s: float
    num_frames: int
    codec: str
    pixel_format: str
    bit_depth: int
    field_order: str
    color_primaries: str
    color_transfer: str
    color_matrix: str
    color_range: str


class ScoreRow(IdentityRow, VideoFactColumns):
    uri: str
    model_name: str
    model_origin: str
    raw_score: float | None
    score_spread: float
    num_clips: int
    outputs: MapItems[float]
    size_bytes: int
    decoder: str
    fetch_s: float
    fetch_attempts: int
    decode_s: float
    score_s: float
    score_cores: float
    attempt: int
    scored_at: datetime


class ClipRow(IdentityRow):
    clip_index: int
    start_s: float
    end_s: float
    frame_indices: Sequence[int]
    slot_start_s: Sequence[float]
    raw_score: float | None
    slot_scores: Sequence[float]
    features: Sequence[float] | None


class MapColumns(TypedDict):
    """Columns of `maps` with the quantised maps of one clip."""

    num_slots: int
    num_rows: int
    num_cols: int
    texture: Sequence[int]
    texture_offset: float
    texture_scale: float
    saliency: Sequence[int]
    saliency_offset: float
    saliency_scale: float
    texture_mean: Sequence[int]
    saliency_mean: Sequence[int]
    causes: NotRequired[MapItems[Sequence[int]] | None]


class MapRow(IdentityRow, MapColumns):
    clip_index: int


class FeatureRow(IdentityRow):
    model_name: str
    num_features: int
    num_undefined: int
    features: Sequence[float]


class FailureRow(IdentityRow):
    uri: str
    model_name: str
    attempt: int
    stage: str
    error: str
    message: str
    exit_signal: NotRequired[str | None]
    final: bool
    permanent: bool
    failed_at: datetime


class ModelRow(TypedDict):
    model_id: str
    model_name: str
    version: str
    origin: str
    digest: str
    summary: str
    training_data: str
    licence: str
    num_parameters: NotRequired[int | None]
    calibration: NotRequired[str | None]
    b1: NotRequired[float | None]
    b2: NotRequired[float | None]
    b3: NotRequired[float | None]
    b4: NotRequired[float | None]
    is_default: bool
    added_at: datetime


class RunModel(TypedDict):
    """An item of `RunRow.models`."""

    name: str
    model_id: str
    fingerprint: str


class RunRow(TypedDict):
    job: str
    job_spec: str
    catalog: str
    catalog_root: str
    state: str
    models: Sequence[RunModel]
    num_videos: int
    num_planned: int
    planned_by_reason: MapItems[int]
    num_scored: int
    num_failed: int
    num_remaining: int
    num_removed: NotRequired[int | None]
    max_repeated: NotRequired[int | None]
    started_at: datetime
    finished_at: datetime | None
    seconds: float | None
    startup_s: NotRequired[float | None]
    decode_work_s: NotRequired[float | None]
    score_work_s: NotRequired[MapItems[float] | None]
    num_scored_by_model: NotRequired[MapItems[int] | None]
    core_hours: NotRequired[float | None]
    gpu_hours: NotRequired[float | None]
    cost: NotRequired[float | None]
    currency: NotRequired[str | None]
    expected_s: NotRequired[float | None]
    expected_core_hours: NotRequired[float | None]
    expected_gpu_hours: NotRequired[float | None]
    expected_cost: NotRequired[float | None]
    versions: MapItems[str]
    message: str


class StoredRunRow(RunRow):
    """A row of `runs` as it is read from the table."""

    run_id: str
    commit_seq: int


class LabelRow(TypedDict):
    label_id: str
    video_id: str
    scene_id: str
    group_id: str
    uri: str
    content_id: str
    segment: str
    recipe: str
    name: str
    kind: str
    vmaf: float
    vmaf_v1: float | None
    psnr_db: float
    ssim: float
    vmaf_slots: Sequence[float]
    vmaf_v1_slots: Sequence[float] | None
    psnr_db_slots: Sequence[float]
    ssim_slots: Sequence[float]
    num_slots: int
    num_rows: int
    num_cols: int
    cells: Sequence[float]
    cells_v1: Sequence[float] | None
    num_frames: int
    height_px: int
    width_px: int
    frame_rate: float
    rendition_uri: str | None
    ffmpeg: str
    libvmaf: str
    vmaf_model: str
    vmaf_v1_model: str | None
    make_s: float
    attempt: int
    labelled_at: datetime


class OpinionRow(TypedDict):
    dataset: str
    video_id: str
    scene_id: str
    uri: str | None
    opinion: float
    scale_low: float
    scale_high: float
    mos: float
    spread: float | None
    num_opinions: int | None
    is_withdrawn: bool
    imported_at: datetime


ROW_TYPES: Mapping[str, type] = {
    "catalog": CatalogRow,
    "scores": ScoreRow,
    "clips": ClipRow,
    "maps": MapRow,
    "features": FeatureRow,
    "failures": FailureRow,
    "models": ModelRow,
    "runs": RunRow,
    "labels": LabelRow,
    "opinions": OpinionRow,
}
"""{table: row type}"""
