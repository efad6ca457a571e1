"""What a catalog of any number of videos takes on a cluster of any size: a plan's estimate, on pools laid out here.

A job names its pools; here they are given as many workers as keep up with each other, until the cluster has no room
for another of the slowest. Drivers are one more pool: each takes a shard, plans it and commits what comes back. Time,
hours and cost then are those of `engine.estimate`, as in `plan`. This module asks no table and no cluster, and knows no
network: bytes that do not arrive in time are no part of it.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kvq_batch.config.budget import Prices
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.shard import MAX_SHARDS
from kvq_batch.planning.estimate import Estimate, Stage, Throughput, estimate

DRIVER = "driver"

DRIVER_VIDEO_S = 0.00011
DRIVER_BLOCK_S = 0.0104
"""Core-seconds of a driver for a video, commits to a local disk included, and for each block of videos that it sends
from stage to stage: of `benchmarks.pipeline`, with blocks of 4, 16 and 64."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to work with, all machines together."""

    cores: int
    gpus: int = 0


def forecast(
    pools: Sequence[Stage], num_videos: int, measured: Throughput, cluster: Cluster, prices: Prices, block_size: int
) -> Estimate:
    """The estimate of scoring `num_videos` with every one of `pools`, which are as large as `cluster` has room for.

    Raises:
        SpecError: no earlier run tells what a stage takes, or the cluster has no room for one worker of each.
    """
    unknown = [pool.name for pool in pools if pool.name not in measured.video_s]
    if unknown:
        raise SpecError(
            f"no run in these tables tells what {' and '.join(unknown)} take: run a part of the job first, "
            "say with --sample 500"
        )
    video_s = {**measured.video_s, DRIVER: DRIVER_VIDEO_S + DRIVER_BLOCK_S / block_size}
    driver = Stage(DRIVER, 1, MAX_SHARDS, 1.0, 0.0, None)
    stages = scale_pools([*(_unbounded(pool, cluster) for pool in pools), driver], video_s, cluster)
    videos = {stage.name: num_videos for stage in stages}
    return estimate(stages, videos, replace(measured, video_s=video_s), prices, block_size)


def scale_pools(pools: Sequence[Stage], video_s: Mapping[str, float], cluster: Cluster) -> tuple[Stage, ...]:
    """`pools` with fixed numbers of workers: one each, then one more for the slowest while it may have it.

    Raises: SpecError where there is no room for one worker of each.
    """
    cores = cluster.cores - sum(pool.cores for pool in pools)
    gpus = cluster.gpus - sum(pool.gpus for pool in pools)
    if cores < 0 or gpus < 0:
        needed = f"{cluster.cores - cores:g} cores and {cluster.gpus - gpus:g} GPUs"
        raise SpecError(f"one worker of each stage and a driver take {needed}; the cluster has fewer")
    workers = [1] * len(pools)
    slowest = [(-video_s[pool.name], number) for number, pool in enumerate(pools)]
    heapq.heapify(slowest)
    while True:
        number = slowest[0][1]
        pool = pools[number]
        if workers[number] >= pool.max_workers or pool.cores > cores or pool.gpus > gpus:
            break
        cores, gpus, workers[number] = cores - pool.cores, gpus - pool.gpus, workers[number] + 1
        heapq.heapreplace(slowest, (-video_s[pool.name] / workers[number], number))
    return tuple(
        replace(pool, min_workers=number, max_workers=number) for pool, number in zip(pools, workers, strict=True)
    )


def _unbounded(pool: Stage, cluster: Cluster) -> Stage:
    # A process without a GPU fills a core while it works, however little of one the job reserves for it.
    return replace(pool, max_workers=cluster.cores, cores=pool.cores if pool.gpus else max(1.0, pool.cores))
