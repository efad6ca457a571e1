"""Parts that all pictures of maps are made of: fonts, colours, cells over a frame, outlines, colour bars, time bars.

Colours are cividis for quality and viridis for saliency, both from matplotlib. Both are perceptually uniform: their
lightness rises with the value. Cividis was made to look the same to people with and without colour blindness (Nunez et
al. 2018). Marks are black and white lines beside each other, so that they are visible on every frame.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kvq_batch.analysis.quality_scale import QualityScale
from kvq_batch.analysis.video_maps import VideoMaps

PAPER, INK, FAINT = "#ffffff", "#1b1f24", "#5a6370"
GRID = "#d4d8dd"
ACCENT = "#d55e00"
"""Vermilion of Okabe and Ito (2008), for the worst moment."""
BEST = "#0072b2"
WARNING = "#be0000"

SALIENCY_SPAN = 4.0
"""Saliency is shown from 1/4 to 4 times the mean, in octaves: its distribution has a heavy tail, and its mean is 1."""
SALIENCY_TICKS = (0.25, 0.5, 1.0, 2.0, 4.0)

TINT_OPACITY = 0.6


@lru_cache(maxsize=16)
def font(size_px: int, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib ships."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size_px)


QUALITY_COLOURS, SALIENCY_COLOURS = "cividis", "viridis"
"""Colour maps of matplotlib."""


@lru_cache(maxsize=4)
def colour_table(name: str) -> NDArray[np.uint8]:
    """Return 256 colours of a colour map of matplotlib, uint8 RGB [256, 3], from low to high."""
    from matplotlib import colormaps

    table: NDArray[np.uint8] = (colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    return table


def quality_colours(shares: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the colours of shares of the scale (0 to 1), uint8 RGB [..., 3]: dark blue is low, yellow is high."""
    return _look_up(QUALITY_COLOURS, np.clip(shares, 0, 1))


def saliency_colours(saliency: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the colours of weights with mean 1, uint8 RGB [..., 3]: dark is low, bright is high."""
    return _look_up(SALIENCY_COLOURS, saliency_shares(saliency))


def _look_up(name: str, shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    colours: NDArray[np.uint8] = colour_table(name)[(shares * 255).round().astype(int)]
    return colours


def saliency_shares(saliency: NDArray[Any]) -> NDArray[np.float64]:
    """Return where weights are between 1 / SALIENCY_SPAN and SALIENCY_SPAN on a logarithmic scale, from 0 to 1."""
    logs = np.log(np.maximum(np.asarray(saliency, np.float64), 1e-9)) / np.log(SALIENCY_SPAN)
    shares: NDArray[np.float64] = np.clip((logs + 1) / 2, 0, 1)
    return shares


def shown_size(
    width_px: int, height_px: int, sample_aspect_ratio: float | None, box: tuple[int, int]
) -> tuple[int, int]:
    """Return the even width and height that fit into `box` with the aspect ratio that a player shows."""
    width = width_px * (sample_aspect_ratio or 1.0)
    factor = min(box[0] / width, box[1] / height_px)
    return max(2, round(width * factor / 2) * 2), max(2, round(height_px * factor / 2) * 2)


def fit(frame: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    """Return the frame, uint8 RGB [H, W, 3], resized to (width, height)."""
    return Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)


def tint(base: Image.Image, colours: NDArray[np.uint8]) -> Image.Image:
    """Return a dimmed grey copy of the frame with the colours of the cells [row, column, 3] over it."""
    cells = Image.fromarray(colours).resize(base.size, Image.Resampling.NEAREST)
    return Image.blend(base.convert("L").convert("RGB"), cells, TINT_OPACITY)


def outline_edges(marked: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Return the edges around the marked cells [row, column] as (x0, y0, x1, y1) in cells, without inner edges."""
    padded = np.pad(marked, 1)
    edges = [
        (int(col), int(row), int(col), int(row) + 1) for row, col in np.argwhere(padded[1:-1, :-1] != padded[1:-1, 1:])
    ]
    edges += [
        (int(col), int(row), int(col) + 1, int(row)) for row, col in np.argwhere(padded[:-1, 1:-1] != padded[1:, 1:-1])
    ]
    return edges


def outline(picture: Image.Image, marked: NDArray[np.bool_]) -> None:
    """Draw a white line with black borders around the marked cells [row, column]."""
    rows, cols = marked.shape
    draw = ImageDraw.Draw(picture)
    width, height = picture.width - 1, picture.height - 1
    core = max(2, round(max(picture.size) / 200))
    # Lines at the edge of the frame are moved inside.
    inset = core / 2 + 1
    lines = [
        (_within(x0 * width / cols, inset, width), _within(y0 * height / rows, inset, height),
         _within(x1 * width / cols, inset, width), _within(y1 * height / rows, inset, height))
        for x0, y0, x1, y1 in outline_edges(marked)
    ]  # fmt: skip
    for colour, extra in (("black", core + 2), ("white", core)):
        half = extra / 2
        for x0, y0, x1, y1 in lines:
            draw.rectangle((x0 - half, y0 - half, x1 + half, y1 + half), fill=colour)


def _within(at: float, inset: float, size: float) -> float:
    return min(max(at, inset), size - inset)


def border(picture: Image.Image, colour: str, width_px: int = 3) -> None:
    """Draw a frame around the picture."""
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=colour, width=width_px)


