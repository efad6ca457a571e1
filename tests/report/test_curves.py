"""The picture of a training shows its rows, and is refused where there are none."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kvq_batch.domain.errors import SpecError
from kvq_batch.report.curves import draw_curves

ROWS = [{"step": float(step), "loss": 1 / step} for step in range(1, 201)]
VALIDATIONS = [{"step": 100.0, "srcc": 0.2, "plcc": -0.1}, {"step": 200.0, "srcc": 0.8, "plcc": 0.7}]
BLUE, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)


def pixels_like(path: Path, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(x, y) of the pixels of a colour below the legend."""
    with Image.open(path) as picture:
        rgb = np.array(picture.convert("RGB")).astype(int)
    rows, columns = np.nonzero(np.abs(rgb - colour).sum(-1) < 12)
    return [(x, y) for x, y in zip(columns.tolist(), rows.tolist(), strict=True) if y > 59]


def test_curves_fall_and_rise_as_their_rows_do(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "curve.png"
    draw_curves(ROWS, VALIDATIONS, "toy@1", out)
    for colour, is_falling, left in ((BLUE, True, True), (ORANGE, False, False), (GREEN, False, False)):
        places = sorted(pixels_like(out, colour))
        assert len(places) > 30, colour
        assert all((x < 480) == left for x, _ in places)
        # Rows of a picture count from the top.
        assert (places[0][1] < places[-1][1]) == is_falling, colour


def test_a_single_step_without_a_validation_is_drawn(tmp_path: Path) -> None:
    draw_curves(ROWS[:1], [], "toy@1", tmp_path / "curve.png")
    assert pixels_like(tmp_path / "curve.png", BLUE)


def test_no_step_and_no_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no step to draw"):
        draw_curves([], [], "toy@1", tmp_path / "curve.png")
    with pytest.raises(SpecError, match="written as"):
        draw_curves(ROWS, [], "toy@1", tmp_path / "curve.svg")
