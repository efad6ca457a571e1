"""Draw the saliency and texture maps of one clip over its frames.

One column per time slot, with three rows: the frame, saliency over it, texture over it. Colours span the range of the
clip, and the range is printed, because raw values of different models have different scales. Colours of saliency follow
its square root, because its distribution has a heavy tail.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.maps import StoredMaps, dequantise
from kvq_batch.media.local_files import read_frames
from kvq_batch.storage.fetch import Fetcher
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import Session

WIDTH_PX = 320
MARGIN_PX = 6
TEXT_PX = 16
OPACITY = 0.55

# Black, purple, orange, yellow: brightness rises with the value, so the order survives greyscale printing.
_SALIENCY_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
# Red is low quality, green is high, with a light middle.
_TEXTURE_COLOURS = np.array([(165, 0, 38), (244, 109, 67), (255, 255, 191), (102, 189, 99), (0, 104, 55)], np.float64)

_FORMATS = (".png", ".jpg", ".jpeg", ".webp")

_SCORED = """
SELECT s.model_name, s.model_id, s.commit_seq, s.model_origin, s.num_clips, c.uri,
    EXISTS (FROM maps m WHERE m.video_id = s.video_id AND m.model_id = s.model_id AND m.commit_seq = s.commit_seq)
        AS has_maps
FROM scores_latest s JOIN catalog c ON c.video_id = s.video_id
WHERE s.video_id = {video_id} ORDER BY s.model_name
"""

# The raw score of the clip. That of the video is a mean over its clips.
_CLIP = """
SELECT m.*, k.frame_indices, k.raw_score
FROM maps m JOIN clips k ON k.video_id = m.video_id AND k.model_id = m.model_id AND k.commit_seq = m.commit_seq
    AND k.clip_index = m.clip_index
WHERE m.video_id = {video_id} AND m.model_id = {model_id} AND m.commit_seq = {commit_seq} AND m.clip_index = {clip}
"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The model and the score that a picture shows."""

    model_id: str
    model_origin: str
    raw_score: float


