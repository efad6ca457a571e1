"""Several runs on the same tables: only one writes, and the run after a crash does the rest."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvq_batch.config.job import Job
from kvq_batch.domain.errors import SpecError
from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.score_run import run_job
from kvq_batch.planning.job_plan import plan_job
from kvq_batch.tables import lease as leases
from tests.engine.test_run import FAST, KVQ, StopsEarly, ask, check_counts, job_of, run
from tests.support.driver import start_driver, wait_for
from tests.support.s3 import S3Location

DUPLICATES = "SELECT video_id FROM scores GROUP BY video_id, model_id HAVING count(*) > 1"


@pytest.fixture
def slow_job(videos: Path, tmp_path: Path) -> Job:
    """Return a job of six videos that are committed one by one."""
    return job_of(videos, tmp_path / "tables", KVQ | {"batch_size": 1}, run={"commit_every_s": 0.1})


@pytest.mark.faults
def test_run_after_a_crash_does_the_rest(slow_job: Job, tmp_path: Path) -> None:
    with start_driver(slow_job, tmp_path) as driver:
        committed = int(wait_for(driver, "committed").split()[1])
        driver.kill()
    with start_driver(slow_job, tmp_path) as second:
        message = wait_for(second, "log run ")
        assert wait_for(second, "finished").startswith("finished scored ")
    assert "its process died" in message
    crashed, finished = ask(slow_job.tables, "SELECT * FROM runs ORDER BY run_id")
    assert (crashed["state"], finished["state"]) == ("crashed", "finished")
    assert crashed["num_scored"] >= committed
    assert crashed["num_scored"] + crashed["num_remaining"] == 6 == crashed["num_scored"] + finished["num_scored"]
    assert 0 <= crashed["max_repeated"] <= crashed["num_remaining"]
    assert ask(slow_job.tables, DUPLICATES) == []
    assert len(ask(slow_job.tables, "SELECT DISTINCT video_id FROM scores")) == 6


@pytest.mark.faults
def test_second_run_is_rejected(slow_job: Job, tmp_path: Path) -> None:
    with start_driver(slow_job, tmp_path) as driver:
        wait_for(driver, "committed")
        with pytest.raises(SpecError, match=rf"run \S+ of job 'test' \(process {driver.pid} on .* is running"):
            run(slow_job)
        assert wait_for(driver, "finished") == "finished scored 6"


def test_outdated_plan_is_made_again(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos, tmp_path / "tables", FAST)
    old_plan = plan_job(job)
    assert run(job).num_scored == 6
    summary = run_job(old_plan)
    assert (summary.num_planned, summary.num_scored) == (0, 0)
    assert ask(job.tables, DUPLICATES) == []


@pytest.mark.faults
def test_paused_run_loses_its_lease(
    clips: Sequence[Path], s3_prefix: S3Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_DURATION_S", 3.0)
    # The paused process is alive on this machine, but it does not renew its lease.
    for clip in clips:
        s3_prefix.put(f"videos/{clip.name}", clip.read_bytes())
    storage = {"endpoint_url": s3_prefix.options.endpoint_url, "region": s3_prefix.options.region}
    job = job_of(
        f"{s3_prefix.uri}/videos",
        f"{s3_prefix.uri}/tables",
        KVQ | {"batch_size": 1},
        storage=storage,
        run={"commit_every_s": 0.1},
    )
    with start_driver(job, tmp_path) as driver:
        wait_for(driver, "committed")
        os.kill(driver.pid, signal.SIGSTOP)
        try:
            observer = StopsEarly()
            second = run_job(plan_job(job), observer, RunOptions(stop=observer.stop))
        finally:
            os.kill(driver.pid, signal.SIGCONT)
        assert "taken over" in wait_for(driver, "error")
    third = run(job)
    check_counts(job, second, s3_prefix.options)
    assert third.state == "finished"
    assert ask(job.tables, DUPLICATES, s3_prefix.options) == []
    assert len(ask(job.tables, "SELECT DISTINCT video_id FROM scores", s3_prefix.options)) == 6
    states = ask(job.tables, "SELECT state FROM runs ORDER BY commit_seq", s3_prefix.options)
    assert [row["state"] for row in states] == ["crashed", "stopped", "finished"]
