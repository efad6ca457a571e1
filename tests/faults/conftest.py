"""Fixtures of the fault tests: small videos, trials, and a report of what each fault cost."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.media.synthesis import ClipShape, write_demo_clips
from tests.support.material import ffmpeg
from tests.support.trial import Trial, memory_folder

REPORT = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def tiny_clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return six videos of one scene, 160x96, 24 frames, and a black one at the end."""
    folder = tmp_path_factory.mktemp("clips")
    shape = ClipShape(width_px=160, height_px=96, num_frames=24)
    clips = [clip.path for clip in write_demo_clips(folder, 1, shape)]
    ffmpeg("-f", "lavfi", "-i", "color=black:size=160x96:rate=24:duration=1", str(folder / "black.mp4"))
    return [*clips, folder / "black.mp4"]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that adds a line to the report at the end of the session."""
    lines: list[str] = request.config.stash.setdefault(REPORT, [])
    return lines.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(REPORT, [])
    if lines:
        terminalreporter.section("what each fault cost")
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture
def make_trial(tmp_path: Path, tiny_clips: list[Path]) -> Iterator[Callable[..., Trial]]:
    with ExitStack() as stack:

        def make(names: list[str], **more: Any) -> Trial:
            trial = Trial(tmp_path, stack.enter_context(memory_folder()), tiny_clips, names, **more)
            stack.callback(trial.close)
            return trial

        yield make
