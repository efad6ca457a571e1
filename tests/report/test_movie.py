"""Moving pictures, read again by Pillow and PyAV."""

from pathlib import Path

import av
import pytest
from PIL import Image

from kvq_batch.domain.errors import SpecError
from kvq_batch.report.movie import ENCODINGS, write_movie
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.session import open_session
from tests.support.scored import VIDEO, Scored, make_scored


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return make_scored(tmp_path_factory.mktemp("scored"))


def test_mp4_shows_the_whole_video_faster(scored: Scored, tmp_path: Path) -> None:
    out = tmp_path / "new" / "maps.mp4"
    with open_session(scored.tables) as session:
        write_movie(session, StorageOptions(), VIDEO, out, max_seconds=0.6)
    with av.open(str(out)) as opened:
        stream = opened.streams.video[0]
        frames = list(opened.decode(stream))
        assert (stream.codec_context.name, float(stream.average_rate or 0), len(frames)) == ("h264", 10.0, 6)
        assert {(frame.width % 2, frame.height % 2) for frame in frames} == {(0, 0)}


def test_gif_repeats_nothing_and_moves(scored: Scored, tmp_path: Path) -> None:
    with open_session(scored.tables) as session:
        write_movie(session, StorageOptions(), VIDEO, tmp_path / "maps.gif", clip=0, max_seconds=0.6)
    with Image.open(tmp_path / "maps.gif") as opened:
        assert getattr(opened, "n_frames", 1) == round(0.6 * ENCODINGS[".gif"].frames_per_s)


def test_other_formats_are_rejected(scored: Scored, tmp_path: Path) -> None:
    with (
        open_session(scored.tables) as session,
        pytest.raises(SpecError, match=r"maps\.avi: unknown format.*\.mp4 or \.gif"),
    ):
        write_movie(session, StorageOptions(), VIDEO, tmp_path / "maps.avi")
