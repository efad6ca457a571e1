"""Geometry of the charts of the HTML report: numbers that the templates write into inline SVG.

Lengths are in units of the view box of each chart. Colours of quality are those of all pictures (`canvas.py`).
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kvq_batch.analysis.quality_scale import QualityScale, worst_cells
from kvq_batch.analysis.video_maps import Moment, VideoMaps
from kvq_batch.report import canvas

Chart = dict[str, Any]


def hex_of(colour: NDArray[np.uint8]) -> str:
    """Return a colour, uint8 [3], as #rrggbb."""
    return "#" + "".join(f"{int(part):02x}" for part in colour)


def quality_hex(scale: QualityScale, value: float) -> str:
    """Return the colour of a value on the scale of its model."""
    return hex_of(canvas.quality_colours(scale.shares(np.array(value))))


def histogram(row: Mapping[str, Any], scale: QualityScale) -> Chart:
    """Return the bars of `row["bins"]` (see `overview.find_distribution`), an axis, and the median and 5% marks."""
    width, height, left, right, top, bottom = 520.0, 190.0, 34.0, 494.0, 22.0, 160.0
    bins: Sequence[int] = row["bins"]
    highest = max([*bins, 1])
    step = (right - left) / len(bins)
    edges = np.linspace(scale.low, scale.high, len(bins) + 1)
    bars = []
    for i, count in enumerate(bins):
        length = (bottom - top) * count / highest
        bars.append(
            {
                "x": left + i * step + 1,
                "y": bottom - length,
                "width": step - 2,
                "height": length,
                "fill": quality_hex(scale, (edges[i] + edges[i + 1]) / 2),
                "title": f"{canvas.tick_text(edges[i])} to {canvas.tick_text(edges[i + 1])}: {_videos(count)}",
            }
        )
    marks: list[Chart] = [
        {"x": left + float(scale.shares(np.array(row[key]))) * (right - left), "text": text}
        for key, text in (("p5", "5%"), ("median", "median"))
        if row[key] is not None
    ]
    if len(marks) == 2 and marks[1]["x"] - marks[0]["x"] < 46:
        del marks[0]
    ticks = [
        {"x": left + float(scale.shares(np.array(v))) * (right - left), "text": canvas.tick_text(v)}
        for v in scale.ticks()
    ]
    frame = {"left": left, "right": right, "top": top, "bottom": bottom, "width": width, "height": height}
    return {**frame, "bars": bars, "ticks": ticks, "marks": marks, "highest": highest}


def box_plot(row: Mapping[str, Any], scale: QualityScale) -> Chart:
    """Return a line from 5% to 95%, a box from 25% to 75% and the median, on a scale 200 units wide."""
    x = {
        key: float(scale.shares(np.array(row[key]))) * 196 + 2
        for key in ("p5", "p25", "median", "p75", "p95")
        if row[key] is not None
    }
    return {"x": x, "fill": quality_hex(scale, row["median"])} if len(x) == 5 else {}


def heat_map(cells: Sequence[Mapping[str, Any]], scale: QualityScale) -> Chart:
    """Return two maps of the frame, 16:9: the mean quality and the mean saliency of each cell."""
    width, height = 480.0, 270.0
    rows = max(cell["cell_row"] for cell in cells) + 1
    cols = max(cell["cell_col"] for cell in cells) + 1
    step_x, step_y = width / cols, height / rows
    quality, saliency = [], []
    # Small cells have no room for numbers; the title of a cell has them.
    has_text = cols <= 8
    for cell in cells:
        place = {"x": cell["cell_col"] * step_x, "y": cell["cell_row"] * step_y, "width": step_x, "height": step_y}
        at = f"row {cell['cell_row'] + 1}, column {cell['cell_col'] + 1}: "
        colour = canvas.quality_colours(scale.shares(np.array(cell["quality"])))
        text = scale.text(cell["quality"])
        quality.append({**place, **_cell(colour, text, at + f"{scale.unit} {text}", has_text)})
        if cell["saliency"] is not None:
            colour = canvas.saliency_colours(np.array(cell["saliency"]))
            text = f"{cell['saliency']:.2f}"
            saliency.append({**place, **_cell(colour, text, at + f"saliency {text}", has_text)})
    return {"width": width, "height": height, "quality": quality, "saliency": saliency}


