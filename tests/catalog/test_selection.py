"""Selections: conditions, samples, reasons, ages and orders; the same videos every time, and none lost."""

import hashlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.config.job import Select
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import ModelRef
from kvq_batch.planning.plan import Plan, make_plan
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, LUMA, NOW, make_batch, make_catalog, make_failures, make_run

NEWER_KVQ = ModelRef("kvq-tiny", "kvq-tiny@2-00000000aaaa", KVQ.fingerprint)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables.create(str(tmp_path / "tables"))


@pytest.fixture
def writer(tables: Tables) -> Writer:
    return Writer(tables, "run-1")


def plan_of(tables: Tables | None, catalog: Any, *models: ModelRef, now: datetime | None = None, **select: Any) -> Plan:
    plan = make_plan(tables, catalog, "nightly", models or [KVQ], Select(**select), now)
    taken = plan.tasks.num_rows + plan.num_current + plan.num_quarantined + plan.num_other_reasons
    assert taken == plan.num_selected * len(models or [KVQ])
    return plan


def videos_of(plan: Plan) -> list[str]:
    videos: list[str] = plan.tasks.column("video_id").to_pylist()
    return videos


def test_condition_can_use_every_column(tables: Tables, writer: Writer) -> None:
    catalog = make_catalog(["a", "b", "c", "d"], country=["ch", "de", "ch", None], views=[5, 6, 7, 8])
    writer.write_catalog(catalog_changes(tables, make_catalog(["a", "b", "gone"]), "nightly"))
    writer.commit(make_batch(["a"]))
    plan = plan_of(tables, catalog, where="country = 'ch' AND Views < 10 AND video_id <> 'zz'")
    assert (videos_of(plan), plan.num_selected, plan.num_current) == (["c"], 2, 1)
    # Videos that are not selected are not removed from the catalog.
    assert plan.removed == ("gone",)
    assert videos_of(plan_of(tables, catalog, where="false")) == []


@pytest.mark.parametrize(
    "where",
    ["no_such_column = 1", "1; DROP TABLE catalog", "video_id IN (SELECT * FROM read_text('/etc/hostname'))", "("],
)
def test_invalid_condition_is_rejected(where: str) -> None:
    with pytest.raises(SpecError, match=r"^select.where = .* is not a valid condition"):
        plan_of(None, make_catalog(["a"]), where=where)


def test_samples_are_stable_and_nested() -> None:
    names = [f"video-{number}" for number in range(2000)]
    share = {percent: set(videos_of(plan_of(None, make_catalog(names), sample=f"{percent}%"))) for percent in (1, 10)}
    assert 5 <= len(share[1]) <= 40
    assert 150 <= len(share[10]) <= 250
    assert share[1] < share[10]
    # Independent of the order and of the other videos.
    assert set(videos_of(plan_of(None, make_catalog(names[::-2]), sample="10%"))) == share[10] & set(names[::-2])
    some = videos_of(plan_of(None, make_catalog(names), sample="7"))
    assert len(some) == 7
    assert set(some) < set(videos_of(plan_of(None, make_catalog(names[::-1]), sample="20")))
    assert videos_of(plan_of(None, make_catalog(["a", "b"]), sample="7")) == ["a", "b"]
    assert len(videos_of(plan_of(None, make_catalog(names), sample="100%"))) == 2000
    # Independent of the version of DuckDB: another hash would select other videos after an update.
    smallest = sorted(names, key=lambda name: int.from_bytes(hashlib.md5(name.encode()).digest()[8:], "little"))
    assert set(videos_of(plan_of(None, make_catalog(names), sample="3"))) == set(smallest[:3])


def test_sample_does_not_change_after_scoring(tables: Tables, writer: Writer) -> None:
    catalog = make_catalog([f"video-{number}" for number in range(100)])
    first = videos_of(plan_of(tables, catalog, sample="5"))
    writer.commit(make_batch(first))
    again = plan_of(tables, catalog, sample="5")
    assert (videos_of(again), again.num_current) == ([], 5)


def test_sample_is_taken_after_the_condition() -> None:
    catalog = make_catalog([f"v{number}" for number in range(50)], views=list(range(50)))
    plan = plan_of(None, catalog, where="views >= 40", sample="4")
    assert plan.num_selected == 4
    assert all(int(video[1:]) >= 40 for video in videos_of(plan))


