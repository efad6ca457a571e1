"""One picture of a training: its loss over the steps, and what the held-out scenes said of it.

The loss is drawn as it was, faintly, and as a moving mean; correlations on their own axis, from 0 to 1 unless they went
below. This module reads no file and knows no network.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kvq_batch.domain.errors import SpecError

WIDTH_PX, HEIGHT_PX = 960, 420
FORMATS = (".png", ".jpg", ".jpeg", ".webp")

_OVERSIZE = 2
_TEXT_PX, _TITLE_PX = 13, 16
_INK, _GREY = (30, 30, 30), (225, 225, 225)
# Okabe and Ito (2008): the colour-blind can tell them apart.
_BLUE, _FAINT, _ORANGE, _GREEN = (0, 114, 178), (170, 205, 230), (213, 94, 0), (0, 158, 115)
_MEANS = 50
"""The moving mean spans this part of the training: long ones are as smooth as short ones."""

Row = Mapping[str, float]
Line = tuple[str, tuple[int, int, int], int, NDArray[np.float64], NDArray[np.float64]]


def draw_curves(curve: Sequence[Row], validations: Sequence[Row], title: str, out: Path) -> None:
    """Writes the picture of a training's rows, as its curve files hold them.

    Raises:
        SpecError: no step was taken yet, or the picture cannot be written.
    """
    if out.suffix.lower() not in FORMATS:
        raise SpecError(f"{out}: a picture is written as {', '.join(FORMATS)}; name it so")
    if not curve:
        raise SpecError(f"{out}: there is no step to draw yet")
    picture = Image.new("RGB", (WIDTH_PX * _OVERSIZE, HEIGHT_PX * _OVERSIZE), "white")
    steps, losses = _column(curve, "step"), _column(curve, "loss")
    last = float(steps[-1])
    lines: list[Line] = [("loss", _FAINT, 1, steps, losses), ("moving mean", _BLUE, 2, steps, _mean(losses))]
    half = WIDTH_PX // 2
    _panel(picture, (0, half), (0.0, last), (min(0.0, float(losses.min())), float(losses.max())), lines)
    if validations:
        at, srcc, plcc = (_column(validations, name) for name in ("step", "srcc", "plcc"))
        lines = [("SRCC", _ORANGE, 2, at, srcc), ("PLCC", _GREEN, 2, at, plcc)]
        low = min(0.0, float(srcc.min()), float(plcc.min()))
        _panel(picture, (half, WIDTH_PX), (0.0, last), (low, 1.0), lines)
    font = ImageFont.load_default(_TITLE_PX * _OVERSIZE)
    ImageDraw.Draw(picture).text((12 * _OVERSIZE, 8 * _OVERSIZE), title, fill=_INK, font=font)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS).save(out)
    except (OSError, ValueError) as error:
        raise SpecError(f"{out} cannot be written: {error}") from error


def _column(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows], np.float64)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each value and those before it, over the `_MEANS`th part of all."""
    span = max(1, len(values) // _MEANS)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) + 1 - span, 0)
    counts = np.arange(len(values)) + 1 - first
    mean: NDArray[np.float64] = (sums[1:] - sums[first]) / counts
    return mean


def _panel(
    picture: Image.Image,
    sides_px: tuple[int, int],
    steps: tuple[float, float],
    values: tuple[float, float],
    lines: Sequence[Line],
) -> None:
    """Axes with their lines, between two columns of the picture."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_TEXT_PX * _OVERSIZE)
    left, right = (sides_px[0] + 60) * _OVERSIZE, (sides_px[1] - 20) * _OVERSIZE
    top, bottom = 62 * _OVERSIZE, (HEIGHT_PX - 36) * _OVERSIZE
    low, high = values if values[1] > values[0] else (values[0], values[0] + 1)

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - steps[0]) / max(steps[1] - steps[0], 1)
        return left + across * (right - left), bottom - (value - low) / (high - low) * (bottom - top)

    for share in np.linspace(0, 1, 5).tolist():
        x, y = place(steps[0] + share * (steps[1] - steps[0]), low + share * (high - low))
        draw.line([(left, y), (right, y)], fill=_GREY, width=_OVERSIZE)
        draw.text((left - 6 * _OVERSIZE, y), f"{low + share * (high - low):.3g}", fill=_INK, font=font, anchor="rm")
        draw.text((x, bottom + 6 * _OVERSIZE), f"{share * steps[1]:.4g}", fill=_INK, font=font, anchor="mt")
    draw.rectangle([left, top, right, bottom], outline=_INK, width=_OVERSIZE)
    x = left
    for name, colour, width, at, found in lines:
        points = [place(float(step), float(value)) for step, value in zip(at, found, strict=True)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=width * _OVERSIZE, joint="curve")
        if len(points) <= 60:
            for px, py in points:
                draw.ellipse([px - 5, py - 5, px + 5, py + 5], fill=colour)
        draw.text((x, top - 18 * _OVERSIZE), name, fill=colour, font=font)
        x += int(font.getlength(name)) + 24 * _OVERSIZE
