"""Compares forecasts with runs: training runs, test runs of other shapes, then catalogs of 10^6 to 10^9 videos.

    python -m benchmarks.scaling             nine runs of half a minute, each on its own local Ray

The prediction for a run is the estimate of `plan`, from the tables of the training runs: seconds, and work per stage.
Core-seconds are read from /proc for all processes. The overhead (Ray, imports, workers and driver) is fitted to the
training runs. Stores and GPUs are not measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.process_tree import ProcessTree
from benchmarks.tables import print_table
from kvq_batch.config.job import Job
from kvq_batch.config.load import make_job
from kvq_batch.engine.score_run import run_job
from kvq_batch.media.synthesis import ClipShape, write_demo_clips
from kvq_batch.planning.estimate import DRIVER, Cluster, Estimate, estimate
from kvq_batch.planning.job_models import describe_models
from kvq_batch.planning.job_plan import block_size, estimate_cluster, job_pools, plan_job
from kvq_batch.planning.past_runs import measured_throughput
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables

LOOK_EVERY_S = 0.2

ENVIRONMENT = {**{f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}, "RAY_worker_niceness": "0"}
"""Environment without busy-waiting library threads, which would count as work, and with workers of normal priority."""

LUMA, TINY = "luma-sharpness", "kvq-tiny"
SMALL, MIDDLE, LARGE = ClipShape(640, 360, 24, 72), ClipShape(960, 544, 24, 96), ClipShape(1280, 720, 24, 120)


@dataclass(frozen=True, slots=True)
class Case:
    """A run to measure."""

    models: tuple[str, ...]
    num_videos: int
    clip: ClipShape
    batch_size: int = 4
    decode_workers: int = 1

    @property
    def megapixels(self) -> float:
        return self.clip.width_px * self.clip.height_px * self.clip.num_frames / 1e6

    @property
    def name(self) -> str:
        return f"{'-'.join(self.models)}-{self.num_videos}-{self.clip.width_px}-{self.batch_size}-{self.decode_workers}"

    def __str__(self) -> str:
        clip = self.clip
        return (
            f"{' + '.join(self.models)}; {self.num_videos} of {clip.width_px}x{clip.height_px}, {clip.num_frames} "
            f"frames; batches of {self.batch_size}, {self.decode_workers} decoding"
        )


TRAINING = (
    Case((LUMA,), 120, SMALL),
    Case((LUMA,), 30, LARGE),
    Case((TINY,), 40, SMALL),
    Case((TINY,), 30, LARGE),
    Case((LUMA, TINY), 20, SMALL),
)
TESTING = (
    Case((LUMA,), 80, MIDDLE, batch_size=16),
    Case((TINY,), 50, MIDDLE, batch_size=2, decode_workers=2),
    Case((LUMA, TINY), 30, LARGE, batch_size=6),
    Case((LUMA,), 60, LARGE, batch_size=8, decode_workers=2),
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measurements of a run: seconds (as in `runs`), work per stage, and core-seconds of all processes."""

    seconds: float
    decode_s: float
    score_s: float
    core_s: float

    @property
    def overhead_s(self) -> float:
        """Core-seconds in addition to the work of the stages."""
        return self.core_s - self.decode_s - self.score_s


def run_here(job: Job) -> dict[str, float]:
    """Execute the run in this process."""
    summary = run_job(plan_job(job))
    return {"seconds": summary.seconds, "decode_s": summary.work_s["decode"], "score_s": summary.work_s["score"]}


def job_of(case: Case, folder: Path, tables: str = "tables") -> dict[str, Any]:
    """Return the job of `case`, with its catalog in `folder`."""
    return {
        "name": "scaling",
        "tables": str(folder / tables),
        "catalog": {"source": str(folder / f"{case.name}.parquet"), "name": case.name},
        "models": [
            {"name": name, "batch_size": case.batch_size, "num_threads": 1}
            | ({"weights": "untrained"} if name == TINY else {})
            for name in case.models
        ],
        "decode": {"workers": {"min": case.decode_workers, "max": case.decode_workers}},
        "prices": {"core_hour": 0.04},
    }


def run_apart(case: Case, folder: Path, tables: str) -> Measurement:
    """Measure the run of `case` in its own process, or read the measurement from `folder` if it exists."""
    cached = folder / f"{case.name}.json"
    if cached.exists():
        return Measurement(**json.loads(cached.read_text()))
    clips = clips_of(case.clip, folder)
    columns = {
        "video_id": [f"{case.name}-{video:05}" for video in range(case.num_videos)],
        "uri": [str(clips[video % len(clips)]) for video in range(case.num_videos)],
    }
    pq.write_table(pa.table(columns), folder / f"{case.name}.parquet")
    job = folder / f"{case.name}.job"
    job.write_text(json.dumps(job_of(case, folder, tables)))
    with (folder / f"{case.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scaling", "--job", str(job)],
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        tree, busy_s = ProcessTree(process.pid), busy_core_seconds()
        while process.poll() is None:
            tree.sample()
            time.sleep(LOOK_EVERY_S)
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"the run of {case} failed:\n{Path(log.name).read_text()[-2000:]}")
    took = Measurement(**json.loads(output.splitlines()[-1]), core_s=tree.core_seconds)
    others_s = busy_core_seconds() - busy_s - took.core_s
    print(f"{case}: {took}; others took {others_s:.1f} core-seconds", file=sys.stderr, flush=True)
    cached.write_text(json.dumps(asdict(took)))
    return took


