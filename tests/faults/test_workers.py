"""Workers die, stop and eat: the run that they work for ends by itself, and only the poison is condemned."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from kvq_batch.config.budget import Budget
from kvq_batch.engine.pipeline import BLOCKS_IN_FLIGHT
from tests.support.driver import wait_for
from tests.support.processes import Process, named
from tests.support.trial import Trial, check, names_of, wait_for_death

MakeTrial = Callable[..., Trial]
Report = Callable[[str], None]

DECODE_WORKER, SCORE_WORKER, DECODE_CHILD = "PoisonedDecodeWorker", "ScoreWorker", "media/child.py"
NUM_KILLS = 3


def workers_of(driver: "subprocess.Popen[str]", kind: str) -> list[Process]:
    """The processes of that kind which work for the driver; waits for the first."""
    deadline = time.monotonic() + 60
    while not (found := [p for p in named(driver.pid, kind) if kind == DECODE_CHILD or p.title.startswith("ray::")]):
        assert time.monotonic() < deadline, f"no {kind} below the driver"
        time.sleep(0.05)
    return found


def committed(driver: "subprocess.Popen[str]", at_least: int) -> None:
    while int(wait_for(driver, "committed").split()[1]) < at_least:
        pass


def most_in_vain(trial: Trial, num_kills: int) -> int:
    """What the workers of the one scoring pool can hold when they die."""
    model = trial.job.models[0]
    return num_kills * model.batch_size * BLOCKS_IN_FLIGHT * model.workers.max


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(DECODE_WORKER, marks=pytest.mark.faults),
        pytest.param(DECODE_CHILD, marks=pytest.mark.faults),
        SCORE_WORKER,
    ],
)
def test_processes_killed_at_random_times_cost_no_score(make_trial: MakeTrial, report: Report, kind: str) -> None:
    trial = make_trial(names_of(48, "page", "segfault"), seconds=0.1)
    # The seed is the test's own, the times are spread over the first round.
    times = sorted(random.Random(f"kill {kind}").sample(range(1, 36), NUM_KILLS))
    killed: set[Process] = set()
    with trial.start() as driver:
        for at_least in times:
            committed(driver, at_least)
            victim = workers_of(driver, kind)[0]
            os.kill(victim.pid, signal.SIGKILL)
            killed.add(victim)
        assert wait_for(driver, "finished") == f"finished scored {len(trial.healthy)}"
    assert len(killed) == NUM_KILLS
    repeated = check(trial)
    assert repeated <= most_in_vain(trial, NUM_KILLS)
    report(f"{kind} killed {NUM_KILLS} times: {repeated} repeated | {most_in_vain(trial, NUM_KILLS)} at most")


@pytest.mark.faults
def test_poison_of_every_kind_is_found_alone(make_trial: MakeTrial, report: Report) -> None:
    trial = make_trial(names_of(40, "page", "segfault", "hang", "eat", "worker", "black"), limits={"timeout_s": 10})
    trial.finish()
    repeated = check(trial)
    # A block that holds a killer is tried twice; whoever stood in it, once more alone.
    assert repeated <= most_in_vain(trial, 2)
    permanent = {row["video_id"] for row in trial.ask("SELECT video_id FROM failures WHERE final AND permanent")}
    assert permanent == {name for name, error in trial.poison.items() if error not in ("worker_died", "decode_timeout")}
    report(f"poison of every kind: {repeated} repeated | {most_in_vain(trial, 2)} at most")


@pytest.mark.faults
@pytest.mark.parametrize("kind", [DECODE_WORKER, SCORE_WORKER])
def test_a_worker_that_stands_still_for_a_while_costs_only_the_while(make_trial: MakeTrial, kind: str) -> None:
    trial = make_trial(names_of(24, "page"))
    with trial.start() as driver:
        committed(driver, 1)
        victim = workers_of(driver, kind)[0]
        os.kill(victim.pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(victim.pid, signal.SIGCONT)
        assert wait_for(driver, "finished") == f"finished scored {len(trial.healthy)}"
    assert check(trial) == 0


@pytest.mark.faults
def test_a_worker_that_stands_still_for_ever_is_left_behind_at_the_deadline(
    make_trial: MakeTrial, report: Report
) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=90)
    trial = make_trial(names_of(48, "page"), seconds=0.1, budget={"deadline": deadline.isoformat()})
    with trial.start() as driver:
        committed(driver, 1)
        victim = workers_of(driver, SCORE_WORKER)[0]
        os.kill(victim.pid, signal.SIGSTOP)
        num_scored = int(wait_for(driver, "stopped").split()[-1])
    # Stopped or not, it goes with the run.
    wait_for_death([victim])
    trial.job = trial.job.model_copy(update={"budget": Budget()})
    made = trial.num_inferences
    trial.finish()
    repeated = check(trial)
    assert repeated == made - num_scored <= most_in_vain(trial, 1)
    report(f"ScoreWorker stopped for ever: {repeated} repeated | {most_in_vain(trial, 1)} at most")


@pytest.mark.faults
def test_a_decoder_that_stands_still_is_replaced(make_trial: MakeTrial) -> None:
    trial = make_trial(names_of(48, "page"), seconds=0.1, limits={"timeout_s": 10})
    with trial.start() as driver:
        committed(driver, 1)
        os.kill(workers_of(driver, DECODE_CHILD)[0].pid, signal.SIGSTOP)
        assert wait_for(driver, "finished") == f"finished scored {len(trial.healthy)}"
    assert check(trial) == 0
    (slow,) = trial.ask("SELECT error, final FROM failures WHERE error <> 'not_a_video'")
    assert (slow["error"], slow["final"]) == ("decode_timeout", False)
