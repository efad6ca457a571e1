"""Estimates: predicted time, usage and cost, and what is unknown."""

import math

import pytest

from kvq_batch.config.job import Prices
from kvq_batch.domain.errors import SpecError
from kvq_batch.planning.estimate import (
    DECODE,
    PastRun,
    Throughput,
    Usage,
    WorkerPool,
    estimate,
    mean_throughput,
    stage_usage,
    total_usage,
)

PRICES = Prices(core_hour=0.05, gpu_hour=2.0, currency="CHF")


def decode(max_workers: int = 10, work_s: float | None = None, min_workers: int = 1) -> WorkerPool:
    return WorkerPool(DECODE, min_workers, max_workers, 1.0, 0.0, work_s)


def kvq(max_workers: int = 1, work_s: float | None = None, gpus: float = 1.0) -> WorkerPool:
    return WorkerPool("kvq", 1, max_workers, 1.0, gpus, work_s)


def test_slowest_stage_bounds_the_run() -> None:
    measured = Throughput({DECODE: 2.0, "kvq": 0.05}, {"kvq": 500}, 2, startup_s=20.0, slowdown=1.25)
    found = estimate([decode(), kvq()], {DECODE: 36_000, "kvq": 36_000}, measured, PRICES)
    # 72,000 s of decoding on ten workers take 7,200; the GPU would be done in 1,800 and waits.
    assert found.bound_by == DECODE
    assert found.seconds == pytest.approx(20 + 1.25 * 7200)
    assert found.usage is not None
    hours = 9020 / 3600
    assert found.usage.gpu_hours == pytest.approx(hours)
    # Eight of the ten decoding workers are needed for this time. The scoring worker uses a core, too.
    assert found.usage.core_hours == pytest.approx((8 + 1) * hours)
    assert found.cost == pytest.approx(9 * hours * 0.05 + hours * 2.0)
    # 2 core-seconds of decoding against 0.05 GPU-seconds.
    assert found.decode_cores_per_gpu == pytest.approx(40.0)
    assert found.unknown == ()


def test_unmeasured_stages_are_unknown() -> None:
    found = estimate([decode(), kvq()], {DECODE: 10, "kvq": 10}, Throughput({DECODE: 1.0}), PRICES)
    assert (found.seconds, found.usage, found.cost, found.bound_by) == (None, None, None, None)
    assert found.unknown == ("kvq",)
    assert found.decode_cores_per_gpu is None
    # A model without videos in this plan need not be measured.
    found = estimate([decode(), kvq()], {DECODE: 0, "kvq": 0}, Throughput(), PRICES)
    assert (found.seconds, found.usage, found.unknown) == (0.0, Usage(), ())


def test_fractional_gpus_and_shared_decode() -> None:
    stages = [decode(), kvq(gpus=0.25), WorkerPool("other", 1, 1, 0.5, 0.0, None)]
    measured = Throughput({DECODE: 1.0, "kvq": 0.2, "other": 0.1})
    found = estimate(stages, {DECODE: 100, "kvq": 100, "other": 50}, measured, PRICES)
    assert found.bound_by == "kvq"
    assert found.seconds == pytest.approx(20.0)
    assert found.decode_cores_per_gpu == pytest.approx(1.0 / (0.2 * 0.25))
    assert [stage.work_s for stage in found.stages] == pytest.approx([100.0, 20.0, 5.0])


def test_cost_needs_all_prices() -> None:
    assert Usage(10.0, 0.0).cost(Prices(core_hour=0.1)) == pytest.approx(1.0)
    assert Usage(10.0, 1.0).cost(Prices(core_hour=0.1)) is None
    assert Usage(10.0, 0.0).cost(Prices()) is None


def test_number_of_workers_is_limited_by_the_job() -> None:
    assert decode(10, 1000.0).num_workers(200.0) == 5
    assert decode(10, 1001.0).num_workers(200.0) == 6
    assert decode(10, 10_000.0).num_workers(200.0) == 10
    assert decode(10, 0.0, min_workers=4).num_workers(200.0) == 4
    assert stage_usage(decode(10, 1000.0), 3600.0) == Usage(1.0, 0.0)
    assert total_usage([decode(1, 10.0), kvq(work_s=10.0)], 3600.0) == Usage(2.0, 1.0)


def test_throughput_is_a_weighted_mean_of_runs() -> None:
    first = PastRun(130.0, 30.0, (decode(2, 160.0), kvq(work_s=40.0)), {"kvq": 100}, 100)
    second = PastRun(70.0, 10.0, (decode(1, 40.0), kvq(work_s=20.0)), {"kvq": 50}, 50)
    empty = PastRun(500.0, 500.0, (decode(1, 0.0), kvq(work_s=0.0)), {}, 0)
    found = mean_throughput([first, second, empty])
    assert found.video_s == pytest.approx({DECODE: 200 / 150, "kvq": 60 / 150})
    assert (found.num_scores, found.num_runs, found.startup_s) == ({"kvq": 150}, 2, 20.0)
    # 100 s and 60 s after the startup, compared with 80 s and 40 s of the slower stage alone.
    assert found.slowdown == pytest.approx(160 / 120)
    assert mean_throughput([]) == Throughput()


def test_measured_run_predicts_itself() -> None:
    stages = (decode(4, 900.0), kvq(2, 100.0))
    past = PastRun(290.0, 15.0, stages, {"kvq": 300}, 300)
    again = estimate(stages, {DECODE: 300, "kvq": 300}, mean_throughput([past]), PRICES)
    assert again.seconds is not None
    assert math.isclose(again.seconds, past.seconds)
    assert again.usage == total_usage(stages, past.seconds)


def test_first_block_does_not_overlap() -> None:
    # Ten of a hundred videos are 16 s of 160 in decoding and 4 s of 40 in the model: 12 of the 32 s were the startup.
    past = PastRun(200.0, 32.0, (decode(1, 160.0), kvq(work_s=40.0)), {"kvq": 100}, 100, block_size=10)
    found = mean_throughput([past])
    assert found.startup_s == pytest.approx(12.0)
    assert found.slowdown == pytest.approx((200 - 32 + 16) / 160)

    def seconds(num_videos: int, block_size: int) -> float | None:
        return estimate(past.stages, {DECODE: num_videos, "kvq": num_videos}, found, PRICES, block_size).seconds

    assert seconds(100, 10) == pytest.approx(200.0)
    assert seconds(100, 20) == pytest.approx(204.0)
    assert seconds(5, 20) == pytest.approx(12 + 5 * 0.4 + 5 * 1.6 * found.slowdown)


def test_decoding_time_scales_with_video_size() -> None:
    measured = Throughput({DECODE: 1.0, "kvq": 0.1}, megapixels=100.0, decode_megapixel_s=0.008)
    assert measured.at_megapixels(200.0).video_s == pytest.approx({DECODE: 1.8, "kvq": 0.1})
    assert measured.at_megapixels(50.0).video_s[DECODE] == pytest.approx(0.6)
    # The prediction never falls below zero.
    steep = Throughput({DECODE: 1.0}, megapixels=100.0, decode_megapixel_s=0.02)
    assert steep.at_megapixels(10.0).video_s[DECODE] == pytest.approx(0.1)
    with pytest.raises(SpecError, match="no earlier run has decoded videos of two sizes"):
        Throughput({DECODE: 1.0}).at_megapixels(200.0)
