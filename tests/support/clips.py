"""Small videos for whole runs."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvq_batch.media.synthesis import ClipShape, write_demo_clips


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return six small videos of one scene."""
    folder = tmp_path_factory.mktemp("clips")
    return [clip.path for clip in write_demo_clips(folder, 1, ClipShape(width_px=160, height_px=96))]


@pytest.fixture
def videos(tmp_path: Path, clips: Sequence[Path]) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for clip in clips:
        shutil.copy2(clip, folder / clip.name)
    return folder
