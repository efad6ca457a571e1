"""Estimates of time, core-hours, GPU-hours and cost of a run, and forecasts for a cluster of any size.

A run has overlapping stages, decoding and scoring (one worker pool per model); the slowest one bounds it. A pool holds
its machines for the whole run, busy or idle, so the cost is the number of workers times the length of the run: a GPU
that waits for decoding is paid for. The startup does not overlap, nor does one block of videos on its way through the
other stages.

An estimate uses the pools of the job. A forecast sizes the pools itself: it adds workers to the slowest stage until the
cluster has no room for another one. Drivers are one more pool, because each driver plans and commits one catalog shard.
The network is not part of the model: videos that arrive too slowly are not accounted for.

All functions are pure: they read no tables and no clock. What no run has measured is None, never a guess.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kvq_batch.config.job import Prices
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.shard import MAX_SHARDS

DECODE = "decode"
"""Name of the decoding stage. Scoring stages have the names of their models."""

DRIVER = "driver"
"""Name of the stage that plans and commits, in forecasts."""

DRIVER_VIDEO_S = 0.00011
"""Core-seconds of a driver per video, including commits to a local disk (`benchmarks.pipeline`)."""

DRIVER_BLOCK_S = 0.0104
"""Core-seconds of a driver per block of videos sent from stage to stage (`benchmarks.pipeline`, blocks of 4 to 64)."""


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """One worker pool: its size limits, the resources per worker, and the total work in seconds of one worker."""

    name: str
    min_workers: int
    max_workers: int
    cores: float
    gpus: float
    work_s: float | None

    def min_seconds(self) -> float:
        """Return the seconds that the stage takes with all of its workers busy; 0 if its work is unknown."""
        return (self.work_s or 0.0) / self.max_workers

    def num_workers(self, seconds: float) -> int:
        """Return the number of workers in a run of `seconds`: what the work needs, within the limits of the job."""
        needed = math.ceil((self.work_s or 0.0) / seconds) if seconds > 0 else self.min_workers
        return min(max(needed, self.min_workers), self.max_workers)


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources used by a run or a stage."""

    core_hours: float = 0.0
    gpu_hours: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.core_hours + other.core_hours, self.gpu_hours + other.gpu_hours)

    def cost(self, prices: Prices) -> float | None:
        """Return the cost in the currency of `prices`; None if a price that is needed is missing."""
        if prices.core_hour is None or (self.gpu_hours and prices.gpu_hour is None):
            return None
        return self.core_hours * prices.core_hour + self.gpu_hours * (prices.gpu_hour or 0.0)


def stage_usage(stage: WorkerPool, seconds: float) -> Usage:
    """Return the usage of `stage` in a run of `seconds`."""
    hours = stage.num_workers(seconds) * seconds / 3600
    return Usage(hours * stage.cores, hours * stage.gpus)


def total_usage(stages: Sequence[WorkerPool], seconds: float) -> Usage:
    """Return the usage of all `stages` in a run of `seconds`."""
    return sum((stage_usage(stage, seconds) for stage in stages), Usage())


@dataclass(frozen=True, slots=True)
class PastRun:
    """Measurements of one earlier run. Work is in seconds of one worker; `stages` are the pools of that run.

    `num_videos` counts the scored videos per model, of the models of interest; `num_decoded` counts all decoded videos.
    `startup_s` is the time until its first result, which is one block of `block_size` videos.
    """

    seconds: float
    startup_s: float
    stages: tuple[WorkerPool, ...]
    num_videos: Mapping[str, int]
    num_decoded: int
    block_size: int = 0

    def work_s(self, name: str) -> float:
        return sum(stage.work_s or 0.0 for stage in self.stages if stage.name == name)

    @property
    def slowest(self) -> WorkerPool:
        return max(self.stages, key=lambda stage: stage.min_seconds())

    def block_s(self, stage: WorkerPool) -> float:
        """Return the seconds that the first block took in `stage`, derived from the mean over all blocks."""
        share = min(1.0, self.block_size / self.num_decoded) if self.num_decoded else 0.0
        return share * (stage.work_s or 0.0)

    @property
    def setup_s(self) -> float:
        """Seconds until work on the first video began."""
        return max(0.0, self.startup_s - sum(self.block_s(stage) for stage in self.stages))


