"""What the pools of a job take together, and a Ray that can never have it."""

import os
import signal

import pytest

from kvq_batch.config.job import Workers
from kvq_batch.domain.errors import SpecError
from kvq_batch.engine.ray_cluster import ray_cluster, smallest


def test_the_smallest_pools_are_summed_by_resource() -> None:
    decode = Workers(min=4, max=64, num_cpus=1, resources={"decode": 1})
    score = Workers(min=2, max=4, num_cpus=0.5, num_gpus=0.25, resources={"score": 0.5})
    assert smallest([decode, score]) == {"CPU": 5.0, "GPU": 0.5, "decode": 4.0, "score": 1.0}


def test_a_resource_that_the_cluster_never_has_is_refused_by_name() -> None:
    pools = [Workers(num_cpus=0.5, resources={"decode": 1})]
    refused = r"take 1 decode together and the cluster has at most 0: .*resources\.decode"
    with pytest.raises(SpecError, match=refused), ray_cluster(pools):
        pytest.fail("it should not have started")


def test_sigterm_stays_with_who_asked_for_it() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with ray_cluster([Workers(num_cpus=0.5)]):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