def busy_core_seconds() -> float:
    """Return the core-seconds of all processes of this machine since boot."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def expected(case: Case, folder: Path) -> Estimate:
    """Return the estimate of `plan` for the case, from the tables of the training runs and for videos of its size."""
    job = make_job(job_of(case, folder), "benchmark")
    models = describe_models(job)
    pools = job_pools(job, models)
    throughput = measured_throughput(Tables.open(job.tables, StorageOptions()), models, case.megapixels)
    return estimate(pools, {pool.name: case.num_videos for pool in pools}, throughput, job.prices, block_size(job))


def counts_of(case: Case) -> list[int]:
    """Return what the overhead is proportional to: the run, its workers, its scores."""
    return [1, case.decode_workers + len(case.models), case.num_videos * len(case.models)]


def fit_overhead(trained: dict[Case, Measurement]) -> list[float]:
    """Return the overhead in core-seconds per unit of `counts_of`: least squares over the training runs."""
    counts = np.array([counts_of(case) for case in trained])
    found: list[float] = np.linalg.lstsq(counts, np.array([took.overhead_s for took in trained.values()]))[0].tolist()
    return found


def cost_of(case: Case, took: Measurement) -> dict[str, Any]:
    """Return the cost of a training run per video and score."""
    return {
        "run": str(case),
        "seconds": f"{took.seconds:.1f}",
        "decoding, s per video": f"{took.decode_s / case.num_videos:.3f}",
        "models, s per video": f"{took.score_s / case.num_videos:.3f}",
        "core-seconds": f"{took.core_s:.1f}",
        "of these overhead": f"{took.overhead_s:.1f}",
    }


def row_of(case: Case, took: Measurement, predicted: Estimate, overhead: Sequence[float]) -> dict[str, Any]:
    """Return measured and predicted values."""
    assert predicted.seconds is not None
    # One worker is one core here.
    work_s = sum(stage.work_s or 0.0 for stage in predicted.stages)
    core_s = work_s + sum(each * count for each, count in zip(overhead, counts_of(case), strict=True))
    return {
        "run": str(case),
        "seconds": f"{took.seconds:.1f}",
        "predicted": f"{predicted.seconds:.1f} ({predicted.seconds / took.seconds - 1:+.0%})",
        "core-seconds": f"{took.core_s:.1f}",
        "predicted core-seconds": f"{core_s:.1f} ({core_s / took.core_s - 1:+.0%})",
        "bound by": predicted.bound_by,
    }


def forecast_rows(case: Case, folder: Path) -> list[dict[str, Any]]:
    """Forecast catalogs and clusters of three sizes, with videos of 10 s at 720p, like `kvq-batch forecast`."""
    rows = []
    job = make_job(job_of(case, folder), "benchmark")
    for num, cores in ((10**6, 256), (10**8, 4096), (10**9, 16384)):
        predicted = estimate_cluster(job, num, Cluster(cores), megapixels=1280 * 720 * 240 / 1e6)
        assert predicted.seconds is not None
        assert predicted.usage is not None
        workers = {stage.name: stage.max_workers for stage in predicted.stages}
        rows.append(
            {
                "model": job.models[0].name,
                "videos": f"{num:,}",
                "cores": cores,
                **{name: workers[name] for name in ("decode", DRIVER)},
                "score": sum(number for name, number in workers.items() if name not in ("decode", DRIVER)),
                "videos/s": round(num / predicted.seconds),
                "days": f"{predicted.seconds / 86400:.2f}",
                "core-hours": f"{predicted.usage.core_hours:,.0f}",
                f"cost, {job.prices.currency}": f"{predicted.cost or 0:,.0f}",
                "bound by": predicted.bound_by,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--folder", type=Path, help="folder for clips, tables and measurements; existing ones are reused"
    )
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(run_here(make_job(json.loads(arguments.job.read_text()), "benchmark"))))
        return
    with tempfile.TemporaryDirectory(prefix="kvq-bench-") as name:
        folder = (arguments.folder or Path(name)).absolute()
        folder.mkdir(exist_ok=True)
        trained = {case: run_apart(case, folder, "tables") for case in TRAINING}
        # Each test run has its own tables, so that its estimate uses the training runs only.
        tested = {case: run_apart(case, folder, f"tables-{case.name}") for case in TESTING}
        overhead = fit_overhead(trained)
        print_table([cost_of(case, took) for case, took in trained.items()])
        print()
        print_table([row_of(case, took, expected(case, folder), overhead) for case, took in tested.items()])
        print("\nOverhead in core-seconds: {:.1f} per run, {:.1f} per worker, {:.3f} per score.\n".format(*overhead))
        print_table([row for model in (LUMA, TINY) for row in forecast_rows(Case((model,), 1, LARGE, 16), folder)])


def clips_of(shape: ClipShape, folder: Path) -> list[Path]:
    """Return twelve clips of `shape`; create them if they do not exist."""
    clips = folder / f"clips-{shape.width_px}-{shape.num_frames}"
    if not clips.exists():
        write_demo_clips(clips, 2, shape)
    return sorted(clips.rglob("*.mp4"))


if __name__ == "__main__":
    main()