@dataclass(frozen=True, slots=True)
class Throughput:
    """Mean measurements of earlier runs.

    `video_s` is the work per video and stage; a missing stage is unknown. `startup_s` passes before work begins.
    `slowdown` is the ratio of the time that the runs took after their startup to the time of their slowest stage alone.
    `megapixels` is the mean size of their videos (frames times frame area), and `decode_megapixel_s` the additional
    decoding time per megapixel; both are None if all videos had the same size.
    """

    video_s: Mapping[str, float] = field(default_factory=dict)
    num_scores: Mapping[str, int] = field(default_factory=dict)
    num_runs: int = 0
    startup_s: float = 0.0
    slowdown: float = 1.0
    megapixels: float | None = None
    decode_megapixel_s: float | None = None

    def at_megapixels(self, megapixels: float) -> "Throughput":
        """Return the throughput for videos of another mean size.

        Raises:
            SpecError: earlier runs have decoded videos of one size only.
        """
        if self.megapixels is None or self.decode_megapixel_s is None or DECODE not in self.video_s:
            raise SpecError(
                "The decoding time per megapixel is unknown: no earlier run has decoded videos of two sizes. Run the "
                "job on videos of different sizes first, or omit the size."
            )
        extra_s = self.decode_megapixel_s * (megapixels - self.megapixels)
        # For small videos the line may fall below zero. Decoding time shrinks at most in proportion to the size.
        min_s = self.video_s[DECODE] * min(1.0, megapixels / self.megapixels)
        decode_s = max(self.video_s[DECODE] + extra_s, min_s)
        return replace(self, megapixels=megapixels, video_s={**self.video_s, DECODE: decode_s})


