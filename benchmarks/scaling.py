"""Forecasts held against runs: some teach, others of other shapes test; then catalogs of 10^6 to 10^9 videos.

    python -m benchmarks.scaling             nine runs of half a minute, each on a local Ray of its own

What a run is expected to take is what `plan` says of it, by the tables that the teaching runs left: its seconds, and
the work of its stages. Core-seconds are read from /proc, whole: what they are beside that work (Ray, imports, the
workers' and the driver's own) is learnt from the teaching runs. It measures no store and no GPU.
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

ALIKE = {**{f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}, "RAY_worker_niceness": "0"}
"""Environment in which no idle thread of a library spins, which would count as work, and workers count as others."""

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


TEACHING = (
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
class Took:
    """What a run took: seconds, as `runs` has them, seconds of work in its stages, core-seconds of all processes."""

    seconds: float
    decode_s: float
    score_s: float
    core_s: float

    @property
    def beside_s(self) -> float:
        """Core-seconds that are no stage's work."""
        return self.core_s - self.decode_s - self.score_s


def run_here(job: Job) -> dict[str, float]:
    """The run itself, in this process."""
    summary = run_job(plan_job(job))
    return {"seconds": summary.seconds, "decode_s": summary.work_s["decode"], "score_s": summary.work_s["score"]}


def job_of(case: Case, folder: Path, tables: str = "tables") -> dict[str, Any]:
    """The job of `case`, on its catalog in `folder`."""
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


def run_apart(case: Case, folder: Path, tables: str) -> Took:
    """What the run of `case` takes, in a process of its own; as `folder` has it where it was made before."""
    kept = folder / f"{case.name}.json"
    if kept.exists():
        return Took(**json.loads(kept.read_text()))
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
            env={**os.environ, **ALIKE},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        tree, busy_s = ProcessTree(process.pid), busy_core_seconds()
        while process.poll() is None:
            tree.look()
            time.sleep(LOOK_EVERY_S)
    told = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"the run of {case} failed:\n{Path(log.name).read_text()[-2000:]}")
    took = Took(**json.loads(told.splitlines()[-1]), core_s=tree.core_seconds)
    others_s = busy_core_seconds() - busy_s - took.core_s
    print(f"{case}: {took}; others took {others_s:.1f} core-seconds", file=sys.stderr, flush=True)
    kept.write_text(json.dumps(asdict(took)))
    return took


def busy_core_seconds() -> float:
    """What all processes of this machine have taken since it began."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def expected(case: Case, folder: Path) -> Estimate:
    """What `plan` would expect of the case, from the tables of the teaching runs and for videos of its size."""
    job = make_job(job_of(case, folder), "benchmark")
    models = describe_models(job)
    pools = job_pools(job, models)
    told = measured_throughput(Tables.open(job.tables, StorageOptions()), models, case.megapixels)
    return estimate(pools, {pool.name: case.num_videos for pool in pools}, told, job.prices, block_size(job))


def counts_of(case: Case) -> list[int]:
    """What core-seconds beside the stages' work go with: the run, its workers, its scores."""
    return [1, case.decode_workers + len(case.models), case.num_videos * len(case.models)]


def beside_work(taught: dict[Case, Took]) -> list[float]:
    """Core-seconds beside the stages' work for each of `counts_of`: least squares over the teaching runs."""
    counts = np.array([counts_of(case) for case in taught])
    found: list[float] = np.linalg.lstsq(counts, np.array([took.beside_s for took in taught.values()]))[0].tolist()
    return found


def cost_of(case: Case, took: Took) -> dict[str, Any]:
    """What a teaching run took, a video and a score."""
    return {
        "run": str(case),
        "seconds": f"{took.seconds:.1f}",
        "decoding, s a video": f"{took.decode_s / case.num_videos:.3f}",
        "models, s a video": f"{took.score_s / case.num_videos:.3f}",
        "core-seconds": f"{took.core_s:.1f}",
        "of these beside the stages' work": f"{took.beside_s:.1f}",
    }


def row_of(case: Case, took: Took, told: Estimate, beside: Sequence[float]) -> dict[str, Any]:
    """Measured beside foretold."""
    assert told.seconds is not None
    # One worker is one core here.
    work_s = sum(stage.work_s or 0.0 for stage in told.stages)
    core_s = work_s + sum(each * count for each, count in zip(beside, counts_of(case), strict=True))
    return {
        "run": str(case),
        "seconds": f"{took.seconds:.1f}",
        "foretold": f"{told.seconds:.1f} ({told.seconds / took.seconds - 1:+.0%})",
        "core-seconds": f"{took.core_s:.1f}",
        "foretold core-seconds": f"{core_s:.1f} ({core_s / took.core_s - 1:+.0%})",
        "bound by": told.bound_by,
    }


def worked_out(case: Case, folder: Path) -> list[dict[str, Any]]:
    """Catalogs of three sizes on clusters of three, videos of 10 s at 720p, as `kvq-batch forecast` tells them."""
    rows = []
    job = make_job(job_of(case, folder), "benchmark")
    for num, cores in ((10**6, 256), (10**8, 4096), (10**9, 16384)):
        told = estimate_cluster(job, num, Cluster(cores), megapixels=1280 * 720 * 240 / 1e6)
        assert told.seconds is not None
        assert told.usage is not None
        workers = {stage.name: stage.max_workers for stage in told.stages}
        rows.append(
            {
                "model": job.models[0].name,
                "videos": f"{num:,}",
                "cores": cores,
                **{name: workers[name] for name in ("decode", DRIVER)},
                "score": sum(number for name, number in workers.items() if name not in ("decode", DRIVER)),
                "videos/s": round(num / told.seconds),
                "days": f"{told.seconds / 86400:.2f}",
                "core-hours": f"{told.usage.core_hours:,.0f}",
                f"cost, {job.prices.currency}": f"{told.cost or 0:,.0f}",
                "bound by": told.bound_by,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to keep clips, tables and figures; what is there counts")
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(run_here(make_job(json.loads(arguments.job.read_text()), "benchmark"))))
        return
    with tempfile.TemporaryDirectory(prefix="kvq-bench-") as name:
        folder = (arguments.folder or Path(name)).absolute()
        folder.mkdir(exist_ok=True)
        taught = {case: run_apart(case, folder, "tables") for case in TEACHING}
        # Each test has tables of its own: none of them learns from another.
        tested = {case: run_apart(case, folder, f"tables-{case.name}") for case in TESTING}
        beside = beside_work(taught)
        print_table([cost_of(case, took) for case, took in taught.items()])
        print()
        print_table([row_of(case, took, expected(case, folder), beside) for case, took in tested.items()])
        print("\nCore-seconds beside the work: {:.1f} a run, {:.1f} a worker, {:.3f} a score.\n".format(*beside))
        print_table([row for model in (LUMA, TINY) for row in worked_out(Case((model,), 1, LARGE, 16), folder)])


def clips_of(shape: ClipShape, folder: Path) -> list[Path]:
    """Twelve clips of `shape`, made unless they are there."""
    index = folder / f"clips-{shape.width_px}-{shape.num_frames}"
    if not index.exists():
        write_demo_clips(index, 2, shape)
    return sorted(index.rglob("*.mp4"))


if __name__ == "__main__":
    main()
