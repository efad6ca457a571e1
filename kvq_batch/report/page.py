"""The HTML report: one file without network requests that anyone can open.

`collect` reads the tables and the frames into plain values, `render` writes them with Jinja2, which escapes every text.
A Content-Security-Policy forbids the page to load anything, and to run anything but its own script.
"""

import base64
import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from kvq_batch import __version__
from kvq_batch.analysis import overview
from kvq_batch.analysis.overview import Model, Row
from kvq_batch.analysis.video_maps import Moment, VideoMaps, load_videos
from kvq_batch.domain.errors import ItemError, SpecError
from kvq_batch.media.local_files import read_frames
from kvq_batch.report import canvas, charts
from kvq_batch.report.picture import local_copy
from kvq_batch.storage.options import StorageOptions
from kvq_batch.storage.redact import redact
from kvq_batch.tables.session import Session

_logger = logging.getLogger(__name__)

FRAME_BOX = (480, 300)
MAX_FRAME_BYTES = 2_700_000
"""For all frames of a report together. Base64 makes 3.6 MB of it, so that the file stays below 5 MB."""
MAX_ONE_FRAME_BYTES = 40_000
_QUALITIES = (80, 65, 50, 35)
_NUM_READERS = 4


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What a report shows: the model of its videos, a condition, segment columns (None: automatic), and how many."""

    model: str | None = None
    where: str | None = None
    by: tuple[str, ...] | None = None
    num_videos: int = 20


@dataclass(frozen=True, slots=True)
class Still:
    """One frame of a video: a WebP of `size` (width, height), or None with the reason why it cannot be shown."""

    moment: Moment
    name: str
    webp: bytes | None
    size: tuple[int, int]
    error: str = ""


@dataclass(frozen=True, slots=True)
class VideoCard:
    """One of the worst videos: its row (`overview.find_worst_videos`), its moments, and its worst and best frame."""

    row: Row
    video: VideoMaps
    stills: Sequence[Still]


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that a report shows. The rows are those of `analysis/overview.py`; no text is escaped yet."""

    tables: str
    made_at: datetime
    options: ReportOptions
    totals: Row
    run: Row | None
    models: Sequence[Model]
    model: Model | None
    distributions: Sequence[tuple[Model, Row]]
    coverage: Sequence[Row]
    failure_counts: Sequence[Row]
    failed_videos: Sequence[Row]
    runs: Sequence[Row]
    cost: Sequence[Row]
    segments: Sequence[tuple[str, Sequence[Row]]] = field(default=())
    cells: Sequence[Row] = field(default=())
    tenths: Sequence[Row] = field(default=())
    causes: Sequence[Row] = field(default=())
    changes: Row | None = None
    cards: Sequence[VideoCard] = field(default=())


def write_report(
    session: Session, storage: StorageOptions, tables: str, out: Path, options: ReportOptions | None = None
) -> int:
    """Write the report of these tables and return its size in bytes.

    Raises:
        SpecError: an unknown model or column, an invalid condition, or `out` cannot be written.
    """
    text = render(collect(session, storage, tables, options or ReportOptions()))
    data = text.encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(data)
    except OSError as error:
        raise SpecError(f"Cannot write {out}: {error.strerror}") from error
    return len(data)


def collect(session: Session, storage: StorageOptions, tables: str, options: ReportOptions) -> ReportData:
    """Return what a report of these tables shows. A frame that cannot be read is an error in its card, and logged.

    Raises:
        SpecError: an unknown model or column, or an invalid condition.
    """
    models = overview.list_scored_models(session, options.where)
    model = overview.select_model(models, options.model)
    run = overview.find_run(session)
    whole: dict[str, Any] = {
        "tables": redact(tables),
        "made_at": datetime.now(UTC),
        "options": options,
        "totals": overview.find_totals(session),
        "run": run,
        "models": models,
        "model": model,
        "distributions": [(m, overview.find_distribution(session, m, options.where)) for m in models],
        "coverage": overview.find_coverage(session),
        "failure_counts": overview.find_failure_counts(session),
        "failed_videos": overview.find_failed_videos(session),
        "runs": overview.find_runs(session),
        "cost": overview.find_cost(session, options.where),
    }
    if model is None:
        return ReportData(**whole)
    columns = options.by if options.by is not None else overview.find_segment_columns(session, options.where)
    return ReportData(
        **whole,
        segments=[(c, overview.find_segments(session, model, c, options.where)) for c in columns],
        cells=overview.find_cells(session, model, options.where),
        tenths=overview.find_tenths(session, model, options.where),
        causes=overview.count_causes(session, model, options.where),
        changes=None if run is None else overview.find_changes(session, model, run["run_id"], where=options.where),
        cards=_cards(session, storage, model, options),
    )


