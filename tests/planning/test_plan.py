"""Plans: every reason, tasks that are not planned, invalid catalogs, and changes of catalog rows."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.config.job import Select
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import ModelRef
from kvq_batch.planning.plan import Plan, check_roots, make_plan
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.writer import Batch, Writer
from tests.support.results import KVQ, LUMA, make_batch, make_catalog, make_failures, make_run, with_features

NEWER_KVQ = ModelRef("kvq-tiny", "kvq-tiny@2-00000000aaaa", KVQ.fingerprint)
OTHER_SETTINGS = ModelRef("kvq-tiny", KVQ.model_id, "d" * 64)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables.create(str(tmp_path / "tables"))


@pytest.fixture
def writer(tables: Tables) -> Writer:
    return Writer(tables, "run-1")


def reasons(plan: Plan) -> dict[tuple[str, str], str]:
    rows = plan.tasks.to_pylist()
    return {(row["video_id"], row["model_name"]): row["reason"] for row in rows}


def test_without_tables_everything_is_new() -> None:
    plan = make_plan(None, make_catalog(["b", "a"]), "nightly", [KVQ, LUMA])
    assert [(r["video_id"], r["model_name"]) for r in plan.tasks.to_pylist()] == [
        ("b", "kvq-tiny"),
        ("b", "luma"),
        ("a", "kvq-tiny"),
        ("a", "luma"),
    ]
    assert plan.by_reason["new"] == 4
    assert plan.counts["new"] == {"kvq-tiny": 2, "luma": 2}
    assert (plan.num_current, plan.num_quarantined, plan.removed) == (0, 0, ())
    assert plan.tasks.column_names == [
        "video_id", "uri", "content_id", "size_bytes", "start_s", "end_s",
        "model_name", "model_id", "fingerprint", "reason",
    ]  # fmt: skip


def test_every_reason_in_one_plan(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = Tables.create(uri, options)
    writer = Writer(tables, "run-1")
    writer.commit(make_batch(["current", "changed"]))
    writer.commit(make_batch(["settings"], OTHER_SETTINGS))
    writer.commit(make_batch(["model"], NEWER_KVQ))
    writer.commit(make_failures(["quarantined", "quarantined-changed"]))
    writer.commit(make_failures(["flaky"], permanent=False))
    writer.commit(make_failures(["interrupted"], final=False))
    ids = [
        "new",
        "current",
        "changed",
        "settings",
        "model",
        "quarantined",
        "quarantined-changed",
        "flaky",
        "interrupted",
    ]
    catalog = make_catalog(ids)
    contents = ["etag:2" if name.endswith("changed") else "etag:1" for name in ids]
    catalog = catalog.set_column(2, "content_id", pa.array(contents))
    plan = make_plan(Tables.open(uri, options), catalog, "nightly", [KVQ])
    assert {video: reason for (video, _), reason in reasons(plan).items()} == {
        "new": "new",
        "changed": "content changed",
        "settings": "preprocessing changed",
        "model": "model changed",
        "quarantined-changed": "content changed",
        "flaky": "retry",
        "interrupted": "retry",
    }
    assert (plan.num_current, plan.num_quarantined) == (1, 1)
    assert plan.by_reason == {
        "new": 1, "content changed": 2, "model changed": 1, "preprocessing changed": 1, "retry": 2, "re-score": 0,
        "features missing": 0,
    }  # fmt: skip
    assert plan.tasks.num_rows + plan.num_current + plan.num_quarantined == len(ids)


def test_each_model_of_a_video_is_a_task(tables: Tables, writer: Writer) -> None:
    writer.commit(make_batch(["a", "b"], KVQ))
    writer.commit(make_batch(["a"], LUMA))
    plan = make_plan(tables, make_catalog(["a", "b"]), "nightly", [KVQ, LUMA])
    assert reasons(plan) == {("b", "luma"): "new"}
    assert plan.num_current == 3


def test_rolled_back_content_is_current(tables: Tables, writer: Writer) -> None:
    writer.commit(make_batch(["a"], content="etag:1"))
    writer.commit(make_batch(["a"], content="etag:2"))
    assert make_plan(tables, make_catalog(["a"], "etag:1"), "nightly", [KVQ]).num_current == 1


def test_oldest_stale_score(tables: Tables, writer: Writer) -> None:
    days = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4, 5)]
    writer.commit(make_batch(["current"], scored_at=days[0]))
    writer.commit(make_batch(["quarantined"], content="etag:0", scored_at=days[0]))
    writer.commit(make_failures(["quarantined", "failed-permanently"]))
    writer.commit(make_batch(["changed"], content="etag:0", scored_at=days[1]))
    writer.commit(make_batch(["changed"], content="etag:00", scored_at=days[2]))
    writer.commit(make_batch(["model"], NEWER_KVQ, scored_at=days[3]))

    def oldest(*videos: str) -> datetime | None:
        return make_plan(tables, make_catalog(videos), "nightly", [KVQ]).oldest_stale_at

    # The newest score of a video is the one that is replaced. Quarantined tasks are not replaced.
    assert oldest("current", "quarantined", "failed-permanently", "changed", "model", "new") == days[2]
    assert oldest("current", "model") == days[3]
    assert oldest("current", "quarantined", "new") is None
    # A score that is only too old is not stale.
    old = make_plan(tables, make_catalog(["current"]), "nightly", [KVQ], Select(max_age="1d"), days[4])
    assert (old.by_reason["re-score"], old.oldest_stale_at) == (1, None)


def test_rolled_back_model_is_current(tables: Tables, writer: Writer) -> None:
    writer.commit(make_batch(["a"], KVQ))
    writer.commit(make_batch(["a"], NEWER_KVQ))
    assert make_plan(tables, make_catalog(["a"]), "nightly", [KVQ]).num_current == 1
    assert make_plan(tables, make_catalog(["a"]), "nightly", [OTHER_SETTINGS]).by_reason["model changed"] == 1


def test_newest_row_gives_the_reason(tables: Tables, writer: Writer) -> None:
    writer.commit(make_batch(["a"], NEWER_KVQ))
    writer.commit(make_batch(["a"], OTHER_SETTINGS))
    assert reasons(make_plan(tables, make_catalog(["a"]), "nightly", [KVQ])) == {
        ("a", "kvq-tiny"): "preprocessing changed"
    }


def test_score_ends_retries(tables: Tables, writer: Writer) -> None:
    writer.commit(make_failures(["a"], permanent=False))
    writer.commit(make_batch(["a"]))
    assert make_plan(tables, make_catalog(["a"]), "nightly", [KVQ]).num_current == 1


def test_current_score_without_requested_features_is_due(tables: Tables, writer: Writer) -> None:
    writer.commit(make_batch(["old"]))
    writer.commit(with_features(make_batch(["stored"])))
    writer.commit(make_failures(["broken"]))
    writer.commit(make_batch(["old", "stored", "broken"], LUMA))
    catalog = make_catalog(["old", "stored", "broken"])
    plan = make_plan(tables, catalog, "nightly", [KVQ, LUMA], with_features={KVQ.name})
    assert reasons(plan) == {("old", "kvq-tiny"): "features missing"}
    assert (plan.num_current, plan.num_quarantined, plan.oldest_stale_at) == (4, 1, None)
    assert make_plan(tables, catalog, "nightly", [KVQ, LUMA]).num_current == 5


def test_features_that_failed_to_compute_are_quarantined(tables: Tables, writer: Writer) -> None:
    writer.commit(make_batch(["a", "b"]))
    writer.commit(make_failures(["a"]))
    writer.commit(make_failures(["b"], permanent=False))
    plan = make_plan(tables, make_catalog(["a", "b"]), "nightly", [KVQ], with_features={KVQ.name})
    assert plan.num_quarantined == 1
    assert reasons(plan) == {("b", "kvq-tiny"): "features missing"}


def test_newest_failure_decides_on_quarantine(tables: Tables, writer: Writer) -> None:
    def plan_of() -> Plan:
        return make_plan(tables, make_catalog(["a"]), "nightly", [KVQ])

    writer.commit(make_failures(["a"]))
    assert plan_of().num_quarantined == 1
    writer.commit(make_failures(["a"], final=False, permanent=False))
    assert reasons(plan_of()) == {("a", "kvq-tiny"): "retry"}
    writer.commit(make_failures(["a"]))
    assert (plan_of().num_quarantined, plan_of().tasks.num_rows) == (1, 0)
    # Failures with other content, another model or other settings do not matter.
    writer.commit(make_failures(["a"], content="etag:0", final=False))
    writer.commit(make_failures(["a"], OTHER_SETTINGS, final=False))
    assert plan_of().num_quarantined == 1


def test_failures_of_one_commit_are_ordered_by_attempt(tables: Tables, writer: Writer) -> None:
    first, last = make_failures(["a"], final=False).failures, make_failures(["a"]).failures
    last = last.set_column(last.column_names.index("attempt"), "attempt", pa.array([2], pa.int32()))
    writer.commit(Batch(failures=pa.concat_tables([last, first])))
    assert make_plan(tables, make_catalog(["a"]), "nightly", [KVQ]).num_quarantined == 1


def test_maps_without_a_score_are_ignored(tables: Tables, writer: Writer) -> None:
    batch = make_batch(["a"])
    writer.commit(type(batch)(maps=batch.maps, clips=batch.clips))
    assert reasons(make_plan(tables, make_catalog(["a"]), "nightly", [KVQ])) == {("a", "kvq-tiny"): "new"}


def test_removed_videos_of_this_catalog_only(tables: Tables, writer: Writer) -> None:
    writer.write_catalog(catalog_changes(tables, make_catalog(["a", "b", "c"]), "nightly"))
    writer.write_catalog(catalog_changes(tables, make_catalog(["x"]), "other"))
    today = make_catalog(["b"])
    assert make_plan(tables, today, "nightly", [KVQ]).removed == ("a", "c")
    writer.write_catalog(catalog_changes(tables, today, "nightly"))
    assert make_plan(tables, today, "nightly", [KVQ]).removed == ()


def test_empty_catalog(tables: Tables) -> None:
    plan = make_plan(tables, make_catalog([]), "nightly", [KVQ])
    assert (plan.tasks.num_rows, plan.num_current, plan.num_quarantined) == (0, 0, 0)


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        (make_catalog(["a", "b", "a"]), "'a' occurs 2 times"),
        (make_catalog(["a", None]), "without a video id"),  # type: ignore[list-item]
        (make_catalog(["a"], None), "'a' has no content id"),  # type: ignore[arg-type]
        (make_catalog(["a"]).drop_columns(["size_bytes"]), "size_bytes"),
    ],
)
def test_invalid_catalogs_are_rejected(catalog: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_plan(None, catalog, "nightly", [KVQ])


def test_models_with_the_same_name_are_rejected() -> None:
    with pytest.raises(SpecError, match="duplicate models"):
        make_plan(None, make_catalog(["a"]), "nightly", [KVQ, NEWER_KVQ])


def test_same_video_id_under_two_roots_is_rejected(tables: Tables, writer: Writer) -> None:
    writer.write_run(make_run(root="s3://one"))
    writer.write_catalog(catalog_changes(tables, make_catalog(["a", "b"]), "nightly"))
    check_roots(tables, make_catalog(["a"]), "s3://one")
    check_roots(tables, make_catalog(["z"]), "s3://two")
    with pytest.raises(SpecError, match=r"'b'.*'s3://one'.*'s3://two'.*id_prefix"):
        check_roots(tables, make_catalog(["z", "b"]), "s3://two")


def test_only_changed_catalog_rows_are_appended(tables: Tables, writer: Writer) -> None:
    first = make_catalog(["a", "b", "c"], country=["de", "fr", None])
    assert catalog_changes(None, first, "nightly").num_rows == 3
    writer.write_catalog(catalog_changes(tables, first, "nightly"))
    assert catalog_changes(tables, first, "nightly").num_rows == 0
    second = make_catalog(["a", "c", "d"], country=["de", "it", "es"])
    changes = catalog_changes(tables, second, "nightly").to_pylist()
    assert [(row["video_id"], row["in_catalog"], row["country"]) for row in changes] == [
        ("c", True, "it"),
        ("d", True, "es"),
        ("b", False, None),
    ]
    writer.write_catalog(catalog_changes(tables, second, "nightly"))
    assert catalog_changes(tables, second, "nightly").num_rows == 0
    back = catalog_changes(tables, first, "nightly").to_pylist()
    assert [(row["video_id"], row["in_catalog"]) for row in back] == [("b", True), ("c", True), ("d", False)]


def test_dropped_column_changes_rows(tables: Tables, writer: Writer) -> None:
    writer.write_catalog(catalog_changes(tables, make_catalog(["a", "b"], country=["de", None]), "nightly"))
    changes = catalog_changes(tables, make_catalog(["a", "b"]), "nightly")
    assert changes.column("video_id").to_pylist() == ["a"]
    writer.write_catalog(changes)
    assert catalog_changes(tables, make_catalog(["a", "b"]), "nightly").num_rows == 0


def test_types_unknown_to_delta_are_cast(tables: Tables, writer: Writer) -> None:
    catalog = make_catalog(
        ["a"],
        views=pa.array([2**31], pa.uint32()),
        label=pa.array(["x"]).dictionary_encode(),
        long_text=pa.array(["y"], pa.large_string()),
        seen_at=pa.array([datetime(2026, 1, 2)], pa.timestamp("ns")),
        day=pa.array([date(2026, 1, 2)]),
        tags=pa.array([["u", "v"]], pa.large_list(pa.large_string())),
        place=pa.array([{"lat": 1.5}]),
        nothing=pa.nulls(1),
        **{"odd name, (x)": pa.array([True]), "video_id2": pa.array(["k"]), "Country": pa.array(["de"])},
    )
    writer.write_catalog(catalog_changes(tables, catalog, "nightly"))
    (row,) = tables.dataset("catalog").to_table().to_pylist()
    assert (row["views"], row["label"], row["long_text"], row["tags"]) == (2**31, "x", "y", ["u", "v"])
    assert row["seen_at"].isoformat() == "2026-01-02T00:00:00+00:00"
    assert (row["day"], row["place"], row["odd name, (x)"]) == (date(2026, 1, 2), {"lat": 1.5}, True)
    assert "nothing" not in row
    assert catalog_changes(tables, catalog, "nightly").num_rows == 0
    again = make_catalog(["a"], country=["de"])
    assert "Country" in catalog_changes(tables, again, "nightly").column_names


def test_unstorable_column_is_rejected(tables: Tables, writer: Writer) -> None:
    writer.write_catalog(catalog_changes(tables, make_catalog(["a"], views=pa.array([7])), "nightly"))
    with pytest.raises(SpecError, match=r"'views' \(duration\[s\]\) cannot be stored.*cast it or remove it"):
        catalog_changes(tables, make_catalog(["a"], views=pa.array([5], pa.duration("s"))), "nightly")


def test_narrower_numbers_are_cast(tables: Tables, writer: Writer) -> None:
    writer.write_catalog(catalog_changes(tables, make_catalog(["a"], views=pa.array([7]), rate=[0.5]), "nightly"))
    narrow = make_catalog(["a"], views=pa.array([7], pa.int8()), rate=pa.array([1], pa.int64()))
    changes = catalog_changes(tables, narrow, "nightly")
    assert changes.column("rate").to_pylist() == [1.0]


def test_ambiguous_columns_are_rejected() -> None:
    with pytest.raises(SpecError, match="is not unique"):
        catalog_changes(None, make_catalog(["a"], country=["de"], Country=["fr"]), "nightly")
    with pytest.raises(SpecError, match="is not unique"):
        catalog_changes(None, make_catalog(["a"], run_id=["x"], catalog_run_id=["y"]), "nightly")
