"""Draw the maps of a video over its frames: a still of its worst moment, or a contact sheet of several moments.

The frame stays as it is, with a line around the cells that are clearly worse than the rest. Below or beside it are the
quality of each cell and its weight (saliency), on scales that are the same for every video of the model
(`analysis/quality_scale.py`). `kvq_batch.report.movie` draws the same still for each frame of a moving picture.
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kvq_batch.analysis.quality_scale import worst_cells
from kvq_batch.analysis.video_maps import Moment, VideoMaps, find_video
from kvq_batch.domain.errors import SpecError
from kvq_batch.media.local_files import read_frames
from kvq_batch.report import canvas
from kvq_batch.report.canvas import FAINT, INK, PAPER
from kvq_batch.storage.fetch import Fetcher
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import Session

Form = Literal["still", "sheet"]

FORMATS = (".png", ".jpg", ".jpeg", ".webp")
MARGIN_PX = 14
GAP_PX = 8
CELL_BOX = (320, 320)
"""Largest width and height of one frame of a sheet."""
STILL_BOX = (720, 480)
CAPTION_PX = 40
BAR_PX = 92
STRIP_PX = 76
MIN_WIDTH_PX = 420


@dataclass(frozen=True, slots=True)
class Drawn:
    """The model and the score that a picture shows: `score` with its unit, such as "mos 53.4"."""

    model_id: str
    model_origin: str
    raw_score: float
    score: str


def draw_maps(
    session: Session,
    storage: StorageOptions,
    video_id: str,
    out: Path,
    model: str | None = None,
    clip: int | None = None,
    num_slots: int = 4,
    form: Form = "sheet",
) -> Drawn:
    """Write the picture of a video's maps and return the model and score that it shows.

    Raises:
        SpecError: no maps of this video, clip and model, or the picture cannot be written.
        ItemError: the video can no longer be fetched or decoded.
    """
    if out.suffix.lower() not in FORMATS:
        raise SpecError(f"{out}: unknown picture format. Use {', '.join(FORMATS)}; .mp4 or .gif if it should move.")
    video = find_video(session, video_id, model, clip)
    picture = draw_video(video, storage, num_slots, form)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except (OSError, ValueError) as error:
        raise SpecError(f"Cannot write {out}: {error}") from error
    return drawn(video)


def picture_of(
    session: Session,
    storage: StorageOptions,
    video_id: str,
    model: str | None = None,
    clip: int | None = None,
    num_slots: int = 4,
    form: Form = "still",
) -> bytes:
    """Return the picture of a video's maps as PNG. Raises: as `draw_maps`."""
    buffer = io.BytesIO()
    draw_video(find_video(session, video_id, model, clip), storage, num_slots, form).save(buffer, "PNG")
    return buffer.getvalue()


def draw_video(video: VideoMaps, storage: StorageOptions, num_slots: int = 4, form: Form = "sheet") -> Image.Image:
    """Return the picture of a video. Raises: ItemError if it can no longer be fetched or decoded."""
    moments = [video.worst()] if form == "still" else video.pick(num_slots)
    with local_copy(video, storage) as path:
        frames = read_frames(path, [moment.frame_index or 0 for moment in moments])
    return still(video, moments[0], frames[0]) if form == "still" else sheet(video, moments, frames)


def drawn(video: VideoMaps) -> Drawn:
    """Return what a picture of this video shows."""
    return Drawn(video.model_id, video.model_origin, video.raw_score, f"{video.scale.unit} {_score(video)}")


@contextmanager
def local_copy(video: VideoMaps, storage: StorageOptions) -> Iterator[Path]:
    """Yield a local path of the bytes that were scored. Raises: FetchError if they are gone or have changed."""
    with (
        tempfile.TemporaryDirectory(prefix="kvq-batch-") as scratch,
        Fetcher(storage, Path(scratch), max_file_bytes=2**63 - 1).fetch(video.uri, video.content_id) as fetched,
    ):
        yield fetched.path


