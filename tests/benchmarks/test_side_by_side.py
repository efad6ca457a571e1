"""The comparison checks that all ways did the same work, measures their processes and reports broken videos."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.crafted import killer
from benchmarks.process_tree import ProcessTree
from benchmarks.side_by_side import Cost, Trial, best, check_agreement, run_way, verdict
from benchmarks.ways import our_clip, plain_clip
from kvq_batch.domain.errors import FatalError
from kvq_batch.domain.scorer import ModelOptions
from kvq_batch.media.synthesis import ClipShape, write_demo_clips
from kvq_batch.models import registry

NAMES = ["a.mp4", "b.mp4", "c.mp4"]


def trial(scores: dict[str, float], exit_code: int | None = 0, failures: dict[str, str] | None = None) -> Trial:
    return Trial(scores=scores, frames={name: [0, 2] for name in scores}, exit_code=exit_code, failures=failures or {})


def test_comparison_stops_if_frames_or_scores_differ() -> None:
    whole = trial({"a.mp4": 40.0, "b.mp4": -0.5})
    check_agreement({"ours": whole, "loop": trial({"a.mp4": 40.003, "b.mp4": -0.50005})}, NAMES[:2])
    with pytest.raises(FatalError, match=r"b\.mp4: ours scores it -0\.500000, loop -0\.499500"):
        check_agreement({"ours": whole, "loop": trial({"a.mp4": 40.0, "b.mp4": -0.4995})}, NAMES[:2])
    other = trial({"a.mp4": 40.0, "b.mp4": -0.5})
    other.frames["a.mp4"] = [0, 3]
    with pytest.raises(FatalError, match=r"a\.mp4: loop read other frames than ours"):
        check_agreement({"ours": whole, "loop": other}, NAMES[:2])
    with pytest.raises(FatalError, match="loop: 1 of 2 scored, exit 1"):
        check_agreement({"ours": whole, "loop": trial({"a.mp4": 40.0}, 1)}, NAMES[:2])


def test_cost_of_a_video_is_the_difference_of_two_runs() -> None:
    few = Trial(scores={f"{n}": 1.0 for n in range(12)}, seconds=16.0, core_seconds=23.0, peak_bytes=7)
    many = Trial(scores={f"{n}": 1.0 for n in range(60)}, seconds=40.0, core_seconds=47.0, peak_bytes=5)
    assert Cost.of(few, many) == Cost(video_s=0.5, video_core_s=0.5, start_s=10.0, start_core_s=17.0, peak_bytes=7)


def test_best_of_several_trials_has_least_costs() -> None:
    first, second = trial({"a.mp4": 40.0}), trial({"a.mp4": 40.0})
    first.seconds, first.core_seconds, second.seconds, second.core_seconds = 3.0, 9.0, 4.0, 8.0
    found = best([first, second])
    assert (found.seconds, found.core_seconds, found.scores) == (3.0, 8.0, first.scores)


@pytest.mark.parametrize("model", ["kvq-lite", "luma-sharpness"])
def test_plain_reader_makes_the_clip_that_the_model_requests(model: str, videos: Path) -> None:
    (request,) = registry.describe(ModelOptions(model)).requests
    ours, our_indices = our_clip(videos / "a.mp4", request)
    plain, indices = plain_clip(videos / "a.mp4", request)
    assert ours.shape == plain.shape == (*ours.shape[:1], *(request.size or ()), 3)
    assert our_indices == indices
    assert np.array_equal(ours, plain)


def test_verdict_counts_other_videos_and_names_the_broken_one() -> None:
    good = {"a.mp4": 1.0, "b.mp4": 1.0}
    assert verdict(trial(good, failures={"c.mp4": "truncated"}), NAMES[:2], "c.mp4") == (
        "succeeds; scores all 2 others; names it (truncated)"
    )
    assert verdict(trial({"a.mp4": 1.0}, -9), NAMES[:2], "c.mp4") == (
        "is killed by SIGKILL; loses 1 of 2 others; does not name it"
    )
    assert verdict(trial({}, None), NAMES[:2], "c.mp4") == (
        "still running after 0 s; loses 2 of 2 others; does not name it"
    )
    assert verdict(trial({**good, "c.mp4": 1.0}), NAMES[:2], "c.mp4") == (
        "succeeds; scores all 2 others; gives it a score as if it were whole"
    )
    failed = trial({"a.mp4": 1.0}, 1)
    failed.log = "RuntimeError: cannot open /videos/c.mp4"
    assert verdict(failed, NAMES[:2], "c.mp4") == ("fails; loses 1 of 2 others; names it in a traceback")


def test_process_tree_measures_and_kills_descendants() -> None:
    # More than half a second: /proc counts user and system time in whole ticks, each rounded down.
    burn = "import time\nwhile time.process_time() < 0.6: pass\nprint('burnt', flush=True)\ntime.sleep(3600)"
    start = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as process:
        tree = ProcessTree(process.pid)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "burnt\n"
            tree.sample()
            spent_s, peak_bytes = tree.core_seconds, tree.peak_bytes
        finally:
            tree.kill()
        # The pipe ends when the child of the process ends.
        assert process.stdout.read() == ""
    assert spent_s >= 0.5
    assert peak_bytes > 2**20
    killed_s = tree.core_seconds
    assert killed_s >= spent_s
    tree.sample()
    assert tree.core_seconds == killed_s


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("side-by-side")
    (folder / "videos").mkdir()
    made = write_demo_clips(folder / "made", 1, ClipShape(width_px=320, height_px=180))
    for name, clip in zip(NAMES, made, strict=False):
        clip.path.rename(folder / "videos" / name)
    return folder / "videos"


@pytest.mark.faults
def test_ours_and_plain_loop_give_the_same_scores(videos: Path) -> None:
    trials = {way: run_way(way, "luma-sharpness", videos, 1, 300) for way in ("ours", "plain loop")}
    check_agreement(trials, NAMES)


@pytest.mark.slow
def test_killed_decoder_kills_the_plain_loop(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "c.mp4").hardlink_to(videos / "c.mp4")
    (tmp_path / "a.mp4").hardlink_to(videos / "a.mp4")
    broken = killer(videos / "b.mp4", tmp_path).name
    outcome = run_way("plain loop", "luma-sharpness", tmp_path, 1, 300)
    assert verdict(outcome, ["a.mp4", "c.mp4"], broken) == "is killed by SIGKILL; loses 1 of 2 others; does not name it"


@pytest.mark.faults
@pytest.mark.parametrize("way", ["torch DataLoader", "DataLoader, our reader", "plain Ray Data"])
def test_other_ways_give_the_scores_of_the_plain_loop(way: str, videos: Path) -> None:
    trials = {name: run_way(name, "luma-sharpness", videos, 2, 300) for name in ("plain loop", way)}
    check_agreement(trials, NAMES)


def test_way_is_killed_at_its_time_limit(videos: Path) -> None:
    outcome = run_way("plain loop", "luma-sharpness", videos, 1, 0.01)
    assert outcome.exit_code is None
    assert not outcome.scores
