"""Plots show their data: scores against labels, and the curves of a training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.logistic import Logistic
from kvq_batch.report.plots import MAX_GROUPS, SCATTER_SIZE_PX, Scatter, draw_curves, draw_scatter

ROWS = [{"step": float(step), "loss": 1 / step} for step in range(1, 201)]
VALIDATIONS = [{"step": 100.0, "srcc": 0.2, "plcc": -0.1}, {"step": 200.0, "srcc": 0.8, "plcc": 0.7}]
BLUE, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)


def pixels_like(path: Path, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(x, y) of the pixels of a colour below the legend."""
    with Image.open(path) as picture:
        rgb = np.array(picture.convert("RGB")).astype(int)
    rows, columns = np.nonzero(np.abs(rgb - colour).sum(-1) < 12)
    return [(x, y) for x, y in zip(columns.tolist(), rows.tolist(), strict=True) if y > 59]


def test_curves_follow_their_rows(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "curve.png"
    draw_curves(ROWS, VALIDATIONS, "toy@1", out)
    for colour, is_falling, left in ((BLUE, True, True), (ORANGE, False, False), (GREEN, False, False)):
        places = sorted(pixels_like(out, colour))
        assert len(places) > 30, colour
        assert all((x < 480) == left for x, _ in places)
        # Rows of a picture count from the top.
        assert (places[0][1] < places[-1][1]) == is_falling, colour


def test_single_step_without_validation_is_drawn(tmp_path: Path) -> None:
    draw_curves(ROWS[:1], [], "toy@1", tmp_path / "curve.png")
    assert pixels_like(tmp_path / "curve.png", BLUE)


def test_curves_reject_no_step_and_bad_format(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no step to draw"):
        draw_curves([], [], "toy@1", tmp_path / "curve.png")
    with pytest.raises(SpecError, match="unknown picture format"):
        draw_curves(ROWS, [], "toy@1", tmp_path / "curve.svg")


def test_group_names_are_drawn_literally(tmp_path: Path) -> None:
    names = ["$a_{$", "_hidden", "日本", "x" * 100]
    x = np.arange(4.0)
    draw_scatter(Scatter(x, x, None, [("100% $ [x]", False)], "$x", "y$", names), tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 1000


def scatter(num: int, groups: int | None = None) -> Scatter:
    x = np.linspace(-2, 2, num)
    names = None if groups is None else [f"a group with a long name {i % groups}" for i in range(num)]
    return Scatter(
        x, 50 + 20 * np.tanh(x), Logistic(70, 30, 0, 0.5), [("title", False), ("bad", True)], "x", "y", names
    )


@pytest.mark.parametrize(("num", "groups"), [(1, None), (40, 3), (40, MAX_GROUPS), (40, MAX_GROUPS + 1), (4000, None)])
def test_scatter_has_points_curve_and_title(tmp_path: Path, num: int, groups: int | None) -> None:
    draw_scatter(scatter(num, groups), tmp_path / "deep" / "s.png")
    with Image.open(tmp_path / "deep" / "s.png") as picture:
        assert picture.size == SCATTER_SIZE_PX
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    assert red[:80].any(), "the warning"
    inside = pixels[100:590, 100:920]
    coloured = inside.max(axis=2) - inside.min(axis=2) > 40
    assert coloured.any(), "the points"
    assert num == 1 or (inside.max(axis=2) < 40).any(), "the curve"
    # Low scores are at the bottom left, high ones at the top right.
    rows, columns = np.nonzero(coloured)
    assert num == 1 or rows[columns.argmin()] > rows[columns.argmax()]


def test_scatter_rejects_bad_format_and_no_videos(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown picture format"):
        draw_scatter(scatter(5), tmp_path / "s.pdf")
    with pytest.raises(SpecError, match="no videos to draw"):
        draw_scatter(scatter(0), tmp_path / "s.png")