def sheet(video: VideoMaps, moments: Sequence[Moment], frames: Sequence[NDArray[np.uint8]]) -> Image.Image:
    """Return the contact sheet: a column for each moment, with its frame, its quality and its saliency.

    `frames` are uint8 RGB [H, W, 3], one for each moment.
    """
    size = _frame_size(video, frames[0], CELL_BOX)
    columns = [_column(video, moment, frame, size) for moment, frame in zip(moments, frames, strict=True)]
    step = size[0] + GAP_PX
    body_width = step * len(columns) - GAP_PX
    width = max(MIN_WIDTH_PX, body_width + BAR_PX + GAP_PX + 2 * MARGIN_PX)
    header = _header(video, width - 2 * MARGIN_PX)
    top = MARGIN_PX + header.height
    height = top + max(column.height for column in columns) + GAP_PX + STRIP_PX + MARGIN_PX
    page = Image.new("RGB", (width, height), PAPER)
    page.paste(header, (MARGIN_PX, MARGIN_PX))
    for i, column in enumerate(columns):
        page.paste(column, (MARGIN_PX + i * step, top))
    draw = ImageDraw.Draw(page)
    x = MARGIN_PX + body_width + GAP_PX
    _note(draw, (x, top), moments, video)
    y = top + size[1] + CAPTION_PX
    for bar in _bars(video, moments, size[1]):
        page.paste(bar, (x, y))
        y += size[1] + GAP_PX
    strip = canvas.time_bars(video, (width - 2 * MARGIN_PX, STRIP_PX), lambda m: _mark(video, m, moments))
    page.paste(strip, (MARGIN_PX, height - MARGIN_PX - STRIP_PX))
    return page


