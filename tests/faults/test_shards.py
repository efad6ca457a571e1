"""Four drivers on the shards of one catalog are killed and run again: nothing is lost, nothing is stored twice."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.cluster_utils import Cluster

from tests.support.driver import wait_for
from tests.support.trial import Trial, check, names_of, recorded_max_repeated

NUM_SHARDS = 4


@pytest.fixture
def one_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Trial], str]]:
    """Return a function that makes the cluster of all drivers and returns its address."""
    made: list[Cluster] = []

    def make(trial: Trial) -> str:
        for name, value in trial.environment().items():
            monkeypatch.setenv(name, value)
        made.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False}))
        return str(made[0].address)

    yield make
    for one in made:
        one.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.faults
def test_killed_drivers_of_shards_resume(
    make_trial: Callable[..., Trial], one_cluster: Callable[[Trial], str], report: Callable[[str], None]
) -> None:
    # Slow enough that each is killed while it works, on any machine.
    trial = make_trial(names_of(96, "page", "segfault", "page"), seconds=0.3)
    whole = trial.job.model_copy(
        update={"run": trial.job.run.model_copy(update={"ray_address": one_cluster(trial), "commit_every_s": 0.2})}
    )

    def start(number: int) -> "subprocess.Popen[str]":
        select = whole.select.model_copy(update={"shard": f"{number}/{NUM_SHARDS}"})
        trial.job = whole.model_copy(update={"select": select})
        return trial.start()

    def kill_while_working(driver: "subprocess.Popen[str]") -> None:
        wait_for(driver, "committed")
        driver.kill()
        assert driver.wait() == -signal.SIGKILL

    numbers = range(1, NUM_SHARDS + 1)
    with ThreadPoolExecutor(NUM_SHARDS) as pool:
        list(pool.map(kill_while_working, [start(number) for number in numbers]))
    endings = [wait_for(driver, "finished") for driver in [start(number) for number in numbers]]
    trial.job = whole
    repeated = check(trial)
    states = trial.ask("SELECT state, count(*) AS runs FROM runs GROUP BY state ORDER BY state")
    assert [(row["state"], row["runs"]) for row in states] == [("crashed", NUM_SHARDS), ("finished", NUM_SHARDS)]
    kept = len(trial.healthy) - sum(int(line.split()[-1]) for line in endings)
    assert 0 < kept < len(trial.healthy)
    bound = recorded_max_repeated(trial)
    assert repeated <= bound
    report(f"four drivers on four shards killed: {kept} kept | {repeated} repeated | {bound} at most")
