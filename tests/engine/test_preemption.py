"""Which nodes count as preempted, by Ray's table of nodes. tests/faults/test_nodes.py removes a real one."""

from typing import Any

import pytest
import ray
from ray._private import state
from ray.core.generated import common_pb2

from kvq_batch.engine.ray_cluster import PreemptionMonitor

REASONS = dict(common_pb2.NodeDeathInfo.Reason.items())  # type: ignore[attr-defined]


class Nodes:
    """Replacement for Ray's table of nodes: `dead` with reasons, `draining` with deadlines."""

    def __init__(self) -> None:
        self.dead: dict[str, str] = {}
        self.draining: dict[str, int] = {}

    def table(self) -> list[dict[str, Any]]:
        dead = [{"NodeID": n, "Alive": False, "DeathReason": REASONS[reason]} for n, reason in self.dead.items()]
        return [{"NodeID": "here", "Alive": True, "DeathReason": 0}, *dead]

    def get_draining_nodes(self) -> dict[str, int]:
        return self.draining


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    nodes = Nodes()
    monkeypatch.setattr(ray, "nodes", nodes.table)
    monkeypatch.setattr(state, "state", nodes)
    return nodes


def test_preempted_node_is_reported_once(nodes: Nodes) -> None:
    nodes.dead["earlier"] = "AUTOSCALER_DRAIN_PREEMPTED"
    monitor = PreemptionMonitor()
    assert not monitor.has_new_preemptions()
    nodes.dead["spot"] = "AUTOSCALER_DRAIN_PREEMPTED"
    assert monitor.has_new_preemptions()
    assert not monitor.has_new_preemptions()


@pytest.mark.parametrize("reason", ["UNEXPECTED_TERMINATION", "EXPECTED_TERMINATION", "AUTOSCALER_DRAIN_IDLE"])
def test_other_deaths_are_not_preemptions(nodes: Nodes, reason: str) -> None:
    monitor = PreemptionMonitor()
    nodes.dead["dead"] = reason
    assert not monitor.has_new_preemptions()


def test_draining_node_counts_only_with_a_deadline(nodes: Nodes) -> None:
    monitor = PreemptionMonitor()
    nodes.draining = {"idle": 0}
    assert not monitor.has_new_preemptions()
    nodes.draining = {"idle": 0, "spot": 1_795_263_981_457}
    assert monitor.has_new_preemptions()
