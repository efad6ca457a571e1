"""Pictures of answers show their data; groups and errors are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from kvq_batch.domain.errors import SpecError
from kvq_batch.report.answers import draw_answer

CALIBRATION = {"model_name": "m", "calibration": "study", "b1": 5.0, "b2": 1.0, "b3": 0.5, "b4": 0.1}
CELLS = [
    {"model_name": "m", "cell_row": i, "cell_col": j, "texture": 0.1 + 0.4 * j, "saliency": 1.0, "videos": 2}
    for i in range(2)
    for j in range(3)
]


def draw(name: str, rows: list[dict[str, Any]], out: Path, **options: Any) -> np.ndarray[Any, Any]:
    draw_answer(name, pa.Table.from_pylist(rows), out, **options)
    with Image.open(out) as picture:
        return np.array(picture.convert("RGB")).astype(int)


def near(pixels: np.ndarray[Any, Any], color: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - color).sum(-1) < 12).sum())


def test_colours_of_cells_span_the_calibration(tmp_path: Path) -> None:
    """Two catalogs of different quality have different colours; cividis runs from (0, 34, 78) to (254, 232, 56)."""
    good = [row | {"texture": 0.9} for row in CELLS]
    bad = [row | {"texture": 0.1} for row in CELLS]
    pixels = {name: draw("by-cell", rows, tmp_path / f"{name}.png", calibrations=[CALIBRATION])
              for name, rows in (("good", good), ("bad", bad))}  # fmt: skip
    assert near(pixels["good"], (254, 232, 56)) > 10_000 > near(pixels["bad"], (254, 232, 56))
    assert near(pixels["bad"], (0, 34, 78)) > 10_000 > near(pixels["good"], (0, 34, 78))


def test_bars_of_a_histogram_are_as_high_as_their_counts(tmp_path: Path) -> None:
    summary = {"model_name": "m", "scale": "mos", "videos": 30, "p5": 1.2, "median": 2.5}
    bins = pa.Table.from_pylist(
        [
            {"model_name": "m", "scale": "mos", "low": 1.0 + i, "high": 2.0 + i, "videos": n}
            for i, n in ((0, 10), (1, 20))
        ]
    )
    pixels = draw("distribution", [summary], tmp_path / "d.png", bins=bins, calibrations=[CALIBRATION])
    columns = (np.abs(pixels - (0, 114, 178)).sum(-1) < 12).sum(axis=0)
    # The lines of the percentiles cross a few columns.
    low, high = (np.median(half[half > 20]) for half in np.array_split(columns, 2))
    assert high == pytest.approx(2 * low, rel=0.05)


@pytest.mark.parametrize(
    ("name", "rows", "by"),
    [
        ("distribution", [{"model_name": "m", "c": c, "scale": "raw_score", "videos": 2, "p5": 1.0, "p25": 2.0,
                           "median": 3.0, "p75": 4.0, "p95": 5.0} for c in ("$x$", None)], "c"),
        ("over-time", [{"model_name": "m", "c": "$_{", "from_share": i / 10, "until_share": (i + 1) / 10, "mos": None,
                        "raw_score": 0.5, "videos": 2} for i in range(10)], "c"),
        ("where-lost", [{"model_name": "m", "zone": zone, "share_worst_here": 0.5} for zone in ("left", "top")], None),
        ("by-run", [{"run_id": f"r{i}", "model_name": "m", "scored": i, "median": 0.5, "p5": 0.1} for i in range(4)],
         None),
    ],
)  # fmt: skip
def test_every_picture_is_drawn(name: str, rows: list[dict[str, Any]], by: str | None, tmp_path: Path) -> None:
    assert draw(name, rows, tmp_path / "x.png", by=by, untrained=["m@1"]).std() > 5
    assert near(draw(name, rows, tmp_path / "x.png", by=by, untrained=["m@1"]), (190, 0, 0)) > 50


@pytest.mark.parametrize(
    ("name", "rows", "by", "message"),
    [
        ("coverage", CELLS, None, "coverage has no picture. Draw one of: distribution, by-cell,"),
        ("by-cell", [], None, "no rows to draw"),
        ("by-cell", [row | {"c": i} for i in range(9) for row in CELLS], "c", "9 groups are too many"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(
    name: str, rows: list[dict[str, Any]], by: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        draw_answer(name, pa.Table.from_pylist(rows), tmp_path / "x.png", by)
    with pytest.raises(SpecError, match="unknown picture format"):
        draw_answer(name, pa.Table.from_pylist(rows), tmp_path / "x.svg", by)
