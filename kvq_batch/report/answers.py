"""Pictures of the answers of `kvq-batch analyze`: a histogram, bars of percentiles, heat maps of the frame, and lines.

Colours have a fixed meaning: the palette of Okabe and Ito for models and groups, in the order of their names; cividis
for quality, viridis for everything else, as in all pictures (`canvas`). Dark is low. The colours of texture span the
calibration of the model, not the data, so that pictures of different nights and catalogs can be compared.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvq_batch.analysis.comparison import Comparison
from kvq_batch.domain.errors import SpecError
from kvq_batch.report.canvas import QUALITY_COLOURS, SALIENCY_COLOURS
from kvq_batch.report.plots import PALETTE, WARNING, check_format, make_figure, save, shorten, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = ("distribution", "by-cell", "over-time", "where-lost", "by-run")
"""Questions whose answers can be drawn."""

_WIDTH_PX = 960
_MAX_GROUPS, _MAX_BARS = len(PALETTE), 30
_MAX_RUN_NAMES = 12
_MAX_POINTS = 5_000
_ZONES = {
    name: divmod(number, 3)
    for number, name in enumerate(
        (
            *("upper left", "top", "upper right"),
            *("left", "centre", "right"),
            *("lower left", "bottom", "lower right"),
        )
    )
}
_LOGISTIC_ENDS = math.log(19)
"""A logistic passes 5% and 95% of its range at this many scales from its centre."""

Rows = Sequence[Mapping[str, Any]]
Ends = Mapping[str, tuple[float, float]]


def draw_answer(
    name: str,
    answer: pa.Table,
    out: Path,
    by: str | None = None,
    bins: pa.Table | None = None,
    calibrations: Rows = (),
    untrained: Sequence[str] = (),
) -> None:
    """Draw the answer to the question `name`, which was asked with `by`.

    `bins` (model_name, scale, low, high, videos) is drawn as a histogram of `distribution` if there is no `by`.
    `calibrations` (model_name, calibration, b1 to b4) names the scale of `mos`. `untrained` are ids of models that the
    picture warns about.

    Raises:
        SpecError: a question without a picture, no rows, too many groups, an unknown picture format, or a file that
            cannot be written.
    """
    check_format(out)
    rows: list[dict[str, Any]] = answer.to_pylist()
    if name not in PICTURES:
        raise SpecError(f"{out}: {name} has no picture. Draw one of: {', '.join(PICTURES)}.")
    if not rows:
        raise SpecError(f"{out}: the answer has no rows to draw.")
    names = {row["model_name"]: str(row["calibration"]) for row in calibrations}
    match name:
        case "distribution":
            if by is None and bins is not None:
                figure = _histograms(bins.to_pylist(), rows, names)
            else:
                figure = _percentiles(rows, by, names)
        case "by-cell":
            figure = _cells(rows, by, {row["model_name"]: _ends(row) for row in calibrations}, out)
        case "where-lost":
            figure = _zones(rows, by, out)
        case "over-time":
            figure = _over_time(rows, by, names, out)
        case _:
            figure = _by_run(rows, names)
    if untrained:
        names_of_models = shorten(", ".join(untrained), 60)
        warning = f"UNTRAINED: random weights, scores do not measure quality: {names_of_models}"
        figure.text(0.01, 0.01, warning, color=WARNING, fontsize=9, parse_math=False)
    save(figure, out)


def draw_comparison(comparison: Comparison, out: Path) -> None:
    """Draw the scores of both sides against each other, and how far the textures of each cell agree.

    Raises:
        SpecError: an unknown picture format, or a file that cannot be written.
    """
    check_format(out)
    summary = comparison.summary
    figure = make_figure((_WIDTH_PX, 480))
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    x, y = (comparison.scores[name].to_numpy() for name in ("score_from", "score_to"))
    ends = (min(x.min(), y.min()), max(x.max(), y.max())) if summary["scale"] else None
    style(left)
    if len(x) > _MAX_POINTS:
        drawn = left.hexbin(x, y, gridsize=60, bins="log", mincnt=1, cmap="viridis")
        figure.colorbar(drawn, ax=left, shrink=0.7).set_label("videos")
    else:
        left.scatter(x, y, s=14, color=PALETTE[0], alpha=0.5, linewidths=0)
    if ends is not None:
        left.plot(ends, ends, color="black", linewidth=1, linestyle="--", label="no change")
        left.legend(frameon=False, loc="upper left")
    unit = summary["scale"] or "raw_score or mos"
    left.set_xlabel(f"{unit} of {shorten(summary['from'], 40)}", parse_math=False)
    left.set_ylabel(f"{unit} of {shorten(summary['to'], 40)}", parse_math=False)
    numbers = [f"{name.upper()} {summary[name]:.3f}" for name in ("srcc", "plcc") if summary[name] is not None]
    if summary["median_shift"] is not None:
        numbers.append(f"median {summary['median_shift']:+.3g}")
    left.set_title(", ".join([f"{len(x):,} videos", *numbers]), loc="left", fontsize=11)
    plcc = [row for row in comparison.cells if row["plcc"] is not None]
    if plcc:
        values = np.full([1 + max(row[name] for row in comparison.cells) for name in ("cell_row", "cell_col")], np.nan)
        for row in plcc:
            values[row["cell_row"], row["cell_col"]] = row["plcc"]
        title = f"texture of each cell, {summary['map_videos']:,} videos"
        _heat_map(figure, right, values, (0.0, 1.0), "PLCC of from and to", title)
    else:
        right.set_visible(False)
    save(figure, out)


def _histograms(bins: Rows, rows: Rows, names: Mapping[str, str]) -> "Figure":
    """Draw one histogram for each model, with the 5th percentile and the median of `rows`."""
    models = [row["model_name"] for row in rows]
    figure = make_figure((_WIDTH_PX, 60 + 250 * len(models)))
    for axes, row in zip(_column(figure, len(models)), rows, strict=True):
        own = [entry for entry in bins if entry["model_name"] == row["model_name"]]
        low = np.array([entry["low"] for entry in own])
        widths = np.array([entry["high"] for entry in own]) - low
        style(axes)
        counts = [entry["videos"] for entry in own]
        axes.bar(low, counts, widths, align="edge", color=PALETTE[0], edgecolor="white", linewidth=0.5)
        for value, text, line in ((row["p5"], "5% are below", "--"), (row["median"], "median", "-")):
            axes.axvline(value, color="black", linewidth=1.5, linestyle=line, label=f"{text} {value:.4g}")
        axes.legend(loc="upper left", frameon=False)
        axes.set_ylabel("videos")
        axes.set_xlabel(_unit(row["scale"], names.get(row["model_name"])), parse_math=False)
        axes.set_title(f"{row['model_name']}: {row['videos']:,} videos", loc="left", fontsize=11, parse_math=False)
    return figure


def _percentiles(rows: Rows, by: str | None, names: Mapping[str, str]) -> "Figure":
    """Draw one bar for each group: 5 to 95%, 25 to 75%, median. The groups with most videos, if there are many."""
    models = sorted({row["model_name"] for row in rows})
    groups = {model: [row for row in rows if row["model_name"] == model] for model in models}
    shown = {
        model: sorted(sorted(group, key=lambda row: -row["videos"])[:_MAX_BARS], key=lambda row: row["median"])
        for model, group in groups.items()
    }
    heights = [len(group) for group in shown.values()]
    figure = make_figure((_WIDTH_PX, 60 + sum(90 + 26 * height for height in heights)))
    for axes, (model, group) in zip(_column(figure, len(models), heights), shown.items(), strict=True):
        style(axes)
        at = np.arange(len(group))
        low, high = (np.array([row[name] for row in group]) for name in ("p5", "p95"))
        left, right = (np.array([row[name] for row in group]) for name in ("p25", "p75"))
        axes.hlines(at, low, high, color=PALETTE[0], linewidth=2, label="5% to 95%")
        axes.barh(at, right - left, 0.5, left, color="#aacde6", label="25% to 75%")
        axes.plot([row["median"] for row in group], at, "|", color="black", markersize=12, markeredgewidth=2)
        axes.set_yticks(at, [f"{_name(row, by)}  ({row['videos']:,})" for row in group], parse_math=False)
        axes.set_ylim(len(group) - 0.5, -0.5)
        axes.set_xlabel(_unit(group[0]["scale"], names.get(model)), parse_math=False)
        hidden = len(groups[model]) - len(group)
        more = f"; {hidden} smaller groups are not shown" if hidden else ""
        title = f"{model} by {by}: 5% to 95%, 25% to 75%, median; videos in brackets{more}"
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    return figure


def _cells(rows: Rows, by: str | None, ends: Ends, out: Path) -> "Figure":
    """Draw texture and saliency of each cell of the frame, one row of two heat maps for each model and group."""
    groups = _grouped(rows, by, out)
    figure = make_figure((_WIDTH_PX, 330 * len(groups)))
    table = figure.subplots(len(groups), 2, squeeze=False)
    for (left, right), ((model, name), group) in zip(table, groups.items(), strict=True):
        shape = (1 + max(row["cell_row"] for row in group), 1 + max(row["cell_col"] for row in group))
        videos = max(row["videos"] for row in group)
        for axes, column in ((left, "texture"), (right, "saliency")):
            values = np.full(shape, np.nan)
            for row in group:
                values[row["cell_row"], row["cell_col"]] = np.nan if row[column] is None else row[column]
            # 1 is the mean of saliency in any frame.
            span = ends.get(model) if column == "texture" else (0.0, 2.0)
            unit = "raw score" if column == "texture" else "1 is the mean"
            title = f"{column}, mean of {videos:,} videos"
            colours = QUALITY_COLOURS if column == "texture" else SALIENCY_COLOURS
            _heat_map(figure, axes, values, span, f"{column} ({unit})", f"{model}{name}: {title}", colours)
    return figure


def _zones(rows: Rows, by: str | None, out: Path) -> "Figure":
    """Draw in which ninth of the frame how many videos are at their worst."""
    groups = _grouped(rows, by, out)
    figure = make_figure((_WIDTH_PX // 2 + 100, 330 * len(groups)))
    for axes, ((model, name), group) in zip(_column(figure, len(groups)), groups.items(), strict=True):
        values = np.zeros((3, 3))
        for row in group:
            values[_ZONES[row["zone"]]] = 100 * row["share_worst_here"]
        _heat_map(figure, axes, values, (0.0, 100.0), "% of the videos", f"{model}{name}: lowest texture is here")
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if value < 60 else "black"
            axes.text((j + 0.5) / 3, (i + 0.5) / 3, f"{value:.0f}%", color=colour, ha="center", va="center")
    return figure


def _heat_map(
    figure: "Figure",
    axes: "Axes",
    values: NDArray[np.float64],
    span: tuple[float, float] | None,
    unit: str,
    title: str,
    colours: str = "viridis",
) -> None:
    low, high = span or (float(np.nanmin(values)), float(np.nanmax(values)))
    image = axes.imshow(
        values, cmap=colours, vmin=low, vmax=high, extent=(0, 1, 1, 0), aspect=9 / 16, interpolation="nearest"
    )
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlabel("share of the width")
    axes.set_ylabel("share of the height")
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    outside = (
        "both"
        if np.nanmin(values) < low and np.nanmax(values) > high
        else ("min" if np.nanmin(values) < low else "max" if np.nanmax(values) > high else "neither")
    )
    bar = figure.colorbar(image, ax=axes, extend=outside, shrink=0.7)
    bar.set_label(unit if span else f"{unit}, range of these data")


def _over_time(rows: Rows, by: str | None, names: Mapping[str, str], out: Path) -> "Figure":
    """Draw the quality of each tenth of a video, one line for each group, one plot for each model."""
    groups = _grouped(rows, by, out)
    models = sorted({model for model, _ in groups})
    figure = make_figure((_WIDTH_PX, 60 + 300 * len(models)))
    for axes, model in zip(_column(figure, len(models)), models, strict=True):
        style(axes)
        own = {name: group for (of, name), group in groups.items() if of == model}
        scale = "mos" if any(row["mos"] is not None for group in own.values() for row in group) else "raw_score"
        for color, (name, group) in zip(PALETTE, own.items(), strict=False):
            middle = [50 * (row["from_share"] + row["until_share"]) for row in group]
            label = shorten(name.removeprefix(", ") or "all videos")
            axes.plot(middle, [row[scale] for row in group], "o-", color=color, linewidth=2, markersize=5, label=label)
        axes.set_xlim(0, 100)
        axes.set_xlabel("position in the video, % of its duration")
        axes.set_ylabel(_unit(scale, names.get(model)), parse_math=False)
        title = f"{model}: mean of each tenth of a video"
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
        _legend(axes)
    return figure


def _by_run(rows: Rows, names: Mapping[str, str]) -> "Figure":
    """Draw the median and the 5th percentile of what each run scored, the oldest first."""
    scored = [row for row in rows if row["scored"]]
    models = sorted({row["model_name"] for row in scored})
    figure = make_figure((_WIDTH_PX, 100 + 300 * max(1, len(models))))
    for axes, model in zip(_column(figure, max(1, len(models))), models, strict=False):
        style(axes)
        own = [row for row in reversed(scored) if row["model_name"] == model]
        at = np.arange(len(own))
        for name, color, label in (("median", PALETTE[0], "median"), ("p5", PALETTE[3], "5% are below")):
            axes.plot(at, [row[name] for row in own], "o-", color=color, linewidth=2, markersize=5, label=label)
        step = math.ceil(len(own) / _MAX_RUN_NAMES)
        names_of_runs = [f"{row['run_id']}\n{row['scored']:,} videos" for row in own[::step]]
        axes.set_xticks(at[::step], names_of_runs, parse_math=False, rotation=30, ha="right", fontsize=8)
        axes.set_ylabel(_unit("mos" if model in names else "raw_score", names.get(model)), parse_math=False)
        axes.set_title(f"{model}: scores of each run", loc="left", fontsize=11, parse_math=False)
        axes.legend(frameon=False)
    return figure


def _grouped(rows: Rows, by: str | None, out: Path) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Return rows by (model, name of the group). Raises: SpecError for more groups than have a colour."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        name = "" if by is None else f", {by} {shorten(_name(row, by))}"
        groups.setdefault((row["model_name"], name), []).append(row)
    if len(groups) > _MAX_GROUPS:
        raise SpecError(
            f"{out}: {len(groups)} groups are too many for one picture (at most {_MAX_GROUPS}). Select some with "
            "--where, or group by another column."
        )
    return groups


def _legend(axes: "Axes") -> None:
    if len(axes.lines) > 1:
        for text in axes.legend(frameon=False).get_texts():
            text.set_parse_math(False)


def _column(figure: "Figure", count: int, heights: Sequence[float] | None = None) -> "list[Axes]":
    table = figure.subplots(
        count, 1, squeeze=False, height_ratios=None if heights is None else [h + 3 for h in heights]
    )
    return [row[0] for row in table]


def _name(row: Mapping[str, Any], by: str | None) -> str:
    return "all videos" if by is None else "(null)" if row[by] is None else shorten(str(row[by]))


def _unit(scale: str, calibration: str | None) -> str:
    """Return the name of an axis with its unit."""
    return f"mos (calibration {calibration})" if scale == "mos" and calibration else f"{scale} (without a unit)"


def _ends(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the raw scores at 5% and 95% of the range of a calibration."""
    reach = abs(row["b4"]) * _LOGISTIC_ENDS
    return (row["b3"] - reach, row["b3"] + reach)
