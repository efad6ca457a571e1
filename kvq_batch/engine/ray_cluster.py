"""Ray, started here for one run or joined at an address, left as it was found, and quiet meanwhile.

This module schedules nothing.

Ray's own words, kept apart from ours: what it prints and what its C++ side writes go to the logger `kvq_batch.ray`.

stdout belongs to data, and stderr to the progress of the run or to one JSON object a line. Ray's notices of dying
workers are worth keeping, for who asks; what the deaths cost is in the ledger. This module silences nothing of ours.

What killed workers leave behind on the driver's machine, removed when a run ends, however it ends.

Ray ends its workers by force, so they cannot tidy up after themselves. Folders of living processes are never touched;
what lies on other machines of a cluster goes when the next worker starts there.

Machines that the cluster lost by somebody's order: spot that was taken back, a node that was emptied.

Such a machine is drained first (`ray drain-node`, the autoscaler, Ray itself on SIGTERM), and Ray remembers it as the
reason of its death: the same that `RayActorError.preempted` tells of a single worker. Ray Data keeps that error to
itself, and Ray spends a block's only retry before it knows that the node is gone (measured), so what was lost is told
by the nodes. A machine that dies without a word is not among them: a video may have killed it.
"""

import io
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import ray
from ray._private import auto_init_hook, state
from ray.core.generated import common_pb2
from ray.exceptions import AuthenticationError

from kvq_batch.config.job import Decode, Workers
from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.engine.pipeline import configure_ray_data
from kvq_batch.media.scratch import scratch_directories, sweep
from kvq_batch.storage.fetch import sweep_dead

LOGGER = logging.getLogger("kvq_batch.ray")

STDERR = 2


@contextmanager
def redirect_ray_output() -> Iterator[None]:
    """Inside, `print` and the file descriptor of stderr end in the log; `sys.stderr` stays where it was."""
    with redirect_stdout(_ToLog()), _native_stderr_to_log():
        yield


class _ToLog(io.TextIOBase):
    def write(self, text: str) -> int:
        if text.strip():
            LOGGER.info(text.rstrip())
        return len(text)


@contextmanager
def _native_stderr_to_log() -> Iterator[None]:
    sys.stderr.flush()
    original = os.dup(STDERR)
    read_end, write_end = os.pipe()
    os.dup2(write_end, STDERR)
    os.close(write_end)
    reader = threading.Thread(target=_drain, args=(read_end,), name="ray-stderr", daemon=True)
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


def _drain(read_end: int) -> None:
    # Processes that Ray started may hold the other end for a moment longer than we do; the thread outlives that.
    with os.fdopen(read_end, errors="replace") as lines:
        for line in lines:
            if line.strip():
                LOGGER.info(line.rstrip())


CLEANUP_TIMEOUT_S = 30.0
"""How long at most the last workers may take to die; they are killed already, but on a machine with eight times more
to do than cores it took them over 5 s (measured). Waited for only while something is there."""


@contextmanager
def cleanup_scratch(decode: Decode) -> Iterator[None]:
    """When the block ends, frames and fetched files that its workers left are gone."""
    shared_memory, scratch = Path(decode.shared_memory), Path(decode.scratch or tempfile.gettempdir())
    before = scratch_directories(shared_memory)
    try:
        yield
    finally:
        deadline = time.monotonic() + CLEANUP_TIMEOUT_S
        sweep(shared_memory)
        while scratch_directories(shared_memory) - before and time.monotonic() < deadline:
            time.sleep(0.1)
            sweep(shared_memory)
        sweep_dead(scratch)


class PreemptionMonitor:
    """The machines that were taken back since this was made; needs a connection to Ray."""

    def __init__(self) -> None:
        self._known = _gone()

    def has_new_preemptions(self) -> bool:
        """Whether machines were taken back since the last time, or are being so now."""
        gone = _gone()
        # One that goes on working while it drains may lose its workers before it is dead. An idle machine drains, too,
        # when the autoscaler gives it up; that one has no deadline, and nothing to lose.
        is_draining = any(deadline_ms > 0 for deadline_ms in state.state.get_draining_nodes().values())
        is_news = bool(gone - self._known) or is_draining
        self._known = gone
        return is_news


def _gone() -> frozenset[str]:
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    preempted = common_pb2.NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED  # type: ignore[attr-defined]
    return frozenset(node["NodeID"] for node in nodes if not node["Alive"] and node["DeathReason"] == preempted)


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
    with redirect_ray_output():
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
        index = target or "this machine"
        hint = "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if target else ""
        raise SpecError(f"Ray cannot be reached at {index}: {error}{hint}") from error
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