def mean_throughput(runs: Sequence[PastRun]) -> Throughput:
    """Return the means over `runs`, weighted by the number of videos."""
    runs = [run for run in runs if any(run.num_videos.values())]
    work: dict[str, float] = {}
    scores: dict[str, int] = {}
    decoded, num_decoded = 0.0, 0
    for run in runs:
        for name, num in run.num_videos.items():
            work[name] = work.get(name, 0.0) + run.work_s(name)
            scores[name] = scores.get(name, 0) + num
        decoded += run.work_s(DECODE)
        num_decoded += run.num_decoded
    video_s = {name: work[name] / num for name, num in scores.items() if num}
    if num_decoded:
        video_s[DECODE] = decoded / num_decoded
    min_s = sum(run.slowest.min_seconds() for run in runs)
    # The first block's time in the slowest stage is ordinary work, although it precedes the first result.
    took_s = sum(max(run.seconds - run.startup_s, 0.0) + run.block_s(run.slowest) for run in runs)
    return Throughput(
        video_s=video_s,
        num_scores=scores,
        num_runs=len(runs),
        startup_s=sum(run.setup_s for run in runs) / len(runs) if runs else 0.0,
        slowdown=max(took_s / min_s, 1.0) if min_s else 1.0,
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected time and cost of a run. None means unknown: one of its models was never run in these tables.

    `bound_by` names the slowest stage. `decode_cores_per_gpu` is the number of decoding cores that keep one GPU busy;
    None without a GPU.
    """

    stages: tuple[WorkerPool, ...]
    prices: Prices
    measured: Throughput
    seconds: float | None
    bound_by: str | None
    decode_cores_per_gpu: float | None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Stages whose work is unknown, because no earlier run has measured it."""
        return tuple(stage.name for stage in self.stages if stage.work_s is None)

    @property
    def usage(self) -> Usage | None:
        return None if self.seconds is None else total_usage(self.stages, self.seconds)

    @property
    def cost(self) -> float | None:
        return None if self.usage is None else self.usage.cost(self.prices)

    def usage_of(self, stage: WorkerPool) -> Usage | None:
        """Return the usage of one of the stages."""
        return None if self.seconds is None else stage_usage(stage, self.seconds)


def estimate(
    pools: Sequence[WorkerPool],
    num_videos: Mapping[str, int],
    measured: Throughput,
    prices: Prices,
    block_size: int = 0,
) -> Estimate:
    """Return the estimate for `num_videos` per stage on `pools` (decoding first). Their own `work_s` is ignored.

    A stage without videos has no work, measured or not. Videos move from stage to stage in blocks of `block_size`.
    """
    stages = tuple(_with_work(pool, num_videos.get(pool.name, 0), measured.video_s) for pool in pools)
    is_known = all(stage.work_s is not None for stage in stages)
    has_work = any(num_videos.values())
    slowest = max(stages, key=lambda stage: stage.min_seconds())
    seconds = None
    if is_known:
        seconds = 0.0
        if has_work:
            # Nothing overlaps while a block is in another stage before the slowest stage starts or after it ends.
            block_s = sum(_block_s(stage, num_videos, block_size) for stage in stages if stage is not slowest)
            seconds = measured.startup_s + block_s + measured.slowdown * slowest.min_seconds()
    return Estimate(
        stages=stages,
        prices=prices,
        measured=measured,
        seconds=seconds,
        bound_by=slowest.name if is_known and has_work else None,
        decode_cores_per_gpu=_decode_cores_per_gpu(stages, measured.video_s),
    )


def _with_work(pool: WorkerPool, num_videos: int, video_s: Mapping[str, float]) -> WorkerPool:
    per_video_s = video_s.get(pool.name)
    work_s = 0.0 if num_videos == 0 else None if per_video_s is None else per_video_s * num_videos
    return replace(pool, work_s=work_s)


def _block_s(stage: WorkerPool, num_videos: Mapping[str, int], block_size: int) -> float:
    num = num_videos.get(stage.name, 0)
    return (stage.work_s or 0.0) * min(1.0, block_size / num) if num else 0.0


def _decode_cores_per_gpu(stages: Sequence[WorkerPool], video_s: Mapping[str, float]) -> float | None:
    on_gpus = [stage for stage in stages if stage.gpus and stage.name != DECODE]
    if not on_gpus or any(stage.name not in video_s for stage in (stages[0], *on_gpus)):
        return None
    gpu_s = sum(video_s[stage.name] * stage.gpus for stage in on_gpus)
    return video_s[DECODE] * stages[0].cores / gpu_s if gpu_s else None


@dataclass(frozen=True, slots=True)
class Cluster:
    """Resources of a cluster, all machines together."""

    cores: int
    gpus: int = 0


def forecast(
    pools: Sequence[WorkerPool],
    num_videos: int,
    measured: Throughput,
    cluster: Cluster,
    prices: Prices,
    block_size: int,
) -> Estimate:
    """Return the estimate for scoring `num_videos` with all `pools`, sized to fill `cluster`.

    Raises:
        SpecError: a stage was never measured, or the cluster has no room for one worker of each stage.
    """
    unknown = [pool.name for pool in pools if pool.name not in measured.video_s]
    if unknown:
        raise SpecError(
            f"No timing data for {' and '.join(unknown)} in these tables. Run part of the job first, for example with "
            "--sample 500."
        )
    video_s = {**measured.video_s, DRIVER: DRIVER_VIDEO_S + DRIVER_BLOCK_S / block_size}
    driver = WorkerPool(DRIVER, 1, MAX_SHARDS, 1.0, 0.0, None)
    stages = scale_pools([*(_unbounded(pool, cluster) for pool in pools), driver], video_s, cluster)
    videos = {stage.name: num_videos for stage in stages}
    return estimate(stages, videos, replace(measured, video_s=video_s), prices, block_size)


def scale_pools(pools: Sequence[WorkerPool], video_s: Mapping[str, float], cluster: Cluster) -> tuple[WorkerPool, ...]:
    """Return `pools` with fixed sizes: one worker each, then one more for the slowest pool while there is room.

    Raises:
        SpecError: the cluster has no room for one worker of each pool.
    """
    cores = cluster.cores - sum(pool.cores for pool in pools)
    gpus = cluster.gpus - sum(pool.gpus for pool in pools)
    if cores < 0 or gpus < 0:
        raise SpecError(
            f"One worker of each stage and a driver need {cluster.cores - cores:g} cores and {cluster.gpus - gpus:g} "
            f"GPUs, but the cluster has {cluster.cores} cores and {cluster.gpus} GPUs."
        )
    workers = [1] * len(pools)
    slowest = [(-video_s[pool.name], index) for index, pool in enumerate(pools)]
    heapq.heapify(slowest)
    while True:
        index = slowest[0][1]
        pool = pools[index]
        if workers[index] >= pool.max_workers or pool.cores > cores or pool.gpus > gpus:
            break
        cores, gpus, workers[index] = cores - pool.cores, gpus - pool.gpus, workers[index] + 1
        heapq.heapreplace(slowest, (-video_s[pool.name] / workers[index], index))
    return tuple(replace(pool, min_workers=num, max_workers=num) for pool, num in zip(pools, workers, strict=True))


def _unbounded(pool: WorkerPool, cluster: Cluster) -> WorkerPool:
    # A worker without a GPU uses a whole core while it works, even if the job reserves less.
    return replace(pool, max_workers=cluster.cores, cores=pool.cores if pool.gpus else max(1.0, pool.cores))
