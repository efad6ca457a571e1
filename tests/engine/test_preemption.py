"""Which machines count as taken back, by Ray's table of nodes; a real one goes in tests/faults/test_nodes."""

from typing import Any

import pytest
import ray
from ray._private import state
from ray.core.generated import common_pb2

from kvq_batch.engine.ray_cluster import PreemptionMonitor

REASONS = dict(common_pb2.NodeDeathInfo.Reason.items())  # type: ignore[attr-defined]


class Nodes:
    """What Ray says of its nodes: `dead` with their reasons, `draining` with their deadlines."""

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


def test_a_machine_that_was_taken_back_is_news_once(nodes: Nodes) -> None:
    nodes.dead["earlier"] = "AUTOSCALER_DRAIN_PREEMPTED"
    seen = PreemptionMonitor()
    assert not seen.has_new_preemptions()
    nodes.dead["spot"] = "AUTOSCALER_DRAIN_PREEMPTED"
    assert seen.has_new_preemptions()
    assert not seen.has_new_preemptions()


@pytest.mark.parametrize("reason", ["UNEXPECTED_TERMINATION", "EXPECTED_TERMINATION", "AUTOSCALER_DRAIN_IDLE"])
def test_a_machine_that_went_otherwise_excuses_nobody(nodes: Nodes, reason: str) -> None:
    seen = PreemptionMonitor()
    nodes.dead["gone"] = reason
    assert not seen.has_new_preemptions()


def test_a_machine_that_is_going_counts_and_an_idle_one_does_not(nodes: Nodes) -> None:
    seen = PreemptionMonitor()
    nodes.draining = {"idle": 0}
    assert not seen.has_new_preemptions()
    nodes.draining = {"idle": 0, "spot": 1_795_263_981_457}
    assert seen.has_new_preemptions()