def legend(kind: str, scale: QualityScale) -> Chart:
    """Return the colour bar of "quality" or "saliency": stops and ticks on a line of 480 units."""
    name = canvas.QUALITY_COLOURS if kind == "quality" else canvas.SALIENCY_COLOURS
    table = canvas.colour_table(name)
    stops = [{"offset": i / 16, "colour": hex_of(table[round(i * 255 / 16)])} for i in range(17)]
    if kind == "quality":
        ticks = [(float(scale.shares(np.array(v))), canvas.tick_text(v)) for v in scale.ticks()]
    else:
        texts = ("≤ ¼", "½", "1 = mean", "2", "≥ 4")
        shares = canvas.saliency_shares(np.array(canvas.SALIENCY_TICKS))
        ticks = [(float(share), text) for share, text in zip(shares, texts, strict=True)]
    return {"id": kind, "stops": stops, "ticks": [{"x": 480 * share, "text": text} for share, text in ticks]}


def line(tenths: Sequence[Mapping[str, Any]], scale: QualityScale) -> Chart:
    """Return quality from the start to the end of the videos as a line with points."""
    width, height, left, right, top, bottom = 520.0, 190.0, 34.0, 494.0, 14.0, 160.0
    points = []
    for row in tenths:
        share = (row["from_share"] + row["until_share"]) / 2
        points.append(
            {
                "x": left + share * (right - left),
                "y": bottom - float(scale.shares(np.array(row["quality"]))) * (bottom - top),
                "title": f"{row['from_share']:.0%} to {row['until_share']:.0%}: {scale.unit} "
                f"{scale.text(row['quality'])}, {_videos(row['videos'])}",
            }
        )
    ticks = [{"y": bottom - i / 4 * (bottom - top), "text": canvas.tick_text(v)} for i, v in enumerate(scale.ticks())]
    frame = {"left": left, "right": right, "top": top, "bottom": bottom, "width": width, "height": height}
    return {**frame, "points": points, "ticks": ticks}


def time_bars(video: VideoMaps) -> Chart:
    """Return the quality of each moment over time, 520 x 64 units."""
    width, height, bottom = 520.0, 64.0, 52.0
    scale = video.scale
    spans = [(moment.from_s, moment.until_s) for moment in video.moments]
    if any(first is None or last is None for first, last in spans):
        spans = [(float(i), i + 1.0) for i in range(len(spans))]
        end = float(len(spans))
        label = "time slots"
    else:
        end = max([video.duration_s or 0.0, *(last or 0.0 for _, last in spans), 1e-6])
        label = f"0 to {end:.1f} s" if end < 60 else f"0 to {canvas.clock(end)}"
    worst = video.worst()
    bars = []
    for moment, (first, last) in zip(video.moments, spans, strict=True):
        x0, x1 = (first or 0.0) / end * width, (last or 0.0) / end * width
        length = max(1.0, float(scale.shares(np.array(moment.value))) * (bottom - 8))
        bars.append(
            {
                "x": x0,
                "y": bottom - length,
                "width": max(1.0, x1 - x0 - 1.5),
                "height": length,
                "fill": quality_hex(scale, moment.value),
                "is_worst": moment is worst and len(video.moments) > 1,
                "title": f"{canvas.time_text(moment.from_s, moment.until_s)} {scale.unit} {scale.text(moment.value)}",
            }
        )
    span = f"{scale.unit} {canvas.tick_text(scale.low)} to {canvas.tick_text(scale.high)}"
    return {"width": width, "height": height, "top": 8.0, "bottom": bottom, "bars": bars, "label": label, "span": span}


def overlays(moment: Moment, scale: QualityScale) -> Chart:
    """Return what lies over a frame: the cells as tiny pictures (data URIs), and the outline of the worst cells."""
    found: Chart = {"quality": None, "saliency": None, "path": "", "rows": 1, "cols": 1}
    if moment.texture is not None:
        found["rows"], found["cols"] = moment.texture.shape
        found["quality"] = tiny_picture(canvas.quality_colours(scale.shares(moment.texture)))
        edges = canvas.outline_edges(worst_cells(moment.texture, scale))
        found["path"] = "".join(f"M{x0} {y0}L{x1} {y1}" for x0, y0, x1, y1 in edges)
    if moment.saliency is not None:
        found["saliency"] = tiny_picture(canvas.saliency_colours(moment.saliency))
    return found


def tiny_picture(colours: NDArray[np.uint8]) -> str:
    """Return a PNG of one pixel for each cell, uint8 RGB [row, column, 3], as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(data: bytes, media_type: str) -> str:
    """Return bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _cell(colour: NDArray[np.uint8], text: str, title: str, has_text: bool) -> Chart:
    luminance = float(np.dot(colour.astype(float), (0.299, 0.587, 0.114)))
    return {
        "fill": hex_of(colour),
        "text": text if has_text else "",
        "ink": "#000000" if luminance > 128 else "#ffffff",
        "title": title,
    }


def _videos(count: int) -> str:
    return "1 video" if count == 1 else f"{count} videos"
