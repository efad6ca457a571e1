"""Connection to a Ray cluster for one run: start or join, redirected output, preemptions.

    with ray_cluster(pools, address):      a local Ray, or the one at the address; disconnected at the end
        monitor = PreemptionMonitor()      reports whether nodes were preempted

Inside `ray_cluster`, the output of Ray goes to the logger `kvq_batch.ray` at level DEBUG: stdout is for data, stderr
for progress or for one JSON object per line.
"""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from math import ceil

import ray
from ray.exceptions import AuthenticationError

from kvq_batch.config.job import CoreWorkers, Workers
from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.machine import num_cores
from kvq_batch.engine import ray_internals

LOGGER = logging.getLogger("kvq_batch.ray")

STDERR = 2


# The path of a socket has at most 107 bytes, of which Ray's own names need 68.
_LOCAL_HINT = (
    "Ray needs a folder for its sockets and logs (TMPDIR, a path of at most 39 characters) and a home folder for its "
    "token (HOME): set both to folders that can be written."
)


@contextmanager
def ray_cluster(pools: Sequence[Workers], target: str | None = None) -> Iterator[None]:
    """Connect to the Ray cluster at `target`, or start a local one, with room for the smallest size of `pools`.

    Raises:
        SpecError: the cluster cannot be reached, or is too small for the pools.
        FatalError: this process is already connected to a cluster.
    """
    needed = minimum_resources(pools)
    if ray.is_initialized():
        raise FatalError("This process is already connected to a Ray cluster.")
    # A thread of Ray Data that outlives a stopped run would otherwise start a new cluster with its next Ray call.
    ray_internals.disable_auto_init()
    with redirect_ray_output():
        connect(target, minimum_resources(one_per_core(pools))["CPU"])
        try:
            _check_size(needed)
            yield
        finally:
            ray.shutdown()


def connect(target: str | None, needed_cpus: float) -> None:
    """Join the cluster at `target`, or start a local one with `needed_cpus`; disconnect with `ray.shutdown`.

    Raises:
        SpecError: the cluster cannot be reached.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if target is None:
            # "local": without an address Ray would join any cluster that this machine belongs to.
            ray.init(
                address="local",
                # Ray uses the number for scheduling only: pools that are small together can share the cores.
                num_cpus=max(num_cores(), ceil(needed_cpus)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=target, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, AuthenticationError) as error:
        if target is None:
            raise SpecError(f"Cannot start Ray on this machine: {error}. {_LOCAL_HINT}") from error
        hint = "if it requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        raise SpecError(f"Cannot connect to Ray at {target}: {error}; {hint}") from error
    finally:
        # Ray installs a SIGTERM handler that exits at once. A caller with its own handler commits results first.
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def one_per_core(pools: Sequence[Workers]) -> list[Workers]:
    """Return `pools`, with at least one worker for each core of this machine where that is the default."""
    return [
        pool.model_copy(update={"min": pool.on(num_cores()).max})
        if isinstance(pool, CoreWorkers) and "max" not in pool.model_fields_set
        else pool
        for pool in pools
    ]


def cluster_cores() -> int:
    """Return the CPUs that the cluster has or can grow to; needs a connection to Ray."""
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(max(total.get("CPU", 0.0), ray_internals.find_resource_limits().get("CPU", 0.0)))


def minimum_resources(pools: Sequence[Workers]) -> dict[str, float]:
    """Return the resources that all pools need together at their smallest size, by the name of Ray's resource."""
    needed = {"CPU": 0.0, "GPU": 0.0}
    for pool in pools:
        for name, amount in {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}.items():
            needed[name] = needed.get(name, 0.0) + pool.min * amount
    return needed


def _check_size(needed: Mapping[str, float]) -> None:
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    # An autoscaling cluster may start with a head only: count what it can grow to.
    limits = ray_internals.find_resource_limits()
    for name, amount in needed.items():
        available = max(total.get(name, 0.0), limits.get(name, 0.0))
        if amount > available:
            key = {"CPU": "num_cpus", "GPU": "num_gpus"}.get(name, f"resources.{name}")
            raise SpecError(
                f"The smallest pools of the job need {amount:g} {name}, but the cluster has at most {available:g}: "
                f"reduce their workers (min, {key}), or add resources to the cluster"
            )


@contextmanager
def redirect_ray_output() -> Iterator[None]:
    """Send `print` output and everything written to file descriptor 2 to the log; `sys.stderr` still works.

    Ray prints notices of its own, and its C++ code writes to the file descriptor of stderr.
    """
    with redirect_stdout(_LogStream()), _native_stderr_to_log():
        yield


class _LogStream(io.TextIOBase):
    def write(self, text: str) -> int:
        if text.strip():
            LOGGER.debug(text.rstrip())
        return len(text)


@contextmanager
def _native_stderr_to_log() -> Iterator[None]:
    sys.stderr.flush()
    original = os.dup(STDERR)
    read_end, write_end = os.pipe()
    os.dup2(write_end, STDERR)
    os.close(write_end)
    reader = threading.Thread(target=_log_lines, args=(read_end,), name="ray-stderr", daemon=True)
    reader.start()
    outside, inside = sys.stderr, os.fdopen(os.dup(original), "w", buffering=1, errors="backslashreplace")
    sys.stderr = inside
    try:
        yield
    finally:
        sys.stderr = outside
        inside.close()
        os.dup2(original, STDERR)
        os.close(original)


def _log_lines(read_end: int) -> None:
    # Processes that Ray started may keep the write end open a little longer than this process; do not wait for them.
    with os.fdopen(read_end, errors="replace") as lines:
        for line in lines:
            if line.strip():
                LOGGER.debug(line.rstrip())


class PreemptionMonitor:
    """Reports nodes that were preempted since its creation; needs a connection to Ray.

    A preempted node is drained first (by `ray drain-node`, by the autoscaler, or by Ray on SIGTERM), and Ray keeps
    that as the reason of the node's death, the same one that sets `RayActorError.preempted` for a worker. Ray Data does
    not pass that error on, and Ray uses up the only retry of a block before it knows that the node is lost (measured).
    So the state of the nodes decides. A node that dies without a drain does not count: a video may have killed it.
    """

    def __init__(self) -> None:
        self._known = ray_internals.find_preempted_nodes()

    def has_new_preemptions(self) -> bool:
        """Return whether nodes were preempted since the last call, or are being preempted now."""
        preempted = ray_internals.find_preempted_nodes()
        # A draining node may lose its workers before it is dead. A node that the autoscaler removes because it is idle
        # drains too; it has no deadline and no work to lose.
        is_draining = any(deadline_ms > 0 for deadline_ms in ray_internals.find_drain_deadlines_ms().values())
        has_new = bool(preempted - self._known) or is_draining
        self._known = preempted
        return has_new
