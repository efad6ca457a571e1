"""Measure the cost of the framework: from planned videos to committed scores, with free decoding.

The decode worker is replaced by one that returns ready frames of 0.3 MB without a child process. The handcrafted
scorer, Ray Data, the tracker, Parquet and Delta are the usual ones. A second row adds the child process and its shared
memory, with a task that returns the same frames without decoding: the difference is the cost of isolation. Rates do
not include the start of Ray.
"""

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from benchmarks.tables import print_table
from kvq_batch.config.load import make_job
from kvq_batch.domain.video import ClipFrames, VideoFacts, Window
from kvq_batch.engine.decode_worker import DecodeSettings, DecodeWorker
from kvq_batch.engine.rows import Row
from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.score_run import run_job
from kvq_batch.engine.stream import ClipRow, StreamRows
from kvq_batch.engine.work_tracker import SilentObserver, WorkTracker
from kvq_batch.media.decode import ClipLayout, DecodeTask, FrameLayout, Timings, VideoLayout
from kvq_batch.media.probe import Probed
from kvq_batch.media.scratch import ScratchWriter
from kvq_batch.media.track_headers import NO_CROP
from kvq_batch.planning.job_models import describe_models
from kvq_batch.planning.job_plan import JobPlan, estimate_plan
from kvq_batch.planning.plan import make_plan

SHAPE = (2, 224, 224, 3)
FACTS = VideoFacts(
    224,
    224,
    0,
    False,
    1.0,
    25.0,
    False,
    1.0,
    25,
    "none",
    "rgb24",
    8,
    "progressive",
    "unknown",
    "unknown",
    "unknown",
    "tv",
)
EMPTY = np.empty(0, np.int64)
PROBED = Probed(
    FACTS, "none", 0, "packets", False, NO_CROP, False, False, EMPTY, EMPTY.astype(bool), EMPTY, EMPTY.astype(float)
)


class FreeFrames:
    """Replacement of `DecodeWorker` that returns frames without fetching, child process or decoding."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._frames = ClipFrames(
            np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8), np.arange(2), np.arange(2.0)
        )

    def __call__(self, items: pa.Table) -> Iterator[pa.Table]:
        made = StreamRows(1)
        for item in items.to_pylist():
            made.add_clip(_row(item), [self._frames])
        yield made.take()


class FreeTask(DecodeWorker):
    """The usual worker with a child process, whose task decodes nothing."""

    task_function: ClassVar[str] = "benchmarks.pipeline:free_task"


def free_task(task: DecodeTask, scratch_file: Path) -> VideoLayout:
    """Return frames of the size of `FreeFrames` through the scratch file."""
    scratch = ScratchWriter(scratch_file)
    try:
        pixels = scratch.allocate(SHAPE)
        pixels[:] = 128
        layout = FrameLayout(scratch.position(pixels), np.arange(2), np.arange(2.0))
    finally:
        scratch.close()
    clip = ClipLayout(0, Window(0.0, 1.0), (layout,))
    return VideoLayout(FACTS, "none", 1, (clip,), tuple(scratch.extents), Timings(), PROBED)


def _row(item: dict[str, Any]) -> ClipRow:
    return ClipRow(
        item["item"], item["attempt"], item["model_mask"], 0, 1, 0.0, 1.0, "{}", 0, "none", "none:", 0.0, 1, 0.0, 0.0
    )


class CommitTimes(SilentObserver):
    """Record the times and core-seconds at the first result and at the last commit."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.last = 0.0
        self.num_before = 0
        self.core_s = [0.0, 0.0]

    def progressed(self, tracker: WorkTracker) -> None:
        if self.first is None:
            self.first, self.num_before = time.perf_counter(), tracker.num_videos_done
            self.core_s[0] = time.process_time()

    def committed(self, scores: Sequence[Row], failures: Sequence[Row]) -> None:
        self.last = time.perf_counter()
        self.core_s[1] = time.process_time()


def measure(worker: type, num_videos: int, batch_size: int, folder: Path) -> dict[str, Any]:
    """Return videos per second from the first result to the last commit, and the driver's cost and peak memory."""
    video = folder / "video.bin"
    video.write_bytes(b"0")
    job = make_job(
        {
            "name": "framework",
            "tables": str(folder / "tables"),
            "catalog": {"source": str(folder)},
            "models": [{"name": "luma-sharpness", "batch_size": batch_size, "workers": {"num_cpus": 0.5}}],
            "decode": {"workers": {"num_cpus": 0.5}},
        },
        "benchmark",
    )
    catalog = pa.table(
        {
            "video_id": [f"video-{i:06}" for i in range(num_videos)],
            "uri": [str(video)] * num_videos,
            "content_id": ["unknown:"] * num_videos,
            "size_bytes": pa.nulls(num_videos, pa.int64()),
            "start_s": pa.nulls(num_videos, pa.float64()),
            "end_s": pa.nulls(num_videos, pa.float64()),
        }
    )
    models = describe_models(job)
    plan = make_plan(None, catalog, job.catalog_name, [model.ref for model in models.models])
    planned = JobPlan(job, models, catalog, str(folder), plan, estimate_plan(job, models, plan, None))
    times = CommitTimes()
    summary = run_job(planned, times, RunOptions(worker=worker))
    assert summary.num_scored == num_videos
    assert times.first is not None
    return {
        "decoding": worker.__name__,
        "videos": num_videos,
        "videos per batch": batch_size,
        "videos/s": round((num_videos - times.num_before) / (times.last - times.first)),
        "driver core-ms per video": round(
            1000 * (times.core_s[1] - times.core_s[0]) / (num_videos - times.num_before), 2
        ),
        "driver MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "seconds with Ray's start": round(summary.seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--only", choices=["free", "child"])
    parser.add_argument("--output", choices=["markdown", "json"], default="markdown")
    arguments = parser.parse_args()
    rows = []
    for name, worker in (("free", FreeFrames), ("child", FreeTask)):
        if arguments.only in (None, name):
            folder = Path(tempfile.mkdtemp(prefix="kvq-bench-"))
            try:
                rows.append(measure(worker, arguments.videos, arguments.batch_size, folder))
            finally:
                shutil.rmtree(folder)
    print_table(rows, arguments.output)


if __name__ == "__main__":
    main()