def still(
    video: VideoMaps,
    moment: Moment,
    frame: NDArray[np.uint8],
    box: tuple[int, int] = STILL_BOX,
    playhead_s: float | None = None,
    note: str = "",
) -> Image.Image:
    """Return one moment: the frame, its quality and its saliency beside it, and the quality over time below.

    `frame` is uint8 RGB [H, W, 3]. The width and height of the result are even.
    """
    size = _frame_size(video, frame, box)
    maps_size = canvas.shown_size(*size, 1.0, (size[0], (size[1] - GAP_PX) // 2))
    base, small = canvas.fit(frame, size), canvas.fit(frame, maps_size)
    panels = _maps(video, moment, small)
    bars = _bars(video, [moment], maps_size[1])
    _outline_worst(base, video, moment)
    beside = (GAP_PX + maps_size[0] + GAP_PX + BAR_PX) if panels else 0
    width = max(MIN_WIDTH_PX, size[0] + beside + 2 * MARGIN_PX) // 2 * 2
    header = _header(video, width - 2 * MARGIN_PX, note)
    top = MARGIN_PX + header.height
    height = (top + size[1] + CAPTION_PX + STRIP_PX + MARGIN_PX) // 2 * 2
    page = Image.new("RGB", (width, height), PAPER)
    page.paste(header, (MARGIN_PX, MARGIN_PX))
    page.paste(base, (MARGIN_PX, top))
    x = MARGIN_PX + size[0] + GAP_PX
    for i, (panel, bar) in enumerate(zip(panels, bars, strict=True)):
        y = top + i * (maps_size[1] + GAP_PX)
        page.paste(panel, (x, y))
        page.paste(bar, (x + maps_size[0] + GAP_PX, y))
    draw = ImageDraw.Draw(page)
    _caption(draw, (MARGIN_PX, top + size[1]), size[0], video, moment, has_mark=playhead_s is None)
    strip = canvas.time_bars(
        video, (width - 2 * MARGIN_PX, STRIP_PX), lambda m: _mark(video, m, [video.worst()]), playhead_s
    )
    page.paste(strip, (MARGIN_PX, height - MARGIN_PX - STRIP_PX))
    return page


def _column(video: VideoMaps, moment: Moment, frame: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Return the frame with its time, and the maps below."""
    base = canvas.fit(frame, size)
    panels = _maps(video, moment, base)
    _outline_worst(base, video, moment)
    mark = _mark(video, moment, [])
    if mark is not None:
        canvas.border(base, mark)
    height = size[1] + CAPTION_PX + len(panels) * (size[1] + GAP_PX)
    column = Image.new("RGB", (size[0], height), PAPER)
    column.paste(base, (0, 0))
    _caption(ImageDraw.Draw(column), (0, size[1]), size[0], video, moment)
    for i, panel in enumerate(panels):
        column.paste(panel, (0, size[1] + CAPTION_PX + i * (size[1] + GAP_PX)))
    return column


def _maps(video: VideoMaps, moment: Moment, base: Image.Image) -> list[Image.Image]:
    """Return the quality and the saliency of the cells over the frame, those that there are."""
    panels = []
    if moment.texture is not None:
        panel = canvas.tint(base, canvas.quality_colours(video.scale.shares(moment.texture)))
        _outline_worst(panel, video, moment)
        panels.append(panel)
    if moment.saliency is not None:
        panels.append(canvas.tint(base, canvas.saliency_colours(moment.saliency)))
    return panels


def _bars(video: VideoMaps, moments: Sequence[Moment], height_px: int) -> list[Image.Image]:
    bars = []
    if moments[0].texture is not None:
        bars.append(canvas.quality_bar(video.scale, height_px))
    if moments[0].saliency is not None:
        bars.append(canvas.saliency_bar(height_px))
    return bars


def _outline_worst(picture: Image.Image, video: VideoMaps, moment: Moment) -> None:
    if moment.texture is not None:
        canvas.outline(picture, worst_cells(moment.texture, video.scale))


def _mark(video: VideoMaps, moment: Moment, others: Sequence[Moment]) -> str | None:
    """Return the colour of the mark of a moment: the worst, the best, one of `others`, or None."""
    if len(video.moments) > 1:
        if moment is video.worst():
            return canvas.ACCENT
        if moment is video.best() and any(moment is other for other in others or [moment]):
            return canvas.BEST
    return FAINT if any(moment is other for other in others) else None


def _caption(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    width_px: int,
    video: VideoMaps,
    moment: Moment,
    has_mark: bool = True,
) -> None:
    """Write time and quality below a frame, and whether this is the worst or the best moment."""
    text = canvas.time_text(moment.from_s, moment.until_s) or f"slot {moment.slot}"
    many = len({other.clip_index for other in video.moments}) > 1
    text += f", clip {moment.clip_index}" if many else ""
    draw.text((at[0], at[1] + 5), text, fill=FAINT, font=canvas.font(12))
    score = f"{video.scale.unit} {video.scale.text(moment.value)}"
    draw.text((at[0], at[1] + 20), score, fill=INK, font=canvas.font(13, is_bold=True))
    mark = _mark(video, moment, []) if has_mark else None
    if mark is not None:
        name = "worst" if mark == canvas.ACCENT else "best"
        draw.text((at[0] + width_px, at[1] + 20), name, fill=mark, font=canvas.font(13, is_bold=True), anchor="ra")


def _note(draw: ImageDraw.ImageDraw, at: tuple[int, int], moments: Sequence[Moment], video: VideoMaps) -> None:
    """Say beside the frames what the line around cells means, or why there is none."""
    textures = [moment.texture for moment in moments if moment.texture is not None]
    if not textures:
        return
    has_marks = any(worst_cells(texture, video.scale).any() for texture in textures)
    lines = ("outlined:", "worst cells") if has_marks else ("no cell is", "much worse", "than the rest")
    for i, line in enumerate(lines):
        draw.text((at[0], at[1] + 15 * i), line, fill=FAINT, font=canvas.font(11))


def _header(video: VideoMaps, width_px: int, note: str = "") -> Image.Image:
    """Return the lines above a picture: the id, the score, the model, and a warning if it is untrained.

    They are wrapped, so that nothing is cut in a narrow picture, above all not the warning.
    """
    facts = [f"{video.scale.unit} {_score(video)}"]
    if video.scale.unit == "mos":
        facts[0] += f" of {canvas.tick_text(video.scale.low)} to {canvas.tick_text(video.scale.high)}"
    if video.width_px:
        facts.append(f"{video.width_px}×{video.height_px}")
    if video.duration_s:
        facts.append(f"{video.duration_s:.1f} s")
    if note:
        facts.append(note)
    title, small = canvas.font(17, is_bold=True), canvas.font(13)
    texts = [(video.video_id, title, INK), (" · ".join(facts), small, INK), (video.model_id, small, FAINT)]
    if video.model_origin == "untrained":
        texts.append(("UNTRAINED: random weights", small, canvas.WARNING))
    lines = [(line, font, colour) for text, font, colour in texts for line in canvas.wrap(text, width_px, font)]
    height = sum(round(font.size * 1.4) for _, font, _ in lines) + GAP_PX
    header = Image.new("RGB", (width_px, height), PAPER)
    draw = ImageDraw.Draw(header)
    y = 0
    for line, font, colour in lines:
        draw.text((0, y), line, fill=colour, font=font)
        y += round(font.size * 1.4)
    return header


def _score(video: VideoMaps) -> str:
    return video.scale.text(video.value)


def _frame_size(video: VideoMaps, frame: NDArray[np.uint8], box: tuple[int, int]) -> tuple[int, int]:
    return canvas.shown_size(frame.shape[1], frame.shape[0], video.sample_aspect_ratio, box)
