"""Workers are killed, stopped, or use up memory: the run ends, and only the bad videos fail."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvq_batch.config.job import Budget
from kvq_batch.engine.executor.base import BLOCKS_IN_FLIGHT
from tests.support.driver import wait_for
from tests.support.processes import Process, named
from tests.support.trial import Trial, check, names_of, wait_for_end

MakeTrial = Callable[..., Trial]
Report = Callable[[str], None]

DECODE_WORKER, SCORE_WORKER, DECODE_CHILD = "PoisonedDecodeWorker", "ScoreWorker", "media/child.py"
NUM_KILLS = 3


def workers_of(driver: "subprocess.Popen[str]", kind: str) -> list[Process]:
    """Return the driver's processes of this kind; wait for the first one."""
    deadline = time.monotonic() + 60
    while not (found := [p for p in named(driver.pid, kind) if kind == DECODE_CHILD or p.title.startswith("ray::")]):
        assert time.monotonic() < deadline, f"no {kind} below the driver"
        time.sleep(0.05)
    return found


def wait_for_commits(driver: "subprocess.Popen[str]", at_least: int) -> None:
    while int(wait_for(driver, "committed").split()[1]) < at_least:
        pass


def slow(names: list[str]) -> list[str]:
    """Return names of videos that take 0.3 s to decode."""
    return [f"slow-{name}" for name in names]


def max_repeated(trial: Trial, num_kills: int) -> int:
    """Return the clips that the workers of the scoring pool can hold when they are killed."""
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
def test_killed_process_loses_no_score(make_trial: MakeTrial, report: Report, kind: str) -> None:
    names = names_of(48, "page", "segfault")
    # The stage whose process is killed is the slower one, so that it has work until the end.
    trial = make_trial(names, seconds=0.1) if kind == SCORE_WORKER else make_trial(slow(names), seconds=0.0)
    # Fixed seed; the times are spread over the first attempt.
    times = sorted(random.Random(f"kill {kind}").sample(range(1, 36), NUM_KILLS))
    killed: set[Process] = set()
    with trial.start() as driver:
        for at_least in times:
            wait_for_commits(driver, at_least)
            victim = workers_of(driver, kind)[0]
            os.kill(victim.pid, signal.SIGKILL)
            killed.add(victim)
        assert wait_for(driver, "finished") == f"finished scored {len(trial.healthy)}"
    assert len(killed) == NUM_KILLS
    repeated = check(trial)
    assert repeated <= max_repeated(trial, NUM_KILLS)
    report(f"{kind} killed {NUM_KILLS} times: {repeated} repeated | {max_repeated(trial, NUM_KILLS)} at most")


@pytest.mark.faults
def test_only_bad_videos_fail(make_trial: MakeTrial, report: Report) -> None:
    trial = make_trial(names_of(40, "page", "segfault", "hang", "eat", "worker", "black"), limits={"timeout_s": 10})
    trial.finish()
    repeated = check(trial)
    # A block with a killer runs twice; then each of its videos runs alone.
    assert repeated <= max_repeated(trial, 2)
    permanent = {row["video_id"] for row in trial.ask("SELECT video_id FROM failures WHERE final AND permanent")}
    assert permanent == {name for name, error in trial.poison.items() if error not in ("worker_died", "decode_timeout")}
    report(f"bad videos of every kind: {repeated} repeated | {max_repeated(trial, 2)} at most")


@pytest.mark.faults
@pytest.mark.parametrize("kind", [DECODE_WORKER, SCORE_WORKER])
def test_paused_worker_costs_only_time(make_trial: MakeTrial, kind: str) -> None:
    names = names_of(24, "page")
    trial = make_trial(names, seconds=0.2) if kind == SCORE_WORKER else make_trial(slow(names), seconds=0.0)
    with trial.start() as driver:
        wait_for_commits(driver, 1)
        victim = workers_of(driver, kind)[0]
        os.kill(victim.pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(victim.pid, signal.SIGCONT)
        assert wait_for(driver, "finished") == f"finished scored {len(trial.healthy)}"
    assert check(trial) == 0


@pytest.mark.faults
def test_deadline_ends_run_with_stopped_worker(make_trial: MakeTrial, report: Report) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=90)
    trial = make_trial(names_of(48, "page"), seconds=0.1, budget={"deadline": deadline.isoformat()})
    with trial.start() as driver:
        wait_for_commits(driver, 1)
        victim = workers_of(driver, SCORE_WORKER)[0]
        os.kill(victim.pid, signal.SIGSTOP)
        num_scored = int(wait_for(driver, "stopped").split()[-1])
    # The stopped worker ends with the run.
    wait_for_end([victim])
    trial.job = trial.job.model_copy(update={"budget": Budget()})
    made = trial.num_inferences
    trial.finish()
    repeated = check(trial)
    assert repeated == made - num_scored <= max_repeated(trial, 1)
    report(f"ScoreWorker stopped: {repeated} repeated | {max_repeated(trial, 1)} at most")


