"""Runs with failing storage, wrong weights or too little memory: what ends a run, and what becomes a failure row.

The S3 server is real, behind a proxy that injects faults. The tables are out of reach of the faults, unless a test is
about them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kvq_batch.config.job import Job
from kvq_batch.domain.errors import FatalError
from kvq_batch.engine.decode_worker import DecodeWorker
from kvq_batch.engine.run import RunOptions
from kvq_batch.engine.score_run import run_job
from kvq_batch.models.kvq.checkpoint import Checkpoint, save
from kvq_batch.models.kvq.config import TINY
from kvq_batch.models.kvq.untrained import untrained_checkpoint, untrained_tensors
from kvq_batch.planning.job_plan import plan_job
from kvq_batch.tables.delta import Tables
from tests.engine.test_run import FAST, ask, check_counts, job_of, run
from tests.support.proxy import DENIED, EXPIRED, FULL, SLOW_DOWN, FaultProxy, Reset, Short
from tests.support.s3 import S3Location

pytestmark = pytest.mark.faults


def upload(location: S3Location, clips: Sequence[Path], *names: str) -> None:
    for number, name in enumerate(names):
        location.put(f"videos/{name}", clips[number % len(clips)].read_bytes())


def stored_job(location: S3Location, proxy: FaultProxy, tables: Path | str, **more: Any) -> Job:
    """Return a job that reaches its videos, and tables on S3, through the proxy."""
    storage = {"endpoint_url": proxy.endpoint_url, "region": "us-east-1"}
    return job_of(f"{location.uri}/videos", tables, FAST | {"batch_size": 1}, storage=storage, **more)


def test_expired_credentials_stop_run_without_final_failures(
    clips: Sequence[Path], s3_prefix: S3Location, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    upload(s3_prefix, clips, *(f"{number:02}.mp4" for number in range(24)))
    job = stored_job(s3_prefix, fault_proxy, tmp_path / "tables", run={"breaker_in_a_row": 6})
    plan = plan_job(job)
    fault_proxy.add(EXPIRED, pattern=r"/videos/\d+\.mp4", passed=8)
    with pytest.raises(FatalError, match="in a row failed at fetch with credentials_expired"):
        run_job(plan)
    rows = ask(job.tables, "SELECT final, permanent, error, message FROM failures")
    assert len(rows) >= 6
    assert not any(row["final"] or row["permanent"] for row in rows)
    assert {row["error"] for row in rows} == {"credentials_expired"}
    assert all("renew them" in row["message"] for row in rows)
    (ended,) = ask(job.tables, "SELECT state, num_scored, num_failed, num_remaining FROM runs")
    (kept,) = ask(job.tables, "SELECT count(*) AS num FROM scores")
    assert (ended["state"], ended["num_failed"], ended["num_scored"]) == ("failed", 0, kept["num"])
    assert ended["num_remaining"] == 24 - kept["num"]

    fault_proxy.clear()
    again = plan_job(job)
    assert again.plan.num_quarantined == 0
    summary = run_job(again)
    check_counts(job, summary)
    assert (summary.state, summary.num_scored, summary.num_failed) == ("finished", 24 - kept["num"], 0)
    assert ask(job.tables, "SELECT count(DISTINCT video_id) AS videos, count(*) AS scores FROM scores") == [
        {"videos": 24, "scores": 24}
    ]


class HoardingDecodeWorker(DecodeWorker):
    """The decode worker with children that allocate a terabyte for videos of a certain name."""

    task_function: ClassVar[str] = "tests.support.media_faults:by_name"


def test_transient_storage_errors_are_retried(
    clips: Sequence[Path], s3_prefix: S3Location, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    names = ["slow.mp4", "reset.mp4", "short.mp4", "fine.mp4", "locked/a.mp4", "locked/b.mp4", "hoard.mp4"]
    upload(s3_prefix, clips, *names)
    job = stored_job(s3_prefix, fault_proxy, tmp_path / "tables")
    plan = plan_job(job)
    fault_proxy.add(SLOW_DOWN, pattern="slow.mp4", times=2)
    fault_proxy.add(Reset(1000), pattern="reset.mp4", times=1)
    fault_proxy.add(Short(1000, is_announced=True), pattern="short.mp4", times=1)
    fault_proxy.add(DENIED, pattern="/locked/")
    summary = run_job(plan, None, RunOptions(worker=HoardingDecodeWorker))
    check_counts(job, summary)
    assert (summary.state, summary.num_scored, summary.num_failed) == ("finished", 4, 3)
    rows_by_attempts = ask(job.tables, "SELECT video_id, fetch_attempts FROM scores ORDER BY fetch_attempts, video_id")
    assert [(row["video_id"], row["fetch_attempts"]) for row in rows_by_attempts] == [
        ("fine.mp4", 1), ("reset.mp4", 2), ("short.mp4", 2), ("slow.mp4", 3),
    ]  # fmt: skip
    failed = ask(job.tables, "SELECT video_id, stage, error, permanent FROM failures WHERE final ORDER BY video_id")
    assert [tuple(row.values()) for row in failed] == [
        ("hoard.mp4", "decode", "out_of_memory", True),
        ("locked/a.mp4", "fetch", "forbidden", False),
        ("locked/b.mp4", "fetch", "forbidden", False),
    ]
    assert ask(job.tables, "SELECT count(*) AS num FROM failures WHERE NOT final") == [{"num": 0}]


def test_full_object_store_stops_run(clips: Sequence[Path], s3_prefix: S3Location, fault_proxy: FaultProxy) -> None:
    upload(s3_prefix, clips, *(f"{number}.mp4" for number in range(8)))
    job = stored_job(s3_prefix, fault_proxy, f"{s3_prefix.uri}/tables", run={"commit_every_s": 0.01})
    plan = plan_job(job)
    # The claim of the epoch is the second version of the log; only results are Parquet files.
    fault_proxy.add(FULL, method="PUT", pattern=r"/tables/scores/.*\.parquet", passed=2)
    with pytest.raises(FatalError, match="'scores' cannot be written: no space left"):
        run_job(plan)
    fault_proxy.clear()
    tables = Tables.open(job.tables, fault_proxy.options())
    kept = tables.dataset("scores").to_table()["video_id"].to_pylist()
    assert 2 <= len(kept) < 8
    (ended,) = ask(job.tables, "SELECT state, num_scored, num_remaining, message FROM runs", fault_proxy.options())
    assert (ended["state"], ended["num_scored"], ended["num_remaining"]) == ("failed", len(kept), 8 - len(kept))
    assert "no space left" in ended["message"]
    summary = run(job)
    check_counts(job, summary, fault_proxy.options())
    assert summary.num_scored == 8 - len(kept)


def test_changed_weights_end_run_before_first_score(videos: Path, tmp_path: Path) -> None:
    weights = tmp_path / "kvq.safetensors"
    planned = save(weights, untrained_checkpoint("kvq-tiny", TINY))
    model = {"name": "kvq-tiny", "weights": str(weights), "workers": {"num_cpus": 0.5}}
    job = job_of(videos, tmp_path / "tables", model)
    plan = plan_job(job)
    card = untrained_checkpoint("kvq-tiny", TINY).card
    found = save(weights, Checkpoint(card, TINY, untrained_tensors(TINY, seed=1)))
    with pytest.raises(
        FatalError, match=f"is {found.model_id} on this worker but {planned.model_id} on the driver"
    ) as caught:
        run_job(plan)
    assert "ray::" not in str(caught.value)
    (row,) = ask(job.tables, "SELECT state, num_scored, num_failed, num_remaining FROM runs")
    assert tuple(row.values()) == ("failed", 0, 0, 6)
    assert ask(job.tables, "SELECT * FROM failures") == []
