"""One picture of scores against labels: a point for each video, and the fitted curve through them.

Drawn twice as large and reduced, so that points and lines are smooth. This module fits nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.logistic import Logistic
from kvq_batch.metrics.ranks import Real

WIDTH_PX, HEIGHT_PX = 960, 720
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
MAX_GROUPS = 8

_OVERSIZE = 2
_LEFT_PX, _RIGHT_PX, _BOTTOM_PX = 90, 30, 70
_TEXT_PX, _TITLE_PX = 15, 17
_INK, _GREY, _RED = (30, 30, 30), (225, 225, 225), (190, 0, 0)
_CURVE = (0, 0, 0)
_ALPHA = 120
# Eight colours that the colour-blind can tell apart (Okabe and Ito, 2008), blue first.
_COLOURS = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0)),
    *((204, 121, 167), (86, 180, 233), (100, 100, 100), (160, 150, 0)),
)


@dataclass(frozen=True, slots=True)
class Scatter:
    """What is drawn: `scores` and `labels` [N], and what stands around them.

    `groups` [N] colours the points where there are at most MAX_GROUPS different ones. Of `title`, a line whose second
    part is true is a warning.
    """

    scores: Real
    labels: Real
    curve: Logistic | None
    title: Sequence[tuple[str, bool]]
    x_name: str
    y_name: str
    groups: Sequence[str] | None = None


def draw_scatter(scatter: Scatter, out: Path) -> None:
    """Writes the picture. Raises: SpecError for no video, and where it cannot be written."""
    if out.suffix.lower() not in FORMATS:
        raise SpecError(f"{out}: a picture is written as {', '.join(FORMATS)}; name it so")
    if not len(scatter.scores):
        raise SpecError(f"{out}: there is no video to draw")
    picture = Image.new("RGB", (WIDTH_PX * _OVERSIZE, HEIGHT_PX * _OVERSIZE), "white")
    _Sheet(picture, scatter).draw()
    picture = picture.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except (OSError, ValueError) as error:
        raise SpecError(f"{out} cannot be written: {error}") from error


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """At most `most` round numbers in [low, high], at equal steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


class _Sheet:
    """The axes on one picture: values in, pixels out."""

    def __init__(self, picture: Image.Image, scatter: Scatter) -> None:
        self._scatter = scatter
        self._draw = ImageDraw.Draw(picture, "RGBA")
        self._picture = picture
        self._text, self._titles = (ImageFont.load_default(px * _OVERSIZE) for px in (_TEXT_PX, _TITLE_PX))
        self._groups = sorted(set(scatter.groups or ()))
        if len(self._groups) > MAX_GROUPS:
            self._groups = []
        top = 12 + len(scatter.title) * (_TITLE_PX + 6) + (_TEXT_PX + 8) * bool(self._groups)
        self._box = tuple(edge * _OVERSIZE for edge in (_LEFT_PX, top, WIDTH_PX - _RIGHT_PX, HEIGHT_PX - _BOTTOM_PX))
        self._x, self._y = _range(scatter.scores), _range(scatter.labels)

    def draw(self) -> None:
        self._frame()
        self._points()
        self._line()

    def _at(self, score: float, label: float) -> tuple[float, float]:
        left, top, right, bottom = self._box
        across = (score - self._x[0]) / (self._x[1] - self._x[0])
        up = (label - self._y[0]) / (self._y[1] - self._y[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    def _frame(self) -> None:
        scatter, (left, top, right, bottom), gap = self._scatter, self._box, 6 * _OVERSIZE
        for i, (line, is_warning) in enumerate(scatter.title):
            place = (left, (10 + i * (_TITLE_PX + 6)) * _OVERSIZE)
            self._draw.text(place, line, fill=_RED if is_warning else _INK, font=self._titles)
        for value in ticks(*self._x):
            x, _ = self._at(value, self._y[0])
            self._draw.line([(x, top), (x, bottom)], fill=_GREY, width=_OVERSIZE)
            self._draw.text((x, bottom + gap), f"{value:.6g}", fill=_INK, font=self._text, anchor="mt")
        for value in ticks(*self._y):
            _, y = self._at(self._x[0], value)
            self._draw.line([(left, y), (right, y)], fill=_GREY, width=_OVERSIZE)
            self._draw.text((left - gap, y), f"{value:.6g}", fill=_INK, font=self._text, anchor="rm")
        self._draw.rectangle([left, top, right, bottom], outline=_INK, width=_OVERSIZE)
        middle = ((left + right) / 2, bottom + gap + (_TEXT_PX + 12) * _OVERSIZE)
        self._draw.text(middle, scatter.x_name, fill=_INK, font=self._text, anchor="mt")
        self._upright(scatter.y_name, (top + bottom) // 2)
        x, room = left, (right - left) / max(1, len(self._groups)) - 6 * gap
        for name, colour in zip(self._groups, _COLOURS, strict=False):
            y = top - (_TEXT_PX / 2 + 8) * _OVERSIZE
            shown = self._shortened(name, room)
            self._draw.ellipse([x, y - gap, x + 2 * gap, y + gap], fill=colour)
            self._draw.text((x + 3 * gap, y), shown, fill=_INK, font=self._text, anchor="lm")
            x += 6 * gap + int(self._text.getlength(shown))

    def _shortened(self, name: str, room_px: float) -> str:
        """`name`, or as much of it as has room."""
        if self._text.getlength(name) <= room_px:
            return name
        while name and self._text.getlength(f"{name}…") > room_px:
            name = name[:-1]
        return f"{name}…"

    def _upright(self, text: str, middle: int) -> None:
        """The name of the y axis, read from below."""
        length, height = int(self._text.getlength(text)) + 2, (_TEXT_PX + 8) * _OVERSIZE
        line = Image.new("RGB", (length, height), "white")
        ImageDraw.Draw(line).text((0, height // 2), text, fill=_INK, font=self._text, anchor="lm")
        self._picture.paste(line.rotate(90, expand=True), (8 * _OVERSIZE, middle - length // 2))

    def _points(self) -> None:
        scatter = self._scatter
        num = len(scatter.scores)
        radius = _OVERSIZE * (4 if num <= 500 else 3 if num <= 3000 else 2)
        groups = scatter.groups if self._groups and scatter.groups is not None else [""] * num
        colours = dict(zip(self._groups or [""], _COLOURS, strict=False))
        for score, label, group in zip(scatter.scores, scatter.labels, groups, strict=True):
            x, y = self._at(float(score), float(label))
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(*colours[group], _ALPHA))

    def _line(self) -> None:
        if self._scatter.curve is None:
            return
        scores = np.linspace(float(self._scatter.scores.min()), float(self._scatter.scores.max()), 300)
        labels = np.clip(self._scatter.curve(scores), *self._y)
        places = [self._at(float(x), float(y)) for x, y in zip(scores, labels, strict=True)]
        self._draw.line(places, fill=_CURVE, width=3 * _OVERSIZE, joint="curve")


def _range(values: Real) -> tuple[float, float]:
    """The values' own range with a margin; one of a width where all are equal."""
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or max(abs(low), 1.0) * 0.1
    return low - margin, high + margin
