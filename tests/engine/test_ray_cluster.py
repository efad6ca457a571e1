"""Start of a Ray cluster: required resources, clusters that are too small, signal handlers."""

import os
import signal

import pytest

from kvq_batch.config.job import CoreWorkers, Workers
from kvq_batch.domain.errors import SpecError
from kvq_batch.engine.ray_cluster import minimum_resources, one_per_core, ray_cluster


def test_smallest_pools_are_summed_by_resource() -> None:
    decode = Workers(min=4, max=64, num_cpus=1, resources={"decode": 1})
    score = Workers(min=2, max=4, num_cpus=0.5, num_gpus=0.25, resources={"score": 0.5})
    assert minimum_resources([decode, score]) == {"CPU": 5.0, "GPU": 0.5, "decode": 4.0, "score": 1.0}


def test_local_ray_has_room_for_a_decoder_per_core() -> None:
    num_cores = len(os.sched_getaffinity(0))
    pools = one_per_core([CoreWorkers(), Workers(max=3)])
    assert minimum_resources(pools)["CPU"] == num_cores + 1
    assert minimum_resources(one_per_core([CoreWorkers(max=num_cores + 5), Workers()]))["CPU"] == 2


def test_missing_resource_is_rejected() -> None:
    pools = [Workers(num_cpus=0.5, resources={"decode": 1})]
    expected = r"need 1 decode, but the cluster has at most 0: .*resources\.decode"
    with pytest.raises(SpecError, match=expected), ray_cluster(pools):
        pytest.fail("the cluster started")


def test_sigterm_handler_of_the_caller_is_kept() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with ray_cluster([Workers(num_cpus=0.5)]):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
