"""Ray, started here for one run or joined at an address, left as it was found, and quiet meanwhile.

This module schedules nothing.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray._private import auto_init_hook, state
from ray.exceptions import AuthenticationError

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.engine.pipeline import configure_ray_data
from kvq_batch.engine.quiet import rays_words_to_log
from kvq_batch.spec.job import Workers


@contextmanager
def ray_cluster(pools: Sequence[Workers], target: str | None = None) -> Iterator[None]:
    """A Ray to run in, with room for the smallest `pools`, gone when the block ends; local without a `target`.

    Raises:
        SpecError: the cluster cannot be reached, or is too small for the pools.
    """
    needed = smallest(pools)
    if ray.is_initialized():
        raise FatalError("this process is connected to a Ray already")
    # A thread of Ray Data that outlives a stopped run would otherwise start a whole new Ray by asking it something.
    auto_init_hook.enable_auto_connect = False
    with rays_words_to_log():
        connect(target, needed["CPU"])
        try:
            _check_size(needed)
            configure_ray_data()
            yield
        finally:
            ray.shutdown()


def connect(target: str | None, needed_cpus: float) -> None:
    """Joins the Ray at `target`, or starts a local one with room for `needed_cpus`; `ray.shutdown` leaves it.

    Raises:
        SpecError: it cannot be reached.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        if target is None:
            # A local Ray counts CPUs only to schedule: pools that are small together may share the cores.
            num_cpus = max(os.cpu_count() or 1, int(-(-needed_cpus // 1)))
            # "local": without an address Ray would join whatever cluster this machine happens to belong to.
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=target, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError, AuthenticationError) as error:
        place = target or "this machine"
        hint = "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if target else ""
        raise SpecError(f"Ray cannot be reached at {place}: {error}{hint}") from error
    finally:
        # Ray puts a handler of its own there, which ends the process at once: who set one wants to commit first.
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def smallest(pools: Sequence[Workers]) -> dict[str, float]:
    """What the pools take together when each has its fewest workers, by the name of Ray's resource."""
    needed = {"CPU": 0.0, "GPU": 0.0}
    for pool in pools:
        for name, amount in {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}.items():
            needed[name] = needed.get(name, 0.0) + pool.min * amount
    return needed


def _check_size(needed: Mapping[str, float]) -> None:
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    # A cluster that scales itself may begin as a head alone: what counts is what it may grow to.
    limits = state.state.get_max_resources_from_cluster_config() or {}
    for name, amount in needed.items():
        most = max(total.get(name, 0.0), limits.get(name, 0.0))
        if amount > most:
            keys = {"CPU": "num_cpus", "GPU": "num_gpus"}
            raise SpecError(
                f"the job's smallest pools take {amount:g} {name} together and the cluster has at most {most:g}: "
                f"lower their workers (min, {keys.get(name, f'resources.{name}')}), or give the cluster more"
            )
