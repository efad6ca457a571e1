"""Plots drawn with matplotlib: scores against labels, and the curves of a training."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.logistic import Logistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kvq_batch.evaluation.scores import Result
    from kvq_batch.labels.files import Scale

FORMATS = (".png", ".jpg", ".jpeg", ".webp")
SCATTER_SIZE_PX = (960, 720)
CURVES_SIZE_PX = (960, 420)
MAX_GROUPS = 8

_DPI = 100
_MAX_NAME_CHARS = 24
# The colour-blind safe palette of Okabe and Ito (2008), blue first; yellow and black are replaced by grey and olive.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#646464", "#a09600")
_BLUE, _LIGHT_BLUE, _ORANGE, _GREEN = PALETTE[0], "#aacde6", PALETTE[3], PALETTE[2]
WARNING = "#be0000"
_MAX_MARKED_POINTS = 60
_MOVING_MEAN_SHARE = 50
"""The moving mean spans 1/50 of the training, so that long and short ones look equally smooth."""

Row = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scatter:
    """Contents of a scatter plot: `scores` and `labels` float64 [N], the fitted curve, title and axis names.

    `groups` [N] colours the points, if it has at most MAX_GROUPS distinct values. A line of `title` with True is a
    warning and drawn in red.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.float64]
    curve: Logistic | None
    title: Sequence[tuple[str, bool]]
    x_name: str
    y_name: str
    groups: Sequence[str] | None = None


def scatter_of(result: "Result", dataset: str, scale: "Scale | None") -> Scatter:
    """Return the scatter plot of one model against the labels of `dataset`."""
    model, agreement = result.model, result.agreement
    of = f"{agreement.num_videos} videos"
    if model.references is not None:
        of += f" of {agreement.num_references} references"
    values = {name: agreement.metrics[name].value for name in ("srcc", "plcc", "rmse")}
    metrics = ", ".join(f"{name.upper()} {value:.3f}" for name, value in values.items() if value is not None)
    title = [(f"{model.model_id} on {dataset}: {of}", False), (metrics or agreement.row()["remarks"], False)]
    if model.origin == "untrained":
        title.append(("UNTRAINED: random weights, scores do not measure quality", True))
    return Scatter(
        scores=model.scores,
        labels=model.labels,
        curve=agreement.curve,
        title=title,
        x_name="raw score (of the model, without a unit)",
        y_name=f"label of {dataset}, {'scale unknown' if scale is None else f'scale {scale}'}",
        groups=model.segments,
    )


def draw_scatter(scatter: Scatter, out: Path) -> None:
    """Draw a point for each video and the fitted curve.

    Raises:
        SpecError: no videos, an unknown picture format, or a file that cannot be written.
    """
    check_format(out)
    if not len(scatter.scores):
        raise SpecError(f"{out}: no videos to draw.")
    figure = make_figure(SCATTER_SIZE_PX)
    axes = figure.add_subplot()
    style(axes)
    num = len(scatter.scores)
    size = 40 if num <= 500 else 22 if num <= 3000 else 10
    groups = np.array(scatter.groups if scatter.groups is not None else [""] * num)
    names = sorted(set(groups.tolist()))
    if len(names) > MAX_GROUPS:
        groups, names = np.array([""] * num), [""]
    points = [
        axes.scatter(
            scatter.scores[groups == name], scatter.labels[groups == name], s=size, color=color, alpha=0.5, linewidths=0
        )
        for name, color in zip(names, PALETTE, strict=False)
    ]
    low, high = axes.get_ylim()
    if scatter.curve is not None:
        x = np.linspace(scatter.scores.min(), scatter.scores.max(), 300)
        axes.plot(x, np.clip(scatter.curve(x), low, high), color="black", linewidth=2.5)
        axes.set_ylim(low, high)
    axes.set_xlabel(scatter.x_name, parse_math=False)
    axes.set_ylabel(scatter.y_name, parse_math=False)
    if names != [""]:
        legend = figure.legend(points, [shorten(name) for name in names], loc="outside lower left", ncols=4)
        for text in legend.get_texts():
            text.set_parse_math(False)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    # One text per line: a warning has its own colour. Drawn from the lowest line up.
    for i, (line, is_warning) in enumerate(reversed(scatter.title)):
        axes.annotate(
            line, (0, 1), (0, 6 + 16 * i), xycoords="axes fraction", textcoords="offset points", fontsize=11,
            color=WARNING if is_warning else "black", parse_math=False, annotation_clip=False,
        )  # fmt: skip
    save(figure, out)


