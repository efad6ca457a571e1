"""Pictures of real maps over a real video."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kvq_batch.domain.errors import FetchError, SpecError
from kvq_batch.report.picture import MARGIN_PX, OPACITY, TEXT_PX, WIDTH_PX, Drawn, draw_maps
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import open_session
from tests.support.results import KVQ
from tests.support.scored import BROKEN, PLAIN, VIDEO, Scored, make_scored


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return make_scored(tmp_path_factory.mktemp("scored"))


def draw(scored: Scored, out: Path, video_id: str = VIDEO, clip: int = 0, num_slots: int = 4) -> Drawn:
    with open_session(scored.tables) as session:
        return draw_maps(session, StorageOptions(), video_id, out, None, clip, num_slots)


@pytest.mark.parametrize(("num_slots", "columns"), [(1, 1), (2, 2), (16, 3)])
def test_picture_has_three_rows_per_time_slot(scored: Scored, tmp_path: Path, num_slots: int, columns: int) -> None:
    drawn = draw(scored, tmp_path / "new" / "maps.png", num_slots=num_slots)
    assert (drawn.model_id, drawn.model_origin) == (KVQ.model_id, "untrained")
    with Image.open(tmp_path / "new" / "maps.png") as picture:
        assert picture.width == columns * (WIDTH_PX + MARGIN_PX) + MARGIN_PX
        # Three panels of 160x96 scaled to width 320; id, score, model and warning above; a line for each map below.
        panels = 3 * 192 + 2 * MARGIN_PX
        assert picture.height == panels + (4 + 2) * TEXT_PX + 3 * MARGIN_PX


def test_untrained_warning_is_red(scored: Scored, tmp_path: Path) -> None:
    draw(scored, tmp_path / "maps.png", num_slots=1)
    with Image.open(tmp_path / "maps.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    line = pixels[3 * TEXT_PX : 4 * TEXT_PX]
    assert ((line[..., 0] > 200) & (line[..., 1] < 80) & (line[..., 2] < 80)).sum() > 100
    black = pixels[: 3 * TEXT_PX].max(axis=2) < 60
    assert black.sum() > 100


def test_cells_are_drawn_at_their_position(scored: Scored, tmp_path: Path) -> None:
    """The brightest cell of the saliency map is the maximum found by SQL."""
    draw(scored, tmp_path / "maps.png", num_slots=1)
    with open_session(scored.tables) as session:
        cell = session.sql(
            "SELECT cell_row, cell_col, max(cell_row) OVER () + 1 AS num_rows, max(cell_col) OVER () + 1 AS num_cols "
            "FROM regions WHERE slot = 0 AND clip_index = 0 QUALIFY saliency = max(saliency) OVER ()"
        ).to_pylist()[0]
    with Image.open(tmp_path / "maps.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    top = 4 * TEXT_PX + MARGIN_PX
    frame, saliency = (
        pixels[first : first + 192, MARGIN_PX : MARGIN_PX + WIDTH_PX] for first in (top, top + 192 + MARGIN_PX)
    )
    grey = np.asarray(Image.fromarray(frame.astype(np.uint8)).convert("L")).astype(float)
    # Red rises with the value in every colour step; the frame is blended in.
    warmth = saliency[..., 0] - (1 - OPACITY) * grey
    height, width = 192 // cell["num_rows"], WIDTH_PX // cell["num_cols"]
    means = warmth[: height * cell["num_rows"], : width * cell["num_cols"]]
    means = means.reshape(cell["num_rows"], height, cell["num_cols"], width).mean(axis=(1, 3))
    assert np.unravel_index(means.argmax(), means.shape) == (cell["cell_row"], cell["cell_col"])


def test_score_is_that_of_the_clip(scored: Scored, tmp_path: Path) -> None:
    drawn = [draw(scored, tmp_path / "maps.png", clip=clip).raw_score for clip in (0, 1)]
    with open_session(scored.tables) as session:
        stored = session.sql(f"SELECT raw_score FROM clips WHERE model_id = '{KVQ.model_id}' ORDER BY clip_index")
    assert drawn == stored["raw_score"].to_pylist()


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
