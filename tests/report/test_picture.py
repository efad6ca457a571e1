"""Pictures of real maps over a real video, compared with SQL and with the colours of matplotlib."""

import io
import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from kvq_batch.analysis.quality_scale import QualityScale
from kvq_batch.analysis.video_maps import VideoMaps, find_video
from kvq_batch.domain.errors import FetchError, SpecError
from kvq_batch.report import canvas, picture
from kvq_batch.report.canvas import TINT_OPACITY
from kvq_batch.report.picture import BAR_PX, CAPTION_PX, GAP_PX, MARGIN_PX, Drawn, draw_maps, picture_of
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import open_session
from tests.support.results import KVQ
from tests.support.scored import BROKEN, PLAIN, VIDEO, Scored, make_scored

WIDTH, HEIGHT = 320, 192
"""Size of a column: frames of 160x96, fitted into 320x320."""


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return make_scored(tmp_path_factory.mktemp("scored"))


def draw(scored: Scored, out: Path, video_id: str = VIDEO, clip: int | None = 0, num_slots: int = 4) -> Drawn:
    with open_session(scored.tables) as session:
        return draw_maps(session, StorageOptions(), video_id, out, None, clip, num_slots)


def find(scored: Scored, clip: int | None = 0) -> VideoMaps:
    with open_session(scored.tables) as session:
        return find_video(session, VIDEO, clip=clip)


