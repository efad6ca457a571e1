"""Runs that stop of themselves: at a deadline, at a cost; what is finished stays and the next run does the rest."""

import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.engine.stopping import INTERRUPTED, StopCondition
from kvq_batch.planning.job_plan import plan_job
from tests.engine.test_run import ask, check_books, job_of, run
from tests.support.faults import MisbehavingDecodeWorker


@pytest.mark.parametrize("limit", [pytest.param("deadline", marks=pytest.mark.faults), "max_cost"])
def test_a_budget_ends_the_run_and_the_next_one_does_the_rest(videos: Path, tmp_path: Path, limit: str) -> None:
    # One video hangs its decoder for as long as the limits allow: no run ends before its budget.
    shutil.copy2(videos / "none-0.mp4", videos / "hang.mp4")
    prices = {"core_hour": 3600.0, "currency": "CHF"}
    budget: dict[str, Any] = {"max_cost": 40.0}
    if limit == "deadline":
        budget = {"deadline": (datetime.now(UTC) + timedelta(seconds=18)).isoformat()}
    limits = {"timeout_s": 600}
    job = job_of(videos, tmp_path / "tables", budget=budget, prices=prices, limits=limits)
    first = run(job, worker=MisbehavingDecodeWorker)
    check_books(job, first)
    said = {"deadline": "reached the deadline ", "max_cost": "reached budget.max_cost = 40"}
    assert first.state == "stopped"
    assert first.message.startswith(said[limit])
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
    check_books(again, second)
    assert (second.state, second.num_planned) == ("finished", first.num_remaining)
    assert len(ask(job.tables, "SELECT DISTINCT video_id FROM scores")) == 7


def test_a_deadline_that_has_passed_is_refused(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos, tmp_path / "tables", budget={"deadline": "2026-01-01T06:00"})
    with pytest.raises(SpecError, match=r"budget.deadline = 2026-01-01T06:00 has passed"):
        plan_job(job)
    assert not (tmp_path / "tables").exists()


def test_the_first_cause_is_kept() -> None:
    asked, past = threading.Event(), datetime.now(UTC) - timedelta(seconds=1)
    assert not StopCondition(asked).is_set()
    assert not StopCondition(asked, past + timedelta(days=1), 1.0, lambda: 0.5).is_set()
    assert not StopCondition(asked, None, 1.0, lambda: None).is_set()
    late = StopCondition(asked, past, 1.0, lambda: 2.0)
    spent = StopCondition(asked, None, 1.0, lambda: 1.0)
    assert late.is_set()
    assert spent.is_set()
    asked.set()
    assert late.is_set()
    assert "reached the deadline" in str(late.cause)
    assert spent.cause == "reached budget.max_cost = 1"
    stopped = StopCondition(asked, past)
    assert stopped.is_set()
    assert stopped.cause == INTERRUPTED