def _cards(session: Session, storage: StorageOptions, model: Model, options: ReportOptions) -> list[VideoCard]:
    rows = overview.find_worst_videos(session, model, options.where, options.num_videos) if options.num_videos else []
    videos = {v.video_id: v for v in load_videos(session, [row["video_id"] for row in rows], model.model_id)}
    shown = [row for row in rows if row["video_id"] in videos and videos[row["video_id"]].moments]
    limit = min(MAX_ONE_FRAME_BYTES, MAX_FRAME_BYTES // max(1, 2 * len(shown)))
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        stills = pool.map(lambda row: read_stills(videos[row["video_id"]], storage, limit), shown)
        cards = [VideoCard(row, videos[row["video_id"]], found) for row, found in zip(shown, stills, strict=True)]
    failed = sum(any(still.webp is None for still in card.stills) for card in cards)
    if failed:
        _logger.warning("%d of %d videos are shown without frames; their cards give the reason", failed, len(cards))
    return cards


def read_stills(video: VideoMaps, storage: StorageOptions, max_bytes: int = MAX_ONE_FRAME_BYTES) -> list[Still]:
    """Return the frames of the worst moment of a video and of the best one, if there are two.

    A video that cannot be fetched or decoded has stills without a frame, with the reason.
    """
    worst, best = video.worst(), video.best()
    moments = [(worst, "worst"), *[(best, "best")] * (worst is not best)]
    if worst is best:
        moments = [(worst, "")]
    try:
        with local_copy(video, storage) as path:
            frames = read_frames(path, [moment.frame_index or 0 for moment, _ in moments])
    except ItemError as error:
        reason = redact(str(error))
        return [Still(moment, name, None, (0, 0), reason) for moment, name in moments]
    encoded = [encode_frame(frame, video.sample_aspect_ratio, max_bytes) for frame in frames]
    return [Still(moment, name, *found) for (moment, name), found in zip(moments, encoded, strict=True)]


def encode_frame(
    frame: NDArray[np.uint8], sample_aspect_ratio: float | None, max_bytes: int
) -> tuple[bytes, tuple[int, int]]:
    """Return a frame, uint8 RGB [H, W, 3], as WebP of at most `max_bytes`, and its size (width, height).

    The quality is lowered first, then the size.
    """
    box = FRAME_BOX
    while True:
        size = canvas.shown_size(frame.shape[1], frame.shape[0], sample_aspect_ratio, box)
        picture = canvas.fit(frame, size)
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", quality=quality, method=4)
            if buffer.tell() <= max_bytes or max(box) <= 64:
                return buffer.getvalue(), size
        box = (box[0] * 3 // 4, box[1] * 3 // 4)


def render(data: ReportData) -> str:
    """Return the report as HTML. Every text of `data` is escaped."""
    style, script = (asset(name) for name in ("report.css", "report.js"))
    return (
        make_environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            style=style,
            script=script,
            policy=_policy(style, script),
            charts=charts,
            version=__version__,
            model=data.model,
            scale=data.model.scale if data.model else None,
        )
    )


def _policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy: nothing is loaded, and only this style and this script are used."""
    hashes = [hashlib.sha256(text.encode()).digest() for text in (style, script)]
    style_hash, script_hash = (base64.b64encode(found).decode() for found in hashes)
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )


def make_environment(own: Callable[[str], str] | None = None) -> jinja2.Environment:
    """Return the environment of pages: texts are escaped, and `own` reads templates that this package lacks."""

    def load(name: str) -> str:
        try:
            return asset(name)
        except FileNotFoundError:
            if own is None:
                raise
            return own(name)

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=_number, time=_time, duration=_duration, data_uri=partial(charts.data_uri, media_type="image/webp")
    )
    environment.globals.update(time_text=canvas.time_text)
    return environment


def asset(name: str) -> str:
    """Return the text of a template, style or script of the report."""
    return (resources.files("kvq_batch.report") / "templates" / name).read_text(encoding="utf-8")


def _number(value: Any, digits: int | None = None) -> str:
    """Return a number for people: thousands separated, an en dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.{digits}f}" if digits is not None else f"{value:,.4g}"
    return str(value)


def _time(value: datetime | None) -> str:
    return "–" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 60 else canvas.clock(seconds)