def pixels_of(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB")).astype(np.float64)


@pytest.mark.parametrize(("num_slots", "columns"), [(1, 1), (16, 3)])
def test_sheet_has_a_column_for_each_moment(scored: Scored, tmp_path: Path, num_slots: int, columns: int) -> None:
    drawn = draw(scored, tmp_path / "new" / "maps.png", num_slots=num_slots)
    assert (drawn.model_id, drawn.model_origin) == (KVQ.model_id, "untrained")
    assert drawn.score == f"raw score {drawn.raw_score:.3g}"
    with Image.open(tmp_path / "new" / "maps.png") as opened:
        assert opened.width == columns * (WIDTH + GAP_PX) + BAR_PX + 2 * MARGIN_PX


def test_untrained_warning_is_red(scored: Scored, tmp_path: Path) -> None:
    draw(scored, tmp_path / "maps.png", num_slots=1)
    header = pixels_of(tmp_path / "maps.png")[:100]
    assert ((header[..., 0] > 170) & (header[..., 1] < 60) & (header[..., 2] < 60)).sum() > 100


def test_cells_have_the_colour_of_their_value(scored: Scored, tmp_path: Path) -> None:
    """Every cell of the saliency map, from SQL through matplotlib's viridis, is at its position."""
    draw(scored, tmp_path / "maps.png", num_slots=1)
    worst = find(scored).worst()
    with open_session(scored.tables) as session:
        cells = session.sql(
            "SELECT cell_row, cell_col, num_rows, num_cols, saliency FROM regions "
            f"WHERE slot = {worst.slot} AND clip_index = 0"
        ).to_pylist()
    pixels = pixels_of(tmp_path / "maps.png")
    # From the bottom up: margin, bars of time, gap, gap, saliency, gap, quality, caption, frame.
    bottom = pixels.shape[0] - MARGIN_PX - picture.STRIP_PX - 2 * GAP_PX
    saliency = pixels[bottom - HEIGHT : bottom, MARGIN_PX : MARGIN_PX + WIDTH]
    top = bottom - 3 * HEIGHT - GAP_PX - CAPTION_PX
    frame = pixels[top : top + HEIGHT, MARGIN_PX : MARGIN_PX + WIDTH]
    assert len(cells) == 20
    for cell in cells:
        y = int((cell["cell_row"] + 0.5) * HEIGHT / cell["num_rows"])
        x = int((cell["cell_col"] + 0.5) * WIDTH / cell["num_cols"])
        colour = np.array(matplotlib.colormaps["viridis"](np.clip(0.5 + np.log(cell["saliency"]) / np.log(16), 0, 1)))
        grey = frame[y, x] @ (0.299, 0.587, 0.114)
        expected = (1 - TINT_OPACITY) * grey + TINT_OPACITY * 255 * colour[:3]
        assert saliency[y, x] == pytest.approx(expected, abs=3), cell


def test_pictures_of_the_worst_moment_by_sql(scored: Scored) -> None:
    video = find(scored, clip=None)
    with open_session(scored.tables) as session:
        rows = session.sql("SELECT clip_index, slot, from_s, until_s FROM timeline ORDER BY raw_score").to_pylist()
    rows = [row for row in rows if row["from_s"] is not None]
    worst, best = rows[0], rows[-1]
    for moment, row in ((video.worst(), worst), (video.best(), best)):
        assert (moment.clip_index, moment.slot, moment.from_s, moment.until_s) == tuple(row.values())
    picked = video.pick(3)
    assert picked == sorted(picked, key=lambda m: (m.clip_index, m.slot))
    assert {(m.clip_index, m.slot) for m in picked} == {(r["clip_index"], r["slot"]) for r in (*rows[:2], best)}


def test_still_has_even_size_and_is_png(scored: Scored) -> None:
    with open_session(scored.tables) as session:
        data = picture_of(session, StorageOptions(), VIDEO)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "PNG"
        assert opened.width % 2 == opened.height % 2 == 0
        # A portrait or small video still has room for the header.
        assert opened.width >= 420


@pytest.mark.parametrize(
    ("size", "aspect", "expected"),
    [
        ((1920, 1080), 1.0, (320, 180)),
        ((1080, 1920), 1.0, (180, 320)),
        # DV PAL, 4:3 from pixels of 16:15.
        ((720, 576), 16 / 15, (320, 240)),
        ((640, 272), None, (320, 136)),
    ],
)
def test_frames_have_the_aspect_of_a_player(
    size: tuple[int, int], aspect: float | None, expected: tuple[int, int]
) -> None:
    assert canvas.shown_size(*size, aspect, (320, 320)) == expected


def test_outline_surrounds_the_union_of_cells() -> None:
    marked = np.zeros((3, 4), bool)
    marked[1, 1:3] = True
    edges = set(canvas.outline_edges(marked))
    assert edges == {(1, 1, 1, 2), (3, 1, 3, 2), (1, 1, 2, 1), (2, 1, 3, 1), (1, 2, 2, 2), (2, 2, 3, 2)}


def test_saliency_of_a_mean_cell_is_in_the_middle() -> None:
    shares = canvas.saliency_shares(np.array([0.0, 0.25, 0.5, 1, 2, 4, 100]))
    assert shares == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize(
    ("span", "text"),
    [
        ((4.2, 5.5), "4.2–5.5 s"),
        ((0.04, 0.08), "0.04–0.08 s"),
        ((3.0, None), "3.0 s"),
        ((55.0, 64.0), "0:55–1:04"),
        ((3599.0, 3661.0), "59:59–1:01:01"),
        ((None, None), ""),
    ],
)
def test_times_are_short(span: tuple[float | None, float | None], text: str) -> None:
    assert canvas.time_text(*span) == text


def test_colours_are_those_of_the_scale() -> None:
    scale = QualityScale("mos", 0, 100)
    for value in (0, 37, 100, 140):
        expected = np.array(matplotlib.colormaps["cividis"](min(value, 100) / 100))[:3] * 255
        assert canvas.quality_colours(scale.shares(np.array(value))) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("video_id", "clip", "name", "message"),
    [
        ("no'pe.mp4", 0, "maps.png", "has no score in these tables"),
        (BROKEN, 0, "maps.png", "has no score in these tables.*kvq-batch failures list"),
        (PLAIN, 0, "maps.png", "has no maps of luma. It has maps of no model"),
        (VIDEO, 2, "maps.png", "has no clip 2 of kvq-tiny; its clips are 0 to 1"),
        (VIDEO, 0, "maps.txt", "unknown picture format"),
    ],
)
def test_invalid_requests_are_rejected(
    scored: Scored, tmp_path: Path, video_id: str, clip: int, name: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        draw(scored, tmp_path / name, video_id, clip)
    assert not list(tmp_path.iterdir())


def test_changed_video_is_rejected(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    os.utime(scored.videos / VIDEO, (1, 1))
    with pytest.raises(FetchError) as caught:
        draw(scored, tmp_path / "maps.png")
    assert caught.value.code == "content_changed"