def draw_leaderboard(rows: Sequence[Mapping[str, Any]], dataset: str, out: Path) -> None:
    """Draw the SRCC of each model with its interval, the best on top, and its cost; models without one are left out.

    `rows` are those of `evaluation.leaderboard`.

    Raises:
        SpecError: no model has an SRCC, an unknown picture format, or a file that cannot be written.
    """
    check_format(out)
    shown = [row for row in rows if row["srcc"] is not None]
    if not shown:
        raise SpecError(f"{out}: no model has a rank correlation to draw.")
    figure = make_figure((960, 150 + 42 * len(shown)))
    axes = figure.add_subplot()
    style(axes)
    for height, row in enumerate(reversed(shown)):
        colour = WARNING if row["model_origin"] == "untrained" else _BLUE
        low, high = (row["srcc"] if row[end] is None else row[end] for end in ("srcc_low", "srcc_high"))
        axes.plot([low, high], [height, height], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([row["srcc"]], [height], "o", color=colour, markersize=8)
        cost = "" if row["core_s"] is None else f"{row['core_s']:.3g} core-s a video"
        axes.annotate(
            f"{row['srcc']:.3f}   {cost}", (1, height), (6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=10, annotation_clip=False,
        )  # fmt: skip
    names = [shorten(row["model_name"]) + " (untrained)" * (row["model_origin"] == "untrained") for row in shown]
    axes.set_yticks(range(len(shown)), names[::-1])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel("SRCC with 95% interval")
    counts = sorted({row["videos"] for row in shown})
    videos = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    axes.set_title(f"{dataset}: {videos} videos", loc="left", fontsize=12, parse_math=False)
    save(figure, out)


def draw_curves(curve: Sequence[Row], validations: Sequence[Row], title: str, out: Path) -> None:
    """Draw the loss over the steps of a training, and SRCC and PLCC of its validations.

    `curve` has the columns step and loss, `validations` step, srcc and plcc.

    Raises:
        SpecError: no step yet, an unknown picture format, or a file that cannot be written.
    """
    check_format(out)
    if not curve:
        raise SpecError(f"{out}: no step to draw yet.")
    figure = make_figure(CURVES_SIZE_PX)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, parse_math=False)
    loss_axes, correlation_axes = figure.subplots(1, 2)
    steps, losses = _column(curve, "step"), _column(curve, "loss")
    _plot(loss_axes, steps, [("loss", _LIGHT_BLUE, 1, losses), ("moving mean", _BLUE, 2, moving_mean(losses))])
    loss_axes.set_ylim(bottom=min(0.0, float(losses.min())))
    if validations:
        at, srcc, plcc = (_column(validations, name) for name in ("step", "srcc", "plcc"))
        _plot(correlation_axes, at, [("SRCC", _ORANGE, 2, srcc), ("PLCC", _GREEN, 2, plcc)])
        correlation_axes.set_ylim(min(0.0, float(srcc.min()), float(plcc.min())) - 0.02, 1.02)
        correlation_axes.set_xlim(loss_axes.get_xlim())
    else:
        correlation_axes.set_visible(False)
    save(figure, out)


def moving_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each value and those before it, over 1 / _MOVING_MEAN_SHARE of all values."""
    span = max(1, len(values) // _MOVING_MEAN_SHARE)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) + 1 - span, 0)
    counts = np.arange(len(values)) + 1 - first
    mean: NDArray[np.float64] = (sums[1:] - sums[first]) / counts
    return mean


def _plot(axes: "Axes", steps: NDArray[np.float64], lines: Sequence[tuple[str, str, int, NDArray[np.float64]]]) -> None:
    """Plot lines of (name, color, width, values) over the steps, with the legend above the axes."""
    style(axes)
    marker = "o" if len(steps) <= _MAX_MARKED_POINTS else ""
    for name, color, width, values in lines:
        axes.plot(steps, values, color=color, linewidth=width, marker=marker, markersize=5, label=name)
    axes.set_xlabel("step")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(lines), frameon=False, borderaxespad=0.2)


def make_figure(size_px: tuple[int, int]) -> "Figure":
    """Return an empty figure of this width and height."""
    # Not pyplot: it keeps global state and looks for a display.
    from matplotlib.figure import Figure

    return Figure((size_px[0] / _DPI, size_px[1] / _DPI), dpi=_DPI, layout="constrained")


def style(axes: "Axes") -> None:
    """Draw a light grid behind the data."""
    axes.set_axisbelow(True)
    axes.grid(color="#e1e1e1")


def shorten(name: str, max_chars: int = _MAX_NAME_CHARS) -> str:
    """Return `name`, cut if it is longer than `max_chars`."""
    return name if len(name) <= max_chars else f"{name[: max_chars - 1]}…"


def _column(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows], np.float64)


def check_format(out: Path) -> None:
    """Raises: SpecError if the file name has no known picture format."""
    if out.suffix.lower() not in FORMATS:
        raise SpecError(f"{out}: unknown picture format. Use {', '.join(FORMATS)}.")


def save(figure: "Figure", out: Path) -> None:
    """Write a figure. Raises: SpecError if the file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # Names of users may have characters that the font lacks; they are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(out, format=out.suffix.lower().removeprefix("."))
    except (OSError, ValueError) as error:
        raise SpecError(f"Cannot write {out}: {error}") from error