def test_other_reasons_are_counted(tables: Tables, writer: Writer) -> None:
    writer.commit(make_batch(["model"], NEWER_KVQ))
    writer.commit(make_failures(["flaky"], permanent=False))
    writer.commit(make_failures(["broken"]))
    catalog = make_catalog(["new", "model", "flaky", "broken"])
    plan = plan_of(tables, catalog, reasons=("model-changed", "retry"))
    assert videos_of(plan) == ["model", "flaky"]
    assert (plan.num_other_reasons, plan.num_quarantined) == (1, 1)
    assert {reason: count for reason, count in plan.by_reason.items() if count} == {"model changed": 1, "retry": 1}


def test_permanent_failures_are_retried_on_request(tables: Tables, writer: Writer) -> None:
    writer.commit(make_failures(["broken"]))
    writer.commit(make_failures(["flaky"], permanent=False))
    catalog = make_catalog(["broken", "flaky", "new"])
    plan = plan_of(tables, catalog, include_permanent=True, reasons=("retry",))
    assert videos_of(plan) == ["broken", "flaky"]
    assert (plan.num_quarantined, plan.num_other_reasons) == (0, 1)
    assert videos_of(plan_of(tables, catalog)) == ["flaky", "new"]


def test_old_score_is_repeated_in_another_run(tables: Tables, writer: Writer) -> None:
    writer.write_run(make_run())
    catalog = make_catalog(["old", "young", "twice", "new"])
    writer.write_catalog(catalog_changes(tables, catalog, "nightly"))
    writer.commit(make_batch(["old", "twice"], scored_at=NOW - timedelta(days=31)))
    writer.commit(make_batch(["young", "twice"], scored_at=NOW - timedelta(days=29)))
    assert plan_of(tables, catalog, now=NOW).num_current == 3
    plan = plan_of(tables, catalog, now=NOW, max_age="30d")
    reasons = {row["video_id"]: row["reason"] for row in plan.tasks.to_pylist()}
    assert (reasons, plan.num_current) == ({"old": "re-score", "new": "new"}, 2)
    assert videos_of(plan_of(tables, catalog, now=NOW, max_age="30d", reasons=("re-score",))) == ["old"]

    # The old score is valid until it is scored again. Then the new one is, and the selection skips it.
    with Session(tables) as session:
        latest = session.sql("SELECT run_id, is_stale FROM scores_latest WHERE video_id = 'old'").to_pylist()
    assert latest == [{"run_id": "run-1", "is_stale": False}]
    second = Writer(tables, "run-2")
    second.commit(make_batch(["old"], scored_at=NOW))
    assert videos_of(plan_of(tables, catalog, now=NOW, max_age="30d")) == ["new"]
    with Session(tables) as session:
        latest = session.sql("SELECT run_id, is_stale FROM scores_latest WHERE video_id = 'old'").to_pylist()
    assert latest == [{"run_id": "run-2", "is_stale": False}]


def test_failed_rescore_is_quarantined(tables: Tables, writer: Writer) -> None:
    catalog = make_catalog(["a", "b"])
    writer.commit(make_failures(["b"]))
    writer.commit(make_batch(["a", "b"], scored_at=NOW - timedelta(days=31)))
    writer.commit(make_failures(["a"]))
    plan = plan_of(tables, catalog, now=NOW, max_age="30d")
    # A failure before the score is ignored; one after it counts.
    assert (videos_of(plan), plan.num_quarantined) == (["b"], 1)
    assert plan_of(tables, catalog, now=NOW).num_current == 2
    plan = plan_of(tables, catalog, now=NOW, max_age="30d", include_permanent=True)
    assert {row["video_id"]: row["reason"] for row in plan.tasks.to_pylist()} == {"a": "re-score", "b": "re-score"}


def test_videos_are_ordered_by_a_column() -> None:
    views = pa.array([3, None, 1, 3, 2])
    catalog = make_catalog(["a", "b", "c", "d", "e"], Views=views, tags=[["x"]] * 5)
    rising = plan_of(None, catalog, KVQ, LUMA, order_by="views")
    assert videos_of(rising) == [video for video in "ceadb" for _ in range(2)]
    assert rising.tasks.column("model_name").to_pylist() == ["kvq-tiny", "luma"] * 5
    assert videos_of(plan_of(None, catalog, order_by="views desc")) == list("adecb")
    assert videos_of(plan_of(None, catalog, order_by="video_id DESC", where="views = 3")) == ["d", "a"]
    with pytest.raises(SpecError, match=r"select.order_by: the catalog has no column 'view'; its columns are .*Views"):
        plan_of(None, catalog, order_by="view desc")
    with pytest.raises(SpecError, match=r"select.order_by: list.* cannot be ordered"):
        plan_of(None, catalog, order_by="tags")
