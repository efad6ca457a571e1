"""Machines that the cluster lost by somebody's order: spot that was taken back, a node that was emptied.

Such a machine is drained first (`ray drain-node`, the autoscaler, Ray itself on SIGTERM), and Ray remembers it as the
reason of its death: the same that `RayActorError.preempted` tells of a single worker. Ray Data keeps that error to
itself, and Ray spends a block's only retry before it knows that the node is gone (measured), so what was lost is told
by the nodes. A machine that dies without a word is not among them: a video may have killed it.
"""

import ray
from ray._private import state
from ray.core.generated import common_pb2


class Departures:
    """The machines that were taken back since this was made; needs a connection to Ray."""

    def __init__(self) -> None:
        self._known = _gone()

    def are_news(self) -> bool:
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
