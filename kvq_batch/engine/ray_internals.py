"""Private APIs of Ray that the engine needs, checked with Ray 2.60.0.

All uses of a private API are here, so that an upgrade of Ray has one module to check; `tests/test_architecture.py`
enforces it. Each docstring says why the public API is not enough.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private import auto_init_hook, state
from ray.core.generated import common_pb2, gcs_pb2
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.util.metrics import Counter

_DEAD = gcs_pb2.ActorTableData.ActorState.DEAD  # type: ignore[attr-defined]


class StepCallback(ExecutionCallback):
    """Base class of callbacks that Ray Data runs in the driver after each scheduling step.

    Register subclasses in `DataContext.custom_execution_callback_classes`. Ray Data has no public way to read queue
    lengths during an execution, or to stop one from outside: an exception in the callback stops it.

    Before that, each step removes dead workers from their pools. Ray Data counts a worker that Ray does not restart any
    more as one of the pool: it would start no other, and a pool without a living worker would wait for ever.
    """

    def on_execution_step(self, executor: Any) -> None:
        for operator in executor._topology:
            for pool in operator.get_autoscaling_actor_pools():
                _remove_dead_actors(pool)
        operators = executor._topology.items()
        self.on_step([
            operator_state.total_enqueued_input_blocks()
            for operator, operator_state in operators
            if isinstance(operator, MapOperator)
        ])  # fmt: skip

    def on_step(self, queued_blocks: Sequence[int]) -> None:
        """Handle one step; `queued_blocks` counts the waiting input blocks of each `map_batches`, in pipeline order."""
        raise NotImplementedError


def _remove_dead_actors(pool: Any) -> None:
    # An actor with tasks in flight stays until Ray has ended them with an error.
    dead = [
        actor
        for actor, state in pool._running_actors.items()
        if not state.num_tasks_in_flight and actor._get_local_state() == _DEAD
    ]
    for actor in dead:
        pool._release_running_actor(actor)


def disable_auto_init() -> None:
    """Stop Ray from starting a cluster when a Ray API is called without one; `ray.init` still works.

    The public switch is an environment variable that is read at import.
    """
    auto_init_hook.enable_auto_connect = False


def find_preempted_nodes() -> frozenset[str]:
    """Return the ids of dead nodes that were drained for preemption; the value of the reason is not public."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    preempted = common_pb2.NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED  # type: ignore[attr-defined]
    return frozenset(node["NodeID"] for node in nodes if not node["Alive"] and node["DeathReason"] == preempted)


def find_drain_deadlines_ms() -> Mapping[str, int]:
    """Return the drain deadline of each draining node, in Unix milliseconds; 0 means that it has none."""
    deadlines: Mapping[str, int] = state.state.get_draining_nodes()
    return deadlines


def find_resource_limits() -> Mapping[str, float]:
    """Return the resources that the cluster can scale up to, by name; empty if it has no autoscaler.

    `ray.cluster_resources` counts only the nodes that exist now.
    """
    return state.state.get_max_resources_from_cluster_config() or {}


def export_zero(counter: Counter, tags: Mapping[str, str]) -> None:
    """Export the counter without changing its value; `Counter.inc` rejects 0."""
    counter._record(0.0, dict(tags))