@pytest.mark.faults
def test_stopped_decoder_is_replaced(make_trial: MakeTrial) -> None:
    trial = make_trial(names_of(48, "page"), seconds=0.1, limits={"timeout_s": 10})
    with trial.start() as driver:
        wait_for_commits(driver, 1)
        os.kill(workers_of(driver, DECODE_CHILD)[0].pid, signal.SIGSTOP)
        assert wait_for(driver, "finished") == f"finished scored {len(trial.healthy)}"
    assert check(trial) == 0
    (slow,) = trial.ask("SELECT error, final FROM failures WHERE error <> 'not_a_video'")
    assert (slow["error"], slow["final"]) == ("decode_timeout", False)


@pytest.mark.faults
@pytest.mark.parametrize("kind", [DECODE_WORKER, SCORE_WORKER])
def test_stopped_worker_is_replaced(make_trial: MakeTrial, report: Report, kind: str) -> None:
    limits = {"timeout_s": 10, "worker_timeout_s": 20}
    names = names_of(48, "page")
    if kind == SCORE_WORKER:
        trial = make_trial(names, seconds=0.1, limits=limits)
    else:
        trial = make_trial(slow(names), seconds=0.0, limits=limits)
    with trial.start() as driver:
        wait_for_commits(driver, 1)
        victim = workers_of(driver, kind)[0]
        os.kill(victim.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        wait_for_end([victim])
        noticed_s = time.monotonic() - stopped
        assert wait_for(driver, "finished") == f"finished scored {len(trial.healthy)}"
    assert noticed_s < limits["worker_timeout_s"] + 2
    repeated = check(trial)
    assert repeated <= max_repeated(trial, 1)
    report(f"{kind} stopped, replaced after {noticed_s:.0f} s: {repeated} repeated | {max_repeated(trial, 1)} at most")


@pytest.mark.faults
def test_hang_in_native_code_costs_one_video(make_trial: MakeTrial, report: Report) -> None:
    limits = {"timeout_s": 3, "worker_timeout_s": 6}
    trial = make_trial(names_of(16, "stuck"), limits=limits)
    trial.finish()
    repeated = check(trial)
    assert repeated <= max_repeated(trial, 2)
    report(f"a decode worker hangs with the GIL: {repeated} repeated | {max_repeated(trial, 2)} at most")


@pytest.mark.faults
def test_lost_gpu_costs_one_video(make_trial: MakeTrial, report: Report) -> None:
    error = "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`"
    trial = make_trial(names_of(24, "page", "black"), device_error=error)
    trial.finish()
    repeated = check(trial)
    assert repeated <= max_repeated(trial, 2)
    assert trial.ask("SELECT * FROM failures WHERE message LIKE '%CUDA%'") == []
    report(f"a clip breaks the CUDA context: {repeated} repeated | {max_repeated(trial, 2)} at most")


@pytest.mark.faults
def test_gpu_without_memory_for_batch_scores_all(make_trial: MakeTrial) -> None:
    trial = make_trial(names_of(24, "page"), capacity=1)
    trial.finish()
    assert check(trial) == 0
    assert [row["error"] for row in trial.ask("SELECT error FROM failures")] == ["not_a_video"]


@pytest.mark.faults
def test_worker_that_cannot_restart_ends_run(make_trial: MakeTrial) -> None:
    trial = make_trial(names_of(48, "page"), seconds=0.1)
    weights = Path(str(trial.job.models[0].weights))
    content = weights.read_bytes()
    with trial.start() as driver:
        wait_for_commits(driver, 1)
        # Somebody replaces the weights.
        weights.write_bytes(content + b"\n")
        os.kill(workers_of(driver, SCORE_WORKER)[0].pid, signal.SIGKILL)
        assert f"put the same weights at {weights} on every machine" in wait_for(driver, "error")
    weights.write_bytes(content)
    trial.finish()
    assert check(trial) <= max_repeated(trial, 1)
