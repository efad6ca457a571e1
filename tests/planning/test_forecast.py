"""Forecasts: the size of each pool, the stage that bounds the run, and the same time and cost as an estimate."""

import pytest

from kvq_batch.config.job import Prices
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.shard import MAX_SHARDS
from kvq_batch.planning.estimate import (
    DECODE,
    DRIVER,
    DRIVER_BLOCK_S,
    DRIVER_VIDEO_S,
    Cluster,
    Estimate,
    Throughput,
    WorkerPool,
    forecast,
    total_usage,
)

PRICES = Prices(core_hour=0.04, gpu_hour=3.0)
ON_CORES = (WorkerPool(DECODE, 1, 2, 1.0, 0.0, None), WorkerPool("kvq", 1, 1, 1.0, 0.0, None))
ON_GPUS = (WorkerPool(DECODE, 1, 2, 1.0, 0.0, None), WorkerPool("kvq", 1, 1, 1.0, 1.0, None))
MEASURED = Throughput({DECODE: 1.0, "kvq": 0.2}, {"kvq": 500}, 2, startup_s=20.0, slowdown=1.25)


def predicted(cluster: Cluster, pools: tuple[WorkerPool, ...] = ON_CORES, measured: Throughput = MEASURED) -> Estimate:
    return forecast(pools, 1_000_000, measured, cluster, PRICES, block_size=16)


def workers(found: Estimate) -> dict[str, int]:
    return {stage.name: stage.max_workers for stage in found.stages}


def test_pools_are_sized_to_keep_up_with_each_other() -> None:
    found = predicted(Cluster(cores=121))
    assert workers(found) == {DECODE: 100, "kvq": 20, DRIVER: 1}
    assert found.seconds is not None
    # 20 s of startup, a block of 16 through model and driver, and 10,000 s of decoding.
    driver_s = DRIVER_VIDEO_S + DRIVER_BLOCK_S / 16
    assert found.seconds == pytest.approx(20 + 16 * (0.2 + driver_s) + 1.25 * 10_000)
    assert found.usage == total_usage(found.stages, found.seconds)
    assert found.usage is not None
    assert found.usage.core_hours == pytest.approx(121 * found.seconds / 3600)
    assert found.cost == pytest.approx(found.usage.core_hours * 0.04)


def test_drivers_are_added_up_to_the_shard_limit() -> None:
    quick = Throughput({DECODE: 0.01, "kvq": 0.002})
    few, many = predicted(Cluster(cores=100), measured=quick), predicted(Cluster(cores=1_000_000), measured=quick)
    assert 1 < workers(few)[DRIVER] < workers(many)[DRIVER] == MAX_SHARDS
    assert many.bound_by == DRIVER
    # Workers that no driver can feed are not added.
    assert sum(workers(many).values()) < 2000


def test_decoders_are_added_until_gpus_are_busy() -> None:
    measured = Throughput({DECODE: 1.0, "kvq": 0.01})
    starved, busy = predicted(Cluster(102, 2), ON_GPUS, measured), predicted(Cluster(1000, 2), ON_GPUS, measured)
    assert (starved.bound_by, workers(starved)) == (DECODE, {DECODE: 100, "kvq": 1, DRIVER: 1})
    assert workers(busy)["kvq"] == 2
    assert workers(busy)[DECODE] in (200, 201)
    assert busy.decode_cores_per_gpu == pytest.approx(100)
    assert busy.usage is not None
    assert busy.seconds is not None
    assert busy.usage.gpu_hours == pytest.approx(2 * busy.seconds / 3600)


def test_cpu_worker_uses_a_whole_core() -> None:
    pools = (WorkerPool(DECODE, 1, 1, 0.25, 0.0, None), WorkerPool("kvq", 1, 1, 4.0, 0.0, None))
    assert workers(predicted(Cluster(10), pools)) == {DECODE: 5, "kvq": 1, DRIVER: 1}


def test_forecast_without_data_or_room_is_rejected() -> None:
    with pytest.raises(SpecError, match=r"No timing data for decode and kvq in these tables\. Run part of"):
        predicted(Cluster(8), measured=Throughput())
    with pytest.raises(SpecError, match="a driver need 3 cores and 0 GPUs, but the cluster has 2 cores"):
        predicted(Cluster(2))
    with pytest.raises(SpecError, match="need 3 cores and 1 GPUs, but the cluster has 64 cores"):
        predicted(Cluster(64), ON_GPUS)