def draw_maps(
    session: Session,
    storage: StorageOptions,
    video_id: str,
    out: Path,
    model: str | None = None,
    clip: int = 0,
    num_slots: int = 4,
) -> Drawn:
    """Write the picture of one clip's maps over its frames and return the model and score that it shows.

    Raises:
        SpecError: no maps of this video, clip and model, or the picture cannot be written.
        ItemError: the video can no longer be fetched or decoded.
    """
    if out.suffix.lower() not in _FORMATS:
        raise SpecError(f"{out}: unknown picture format. Use {', '.join(_FORMATS)}.")
    row = _find(session, video_id, model, clip)
    stored = StoredMaps(
        shape=(row["num_slots"], row["num_rows"], row["num_cols"]),
        texture=None if row["texture"] is None else np.array(row["texture"], np.int8),
        texture_offset=row["texture_offset"],
        texture_scale=row["texture_scale"],
        saliency=None if row["saliency"] is None else np.array(row["saliency"], np.int8),
        saliency_offset=row["saliency_offset"],
        saliency_scale=row["saliency_scale"],
    )
    texture, saliency = dequantise(stored)
    slots = np.unique(np.linspace(0, stored.shape[0] - 1, min(num_slots, stored.shape[0])).astype(int))
    indices = row["frame_indices"]
    frames_of_slots = [indices[slot * len(indices) // stored.shape[0]] for slot in slots]
    with (
        tempfile.TemporaryDirectory(prefix="kvq-batch-") as scratch,
        Fetcher(storage, Path(scratch), max_file_bytes=2**63 - 1).fetch(row["uri"], row["content_id"]) as video,
    ):
        frames = read_frames(video.path, frames_of_slots)
    shown = None if saliency is None else np.sqrt(saliency)
    bounds = (_bounds(shown), _bounds(texture))
    columns = [
        column(frame, None if shown is None else shown[slot], None if texture is None else texture[slot], bounds)
        for frame, slot in zip(frames, slots, strict=True)
    ]
    picture = _sheet(columns, row, _legend(saliency, texture))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except (OSError, ValueError) as error:
        raise SpecError(f"Cannot write {out}: {error}") from error
    return Drawn(row["model_id"], row["model_origin"], row["raw_score"])


def _find(session: Session, video_id: str, model: str | None, clip: int) -> dict[str, Any]:
    """Return the stored maps of one clip, with its frame indices, score, model and URI."""
    scored = session.sql(_SCORED.format(video_id=_quoted(video_id))).to_pylist()
    if not scored:
        raise SpecError(
            f"Video {video_id!r} has no score in these tables. List the videos with scores with "
            '`kvq-batch query TABLES "SELECT video_id FROM scores_latest"`, and failed ones with '
            "`kvq-batch failures list TABLES`."
        )
    with_maps = [row for row in scored if row["has_maps"]]
    chosen = [row for row in with_maps if model is None or row["model_name"] == model]
    if not chosen:
        requested = f"model {model!r}" if model else ", ".join(row["model_name"] for row in scored)
        known = ", ".join(row["model_name"] for row in with_maps) or "no model"
        raise SpecError(f"Video {video_id!r} has no maps of {requested}. It has maps of {known}.")
    score = chosen[0]
    identity = {"video_id": _quoted(video_id), "model_id": _quoted(score["model_id"])}
    rows = session.sql(_CLIP.format(**identity, commit_seq=score["commit_seq"], clip=int(clip))).to_pylist()
    if not rows:
        last = score["num_clips"] - 1
        raise SpecError(f"Video {video_id!r} has no clip {clip} of {score['model_name']}; its clips are 0 to {last}.")
    return {**score, **rows[0]}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def column(
    frame: NDArray[np.uint8],
    saliency: NDArray[np.float32] | None,
    texture: NDArray[np.float32] | None,
    bounds: tuple[tuple[float, float], tuple[float, float]],
) -> Image.Image:
    """Stack the frame (uint8 [H, W, 3]), saliency over it and texture over it. `bounds` is the range of the colours."""
    height_px = max(1, round(frame.shape[0] * WIDTH_PX / frame.shape[1]))
    base = Image.fromarray(frame).resize((WIDTH_PX, height_px), Image.Resampling.LANCZOS)
    panels = [base]
    for values, colours, (low, high) in zip(
        (saliency, texture), (_SALIENCY_COLOURS, _TEXTURE_COLOURS), bounds, strict=True
    ):
        if values is not None:
            panels.append(
                Image.blend(base.convert("L").convert("RGB"), _tinted(values, colours, low, high, base.size), OPACITY)
            )
    sheet = Image.new("RGB", (WIDTH_PX, height_px * len(panels) + MARGIN_PX * (len(panels) - 1)), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (0, i * (height_px + MARGIN_PX)))
    return sheet


def _tinted(
    values: NDArray[np.float32], colours: NDArray[np.float64], low: float, high: float, size: tuple[int, int]
) -> Image.Image:
    """Draw cells [row, column] as blocks of colour, without smoothing."""
    share = np.clip((values - low) / (high - low or 1.0), 0, 1) * (len(colours) - 1)
    below = np.minimum(share.astype(int), len(colours) - 2)
    fraction = (share - below)[..., None]
    rgb = colours[below] * (1 - fraction) + colours[below + 1] * fraction
    return Image.fromarray(rgb.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def _bounds(values: NDArray[np.float32] | None) -> tuple[float, float]:
    return (0.0, 1.0) if values is None else (float(values.min()), float(values.max()))


def _legend(saliency: NDArray[np.float32] | None, texture: NDArray[np.float32] | None) -> list[str]:
    """Return one line for each map: its row, and the values of its first and last colours."""
    lines: list[str] = []
    for name, values, low, high in (
        ("saliency", saliency, "dark", "bright"),
        ("texture", texture, "red", "green"),
    ):
        if values is not None:
            least, most = _bounds(values)
            lines.append(f"row {len(lines) + 2}: {name}, {low} {least:.3g} to {high} {most:.3g}")
    return lines


def _sheet(columns: Sequence[Image.Image], row: dict[str, Any], legend: Sequence[str]) -> Image.Image:
    """Put the columns next to each other, with the title above and the legend below."""
    width_px = sum(panels.width + MARGIN_PX for panels in columns) + MARGIN_PX
    # Wrapped into lines, so that nothing is cut in a narrow picture, above all not the warning.
    texts = [(str(row["video_id"]), "black"), (f"clip {row['clip_index']}, score {row['raw_score']:.4g}", "black")]
    texts += [(str(row["model_id"]), "black")]
    texts += [("UNTRAINED: random weights", "red")] * (row["model_origin"] == "untrained")
    title = [(line, colour) for text, colour in texts for line in _wrap(text, width_px - 2 * MARGIN_PX)]
    top_px = len(title) * TEXT_PX + MARGIN_PX
    height_px = top_px + max(panels.height for panels in columns) + len(legend) * TEXT_PX + 2 * MARGIN_PX
    sheet = Image.new("RGB", (width_px, height_px), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (line, colour) in enumerate(title):
        draw.text((MARGIN_PX, MARGIN_PX // 2 + i * TEXT_PX), line, fill=colour)
    for i, panels in enumerate(columns):
        sheet.paste(panels, (MARGIN_PX + i * (panels.width + MARGIN_PX), top_px))
    for i, line in enumerate(legend):
        draw.text((MARGIN_PX, height_px - (len(legend) - i) * TEXT_PX - MARGIN_PX // 2), line, fill="black")
    return sheet


def _wrap(text: str, width_px: int) -> list[str]:
    """Wrap text into lines that fit `width_px`, breaking anywhere: ids have no spaces."""
    font = ImageFont.load_default()
    lines = [""]
    for character in text:
        if font.getlength(lines[-1] + character) > width_px:
            lines.append("")
        lines[-1] += character
    return lines
