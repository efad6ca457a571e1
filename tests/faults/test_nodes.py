"""A node crashes or is preempted during a run, and another joins: nothing is lost."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from ray.cluster_utils import Cluster

from tests.faults.test_workers import max_repeated
from tests.support.driver import wait_for
from tests.support.trial import CLEANUP_TIMEOUT_S, Trial, check, names_of

MakeTrial = Callable[..., Trial]
Report = Callable[[str], None]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Trial], Cluster]]:
    """Return a function that makes a cluster whose workers all run on nodes that may be removed, not on the head."""
    made: list[Cluster] = []

    def make(trial: Trial) -> Cluster:
        # Until the end of the test: nodes that join later need the model, too.
        for name, value in trial.environment().items():
            monkeypatch.setenv(name, value)
        made.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}))
        for _ in range(2):
            made[0].add_node(num_cpus=2, include_dashboard=False)
        return made[0]

    yield make
    for single in made:
        single.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.faults
def test_lost_node_loses_no_video(make_trial: MakeTrial, cluster: Callable[[Trial], Cluster], report: Report) -> None:
    workers = {"num_cpus": 1, "min": 1, "max": 2}
    trial = make_trial(names_of(240, "page", "segfault"), seconds=0.25, decode={"workers": workers})
    nodes = cluster(trial)
    model = trial.job.models[0].model_copy(update={"workers": trial.job.decode.workers})
    run = trial.job.run.model_copy(update={"ray_address": nodes.address, "max_attempts": 3, "commit_every_s": 0.5})
    trial.job = trial.job.model_copy(update={"models": (model,), "run": run})
    arrived: list[tuple[float, int]] = []
    with trial.start() as driver:
        lost_at = joined_at = 0.0
        while True:
            line = wait_for(driver, "").split()
            now = time.monotonic()
            if line[0] == "committed":
                arrived.append((now, int(line[1])))
            elif line[0] in ("finished", "error"):
                break
            if not lost_at and arrived and arrived[-1][1] >= 60:
                lost_at = time.monotonic()
                nodes.remove_node(sorted(nodes.worker_nodes, key=str)[0], allow_graceful=False)
            elif lost_at and not joined_at and arrived[-1][1] >= 120:
                joined_at = time.monotonic()
                nodes.add_node(num_cpus=2, include_dashboard=False)
    assert line[0] == "finished", line
    repeated = check(trial)
    assert repeated <= max_repeated(trial, 2)
    before, during, after = (rate(arrived, *span) for span in ((0, lost_at), (lost_at, joined_at), (joined_at, now)))
    report(
        f"node lost: {repeated} repeated | videos/s {before:.1f} before, {during:.1f} for {joined_at - lost_at:.0f} s "
        f"without it, {after:.1f} with another"
    )


@pytest.mark.faults
def test_preempted_node_is_not_an_attempt(
    make_trial: MakeTrial, cluster: Callable[[Trial], Cluster], report: Report
) -> None:
    single = {"num_cpus": 1, "min": 1, "max": 1}
    trial = make_trial(names_of(8, "page"), seconds=1.5, decode={"workers": single})
    nodes = cluster(trial)
    model = trial.job.models[0].model_copy(update={"workers": trial.job.decode.workers})
    # One attempt: if the preemption counted, its videos would fail.
    run = trial.job.run.model_copy(update={"ray_address": nodes.address, "max_attempts": 1, "commit_every_s": 0.5})
    trial.job = trial.job.model_copy(update={"models": (model,), "run": run})
    with trial.start() as driver:
        # Ray retries a block once. So the nodes are preempted again during that retry.
        for _ in range(2):
            made, deadline = trial.num_inferences, time.monotonic() + CLEANUP_TIMEOUT_S
            while trial.num_inferences == made:
                assert driver.poll() is None
                assert time.monotonic() < deadline, "no inferences any more"
                time.sleep(0.1)
            preempted = sorted(nodes.worker_nodes, key=str)
            for node in preempted:
                drain(nodes.address, node.node_id)
            nodes.add_node(num_cpus=2, include_dashboard=False)
            for node in preempted:
                nodes.remove_node(node, allow_graceful=False)
        # The first line names the executor.
        wait_for(driver, "log executor: ")
        message = wait_for(driver, "log ")
        assert wait_for(driver, "finished") == f"finished scored {len(trial.healthy)}"
    assert message.endswith("result(s) never came back: nodes were preempted")
    repeated = check(trial)
    assert repeated <= max_repeated(trial, 2)
    rows = trial.ask("SELECT error, final, count(*) AS n FROM failures WHERE error <> 'not_a_video' GROUP BY ALL")
    assert [(row["error"], row["final"]) for row in rows] == [("node_preempted", False)]
    report(f"all nodes preempted twice: {rows[0]['n']} retried without counting, {repeated} repeated")


def drain(address: str, node_id: str) -> None:
    """Drain a node as a spot instance does; it works until it is removed."""
    words = ["drain-node", "--address", address, "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "spot", "--deadline-remaining-seconds", "60"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *words], check=True, capture_output=True, timeout=120)


def rate(arrived: list[tuple[float, int]], start: float, end: float) -> float:
    """Return the committed videos per second between two times."""
    inside = [(moment, count) for moment, count in arrived if start <= moment <= end]
    (first, before), (last, after) = inside[0], inside[-1]
    return (after - before) / (last - first) if last > first else 0.0