def colour_bar(
    height_px: int, colours: NDArray[np.uint8], ticks: Sequence[tuple[float, str]], title: str, width_px: int = 92
) -> Image.Image:
    """Return a vertical colour bar; `colours` [N, 3] from low to high, ticks as (share of the height, text)."""
    bar = Image.new("RGB", (width_px, height_px), PAPER)
    draw = ImageDraw.Draw(bar)
    top, bottom = 20, height_px - 7
    strip = Image.fromarray(np.ascontiguousarray(colours[::-1, None])).resize((14, bottom - top))
    bar.paste(strip, (0, top))
    draw.text((0, 0), title, fill=INK, font=font(12))
    for share, text in ticks:
        y = bottom - share * (bottom - top)
        draw.line((14, y, 18, y), fill=FAINT)
        draw.text((22, y), text, fill=FAINT, font=font(11), anchor="lm")
    return bar


def quality_bar(scale: QualityScale, height_px: int) -> Image.Image:
    """Return the colour bar of the quality of a model."""
    ticks = [(float(scale.shares(np.array(value))), tick_text(value)) for value in scale.ticks()]
    return colour_bar(height_px, colour_table(QUALITY_COLOURS), ticks, f"quality ({scale.unit.split()[0]})")


def saliency_bar(height_px: int) -> Image.Image:
    """Return the colour bar of saliency."""
    texts = ("≤ ¼", "½", "1 = mean", "2", "≥ 4")
    ticks = [(float(saliency_shares(np.array(v))), text) for v, text in zip(SALIENCY_TICKS, texts, strict=True)]
    return colour_bar(height_px, colour_table(SALIENCY_COLOURS), ticks, "saliency")


def tick_text(value: float) -> str:
    """Return a short number for an axis."""
    return f"{value:.3g}"


def time_text(from_s: float | None, until_s: float | None) -> str:
    """Return a span of time: "4.2–5.5 s", from one minute on "1:04–1:09"."""
    if from_s is None:
        return ""
    if until_s is None or until_s < 60:
        digits = 2 if until_s is not None and until_s - from_s < 0.2 else 1
        return f"{from_s:.{digits}f} s" if until_s is None else f"{from_s:.{digits}f}–{until_s:.{digits}f} s"
    return f"{clock(from_s)}–{clock(until_s)}"


def clock(time_s: float) -> str:
    """Return a time as m:ss, or h:mm:ss."""
    whole = int(time_s)
    hours, minutes, seconds = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def time_bars(
    video: VideoMaps, size: tuple[int, int], marked: Callable[[Any], str | None], playhead_s: float | None = None
) -> Image.Image:
    """Return the quality over time: one bar for each moment, its colour and height on the fixed scale.

    `marked` returns the colour of the mark of a moment, or None. Without times, moments are evenly spaced.
    """
    width, height = size
    strip = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(strip)
    left, right, top, bottom = 34, width - 12, 10, height - 20
    scale = video.scale
    timed = [moment for moment in video.moments if moment.from_s is not None and moment.until_s is not None]
    is_timed = len(timed) == len(video.moments) and bool(timed)
    if is_timed:
        begin = min(0.0, *(moment.from_s or 0.0 for moment in timed)) if len(timed) else 0.0
        end = max(video.duration_s or 0.0, *(moment.until_s or 0.0 for moment in timed), begin + 1e-6)
        spans = [(moment.from_s or 0.0, moment.until_s or 0.0) for moment in video.moments]
    else:
        begin, end = 0.0, float(len(video.moments))
        spans = [(float(i), i + 1.0) for i in range(len(video.moments))]

    def x_of(time_s: float) -> float:
        return left + (time_s - begin) / (end - begin) * (right - left)

    def y_of(value: float) -> float:
        return bottom - float(scale.shares(np.array(value))) * (bottom - top)

    for value in (scale.low, scale.high):
        draw.line((left, y_of(value), right, y_of(value)), fill=GRID)
        draw.text((left - 5, y_of(value)), tick_text(value), fill=FAINT, font=font(11), anchor="rm")
    for moment, (first, last) in zip(video.moments, spans, strict=True):
        colour = tuple(int(c) for c in quality_colours(scale.shares(np.array(moment.value))))
        x0, x1, y = x_of(first), max(x_of(last) - 2, x_of(first) + 1), min(y_of(moment.value), bottom - 1)
        draw.rectangle((x0, y, x1, bottom), fill=colour, outline=FAINT)
        mark = marked(moment)
        if mark is not None:
            centre = (x0 + x1) / 2
            draw.polygon([(centre - 5, y - 9), (centre + 5, y - 9), (centre, y - 1)], fill=mark)
    if is_timed:
        for time_s in _nice_times(begin, end):
            draw.line((x_of(time_s), bottom, x_of(time_s), bottom + 3), fill=FAINT)
            text = clock(time_s) if end >= 60 else f"{time_s:g} s"
            draw.text((x_of(time_s), bottom + 5), text, fill=FAINT, font=font(11), anchor="mt")
    if playhead_s is not None:
        x = x_of(playhead_s)
        draw.line((x, 0, x, bottom + 3), fill=INK, width=2)
    return strip


def _nice_times(begin: float, end: float) -> list[float]:
    """Return about six round times between two times."""
    steps = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
    step = next((step for step in steps if (end - begin) / step <= 7), steps[-1])
    numbers = np.arange(np.ceil(begin / step - 1e-9), np.floor(end / step + 1e-9) + 1)
    # Plus zero: there is no time -0.
    return [float(time) for time in numbers * step + 0.0]


def wrap(text: str, width_px: int, text_font: ImageFont.FreeTypeFont) -> list[str]:
    """Wrap text into lines that fit `width_px`, breaking anywhere: ids have no spaces."""
    lines = [""]
    for character in text:
        if lines[-1] and text_font.getlength(lines[-1] + character) > width_px:
            lines.append("")
        lines[-1] += character
    return lines
