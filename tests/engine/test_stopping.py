"""Runs that stop at a deadline or a cost: finished results stay, and the next run does the rest."""

import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.engine.stopping import INTERRUPTED, StopCondition
from kvq_batch.planning.job_plan import plan_job
from tests.engine.test_run import ask, check_counts, job_of, run
from tests.support.faults import MisbehavingDecodeWorker


@pytest.mark.parametrize("limit", [pytest.param("deadline", marks=pytest.mark.faults), "max_cost"])
def test_budget_stops_run_and_next_run_resumes(videos: Path, tmp_path: Path, limit: str) -> None:
    # One video hangs its decoder until the timeout, so the run cannot end before its budget.
    shutil.copy2(videos / "none-0.mp4", videos / "hang.mp4")
    prices = {"core_hour": 3600.0, "currency": "CHF"}
    budget: dict[str, Any] = {"max_cost": 40.0}
    if limit == "deadline":
        budget = {"deadline": (datetime.now(UTC) + timedelta(seconds=18)).isoformat()}
    limits = {"timeout_s": 600}
    job = job_of(videos, tmp_path / "tables", budget=budget, prices=prices, limits=limits)
    first = run(job, worker=MisbehavingDecodeWorker)
    check_counts(job, first)
    messages = {"deadline": "reached the deadline ", "max_cost": "reached budget.max_cost = 40"}
    assert first.state == "stopped"
    assert first.message.startswith(messages[limit])
    assert first.num_remaining > 0
    assert first.num_scored + first.num_remaining == 7
    assert not ask(job.tables, "SELECT * FROM failures WHERE final")
    (row,) = ask(job.tables, "SELECT state, message, cost, currency, core_hours, gpu_hours, expected_s FROM runs")
    assert (row["state"], row["message"], row["expected_s"]) == ("stopped", first.message, None)
    assert row["cost"] == pytest.approx(row["core_hours"] * 3600)
    assert (row["currency"], row["gpu_hours"]) == ("CHF", 0.0)
    if limit == "max_cost":
        assert row["cost"] >= 40.0
        return
    again = job_of(videos, tmp_path / "tables")
    second = run(again)
    check_counts(again, second)
    assert (second.state, second.num_planned) == ("finished", first.num_remaining)
    assert len(ask(job.tables, "SELECT DISTINCT video_id FROM scores")) == 7


def test_past_deadline_is_rejected(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos, tmp_path / "tables", budget={"deadline": "2026-01-01T06:00"})
    with pytest.raises(SpecError, match=r"budget.deadline = 2026-01-01T06:00 has passed"):
        plan_job(job)
    assert not (tmp_path / "tables").exists()


def test_stop_condition_keeps_first_cause() -> None:
    requested, past = threading.Event(), datetime.now(UTC) - timedelta(seconds=1)
    assert not StopCondition(requested).is_set()
    assert not StopCondition(requested, past + timedelta(days=1), 1.0, lambda: 0.5).is_set()
    assert not StopCondition(requested, None, 1.0, lambda: None).is_set()
    late = StopCondition(requested, past, 1.0, lambda: 2.0)
    spent = StopCondition(requested, None, 1.0, lambda: 1.0)
    assert late.is_set()
    assert spent.is_set()
    requested.set()
    assert late.is_set()
    assert "reached the deadline" in str(late.cause)
    assert spent.cause == "reached budget.max_cost = 1"
    stopped = StopCondition(requested, past)
    assert stopped.is_set()
    assert stopped.cause == INTERRUPTED
