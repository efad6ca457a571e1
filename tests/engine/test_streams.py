"""Models that see every frame, on both executors: each score is that of the whole video, however its decode goes."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kvq_batch.config.job import ExecutorName, Job
from kvq_batch.config.load import make_job
from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.score_run import run_job
from kvq_batch.media.local_files import clip_of_file
from kvq_batch.media.resize import resize
from kvq_batch.planning.job_plan import plan_job
from kvq_batch.tables.session import open_session
from tests.support.frame_means import FRAMES, PartsDecodeWorker, install, score_of
from tests.support.material import encode
from tests.support.reference import reference_frames
from tests.support.remux import remux, swap_late_times


@pytest.fixture
def job(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Return a job of a streamed and another model, on a folder without videos."""
    plugins = str(install(tmp_path / "plugins"))
    monkeypatch.syspath_prepend(plugins)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([plugins, os.environ.get("PYTHONPATH", "")]))
    source = tmp_path / "chosen"
    source.mkdir()
    values = {
        "name": "test",
        "tables": str(tmp_path / "tables"),
        "catalog": {"source": str(source)},
        "models": [{"name": name, "workers": {"num_cpus": 0.3}} for name in ("frame-means", "luma-sharpness")],
        "decode": {"workers": {"num_cpus": 0.3}},
        "run": {"max_attempts": 2},
    }
    return make_job(values, "test")


@pytest.mark.parametrize(
    ("executor", "names"),
    [
        ("local", {"none", "crash-once", "crash-always", "restart"}),
        ("ray", {"none", "restart"}),
        # A second attempt starts all workers of Ray again.
        pytest.param("ray", {"crash-once", "crash-always", "restart"}, marks=pytest.mark.faults),
    ],
)
def test_scores_are_those_of_whole_videos(job: Job, executor: ExecutorName, names: set[str], videos: Path) -> None:
    for name in names:
        shutil.copy2(videos / "none-0.mp4", Path(job.catalog.source) / f"{name}.mp4")
    summary = run_job(plan_job(job), None, RunOptions(worker=PartsDecodeWorker, executor=executor))
    expected = score_of(clip_of_file(videos / "none-0.mp4", FRAMES, 1))
    with open_session(job.tables) as session:
        query = "SELECT video_id, model_name, raw_score, attempt, decode_s FROM scores"
        rows = {(row["model_name"], row["video_id"]): row for row in session.sql(query).to_pylist()}
        failures = session.sql("SELECT video_id, error, permanent FROM failures WHERE final ORDER BY 1").to_pylist()
    scored = {f"{name}.mp4" for name in names - {"crash-always"}}
    assert set(rows) == {(model, video) for model in ("frame-means", "luma-sharpness") for video in scored}
    for video in scored:
        streamed, other = rows["frame-means", video], rows["luma-sharpness", video]
        assert streamed["raw_score"] == pytest.approx(expected, rel=1e-12), video
        # The other model needed the frames of the whole video, too.
        assert other["decode_s"] >= streamed["decode_s"] > 0
        assert streamed["attempt"] == other["attempt"] == (2 if video == "crash-once.mp4" else 1)
    failed = [("crash-always.mp4", "decoder_crashed", True)] * 2 if "crash-always" in names else []
    assert [(row["video_id"], row["error"], row["permanent"]) for row in failures] == failed
    assert (summary.num_scored, summary.num_failed) == (2 * len(scored), len(failed))


def test_times_that_are_wrong_late_start_the_stream_again(job: Job, tmp_path: Path) -> None:
    options = (
        "-c:v",
        "libx265",
        "-preset",
        "ultrafast",
        "-pix_fmt",
        "yuv420p",
        "-x265-params",
        "log-level=error:pools=1",
    )
    encoded = encode(tmp_path / "hevc.mp4", *options, size="160x96", seconds=4)
    path = remux(encoded, Path(job.catalog.source) / "late.mkv", swap_late_times)
    summary = run_job(plan_job(job), None, RunOptions(worker=PartsDecodeWorker, executor="local"))
    assert (summary.num_scored, summary.num_failed) == (2, 0)
    expected = score_of(resize(np.stack(reference_frames(path)), (36, 64)))
    with open_session(job.tables) as session:
        query = "SELECT video_id, raw_score FROM scores WHERE model_name = 'frame-means'"
        assert session.sql(query).to_pylist() == [
            {"video_id": "late.mkv", "raw_score": pytest.approx(expected, rel=1e-12)}
        ]
