"""Views: current and stale scores, invisible rows, and the score recomputed from stored maps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.domain.identity import ModelRef
from kvq_batch.domain.maps import quantise_causes
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.session import Session, open_session
from kvq_batch.tables.views import VIEWS, describe_views
from kvq_batch.tables.writer import Batch, Writer
from tests.support.results import KVQ, LUMA, make_batch, make_catalog, make_failures, make_maps, make_model, make_run

NEWER_KVQ = ModelRef("kvq-tiny", "kvq-tiny@2-00000000aaaa", KVQ.fingerprint)

STATED_ERROR = 1e-9
"""Largest absolute difference of a stored score and mean(weighted) of its maps; see benchmarks/maps_encoding."""


def ask(tables: Tables, query: str) -> list[dict[str, Any]]:
    tables.refresh()
    with Session(tables, num_threads=2) as session:
        rows: list[dict[str, Any]] = session.sql(query).to_pylist()
    return rows


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables.create(str(tmp_path / "tables"))


def start(tables: Tables, run_id: str, videos: list[str], models: list[ModelRef], **options: Any) -> Writer:
    """Return a writer with committed run and catalog rows, as the engine writes them."""
    writer = Writer(tables, run_id)
    catalog_name = options.pop("catalog_name", "nightly")
    writer.write_run(make_run(models, catalog_name))
    writer.write_catalog(catalog_changes(tables, make_catalog(videos, **options), catalog_name))
    return writer


def test_new_tables_have_empty_views(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    Tables.create(uri, options)
    with open_session(uri, options) as session:
        for view in VIEWS:
            assert session.sql(f"SELECT * FROM {view}").num_rows == 0


def test_score_is_recomputed_from_maps_in_sql(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = Tables.create(uri, options)
    videos = [f"v{number}" for number in range(20)]
    start(tables, "run-1", videos, [KVQ]).commit(make_batch(videos, num_clips=2))
    found = ask(
        tables,
        """SELECT abs(avg(weighted) - any_value(k.raw_score)) AS error, count(*) AS num_cells
        FROM regions r JOIN clips k USING (video_id, model_id, clip_index) GROUP BY r.video_id, clip_index""",
    )
    assert [row["num_cells"] for row in found] == [60] * 40
    assert max(row["error"] for row in found) < STATED_ERROR
    found = ask(
        tables,
        """SELECT max(abs(raw_score - again)) AS error FROM scores_latest
        JOIN (SELECT video_id, avg(weighted) AS again FROM regions GROUP BY ALL) USING (video_id)""",
    )
    assert found[0]["error"] < STATED_ERROR


def test_regions_are_the_cells_of_the_maps(tables: Tables) -> None:
    start(tables, "run-1", ["a"], [KVQ]).commit(make_batch(["a"], seed=7))
    texture, saliency = make_maps(7)
    rows = ask(tables, "SELECT * FROM regions ORDER BY slot, cell_row, cell_col")
    assert [(r["slot"], r["cell_row"], r["cell_col"]) for r in rows] == list(np.ndindex(texture.shape))
    assert list(rows[0]) == [
        "video_id", "model_id", "clip_index", "slot", "slot_start_s",
        "cell_row", "cell_col", "texture", "saliency", "weighted", "num_rows", "num_cols", "x0", "y0", "x1", "y1",
    ]  # fmt: skip
    last = rows[-1]
    assert (last["num_rows"], last["num_cols"], last["x0"], last["y0"]) == (4, 5, 0.8, 0.75)
    assert (last["x1"], last["y1"]) == (1, 1)
    step = np.ptp(texture) / 254
    # Half a step of rounding, and the shift of the offset, which is large where cells are as few as here.
    np.testing.assert_allclose([r["texture"] for r in rows], texture.ravel(), atol=step)
    roots = [np.sqrt(r["saliency"]) for r in rows]
    np.testing.assert_allclose(roots, np.sqrt(saliency.ravel()), atol=0.51 * np.ptp(np.sqrt(saliency)) / 254)
    assert sorted({(r["slot"], r["slot_start_s"]) for r in rows}) == [(0, 0.0), (1, 1.5), (2, 3.0)]


def test_single_map_gives_regions_with_nulls(tables: Tables) -> None:
    batch = make_batch(["a"])
    place = batch.maps.column_names.index("saliency")
    maps = batch.maps.set_column(place, "saliency", pa.nulls(1, pa.list_(pa.int8())))
    start(tables, "run-1", ["a"], [KVQ]).commit(Batch(maps, batch.clips, None, batch.scores))
    rows = ask(tables, "SELECT * FROM regions")
    assert len(rows) == 60
    assert all(r["saliency"] is None and r["weighted"] is None and r["texture"] is not None for r in rows)


@pytest.mark.parametrize("is_old", [False, True])
def test_cells_are_means_over_time_slots(tables: Tables, is_old: bool) -> None:
    batch = make_batch(["a"], seed=7)
    if is_old:
        # Earlier releases had no columns of means.
        kept = [name for name in batch.maps.column_names if not name.endswith("_mean")]
        batch = Batch(
            batch.maps.select(kept).append_column("texture_mean", pa.nulls(1, pa.list_(pa.int8()))).append_column(
                "saliency_mean", pa.nulls(1, pa.list_(pa.int8()))
            ),
            batch.clips, None, batch.scores,
        )  # fmt: skip
    start(tables, "run-1", ["a"], [KVQ]).commit(batch)
    texture, saliency = make_maps(7)
    rows = ask(tables, "SELECT * FROM cells ORDER BY cell_row, cell_col")
    assert [(r["cell_row"], r["cell_col"]) for r in rows] == list(np.ndindex(texture.shape[1:]))
    np.testing.assert_allclose([r["texture"] for r in rows], texture.mean(0).ravel(), atol=1.5 * np.ptp(texture) / 254)
    roots = np.sqrt([r["saliency"] for r in rows])
    np.testing.assert_allclose(roots, np.sqrt(saliency.mean(0)).ravel(), atol=1.5 * np.ptp(np.sqrt(saliency)) / 254)


def test_timeline_has_the_score_and_times_of_each_slot(tables: Tables) -> None:
    writer = start(tables, "run-1", ["a"], [KVQ])
    writer.write_models(pa.concat_tables([make_model(KVQ), make_model(KVQ, "vmaf", (100, 0, 0.3, 0.1), True)]))
    writer.commit(make_batch(["a"]))
    rows = ask(tables, "SELECT * FROM timeline ORDER BY slot")
    assert [(r["slot"], r["from_s"], r["until_s"]) for r in rows] == [(0, 0.0, 1.5), (1, 1.5, 3.0), (2, 3.0, 4.0)]
    texture, saliency = make_maps(0)
    expected = (texture * saliency).mean(axis=(1, 2))
    np.testing.assert_allclose([r["raw_score"] for r in rows], expected, rtol=1e-6)
    np.testing.assert_allclose([r["mos"] for r in rows], 100 / (1 + np.exp(-(expected - 0.3) / 0.1)), rtol=1e-6)


def test_timeline_of_a_model_without_slots_has_one_row_a_clip(tables: Tables) -> None:
    batch = make_batch(["a"])
    empty = pa.array([[]], pa.list_(pa.float64()))
    clips = batch.clips
    for name, kind in (("slot_start_s", pa.float64()), ("slot_scores", pa.float32())):
        clips = clips.set_column(clips.column_names.index(name), name, empty.cast(pa.list_(kind)))
    start(tables, "run-1", ["a"], [KVQ]).commit(Batch(batch.maps, clips, None, batch.scores))
    (row,) = ask(tables, "SELECT * FROM timeline")
    assert (row["from_s"], row["until_s"]) == (0.0, 4.0)
    assert row["raw_score"] == pytest.approx(clips["raw_score"][0].as_py())


def test_causes_are_rows_of_cells_and_slots(tables: Tables) -> None:
    writer = start(tables, "run-1", ["a"], [LUMA])
    batch = make_batch(["a"], LUMA)
    blur, black = np.zeros((3, 2, 4), np.float32), np.array([0, 0, 1], np.float32)
    blur[0, 0, 0], blur[2, 1, 3] = 0.25, 0.755
    stored = quantise_causes({"blur": blur, "black": black, "noise": np.zeros((3, 2, 4), np.float32)})
    identity = {name: batch.maps[name][0].as_py() for name in ("video_id", "content_id", "model_id", "fingerprint")}
    writer.commit(replace(batch, maps=make_rows("maps", [{**identity, "clip_index": 0, **stored.row()}])))
    rows = ask(tables, "SELECT * FROM causes ORDER BY cause, slot")
    assert [(r["cause"], r["slot"], r["cell_row"], r["cell_col"], r["severity"]) for r in rows] == [
        ("black", 2, None, None, 1.0),
        ("blur", 0, 0, 0, 0.25),
        ("blur", 2, 1, 3, 0.76),
    ]
    assert [(r["from_s"], r["until_s"]) for r in rows] == [(3.0, 4.0), (0.0, 1.5), (3.0, 4.0)]
    assert [[r[edge] for edge in ("x0", "y0", "x1", "y1")] for r in rows] == [
        [0, 0, 1, 1],
        [0, 0, 0.25, 0.5],
        [0.75, 0.5, 1, 1],
    ]
    # A model of causes has no texture and no saliency, so no cells of those.
    assert ask(tables, "FROM regions") == ask(tables, "FROM cells") == ask(tables, "FROM named_regions") == []


def test_named_regions_weight_cells_by_the_area_of_the_overlap(tables: Tables) -> None:
    writer = Writer(tables, "run-1")
    run = make_run([KVQ]).to_pylist(maps_as_pydicts="lossy")
    regions = {"caption": [0, 0.875, 0.3, 1], "all": [0, 0, 1, 1]}
    writer.write_run(make_rows("runs", [{**run[0], "job_spec": json.dumps({"regions": regions})}]))
    writer.write_catalog(catalog_changes(tables, make_catalog(["a"]), "nightly"))
    writer.commit(make_batch(["a"], seed=7))
    texture, saliency = (values.mean(0) for values in make_maps(7))
    rows = {r["region"]: r for r in ask(tables, "SELECT * FROM named_regions")}
    # The lower half of the last of 4 rows; the first of 5 columns, and half of the second.
    weights = np.array([0.2, 0.1])
    for name, values in (("texture", texture), ("saliency", saliency)):
        expected = (values[3, :2] * weights).sum() / weights.sum()
        assert rows["caption"][name] == pytest.approx(expected, abs=0.05 * float(np.ptp(values)))
        assert rows["all"][name] == pytest.approx(values.mean(), abs=0.01 * float(np.ptp(values)))


def test_maps_without_a_score_are_invisible(tables: Tables) -> None:
    writer = start(tables, "run-1", ["a"], [KVQ])
    orphan = make_batch(["a"])
    writer.commit(Batch(maps=orphan.maps, clips=orphan.clips))
    for view in ("maps", "clips", "regions"):
        assert ask(tables, f"SELECT * FROM {view}") == []
    writer.commit(orphan)
    assert ask(tables, "SELECT count(*) AS num FROM maps") == [{"num": 1}]
    assert ask(tables, "SELECT count(*) AS num FROM clips") == [{"num": 1}]
    assert ask(tables, "SELECT count(*) AS num FROM regions") == [{"num": 60}]


def test_latest_score_is_newest_commit_of_current_identity(tables: Tables) -> None:
    writer = start(tables, "run-1", ["a", "b"], [KVQ])
    writer.commit(make_batch(["a", "b"], seed=1))
    forced = Writer(tables, "run-2")
    forced.commit(make_batch(["a"], seed=50))
    rows = ask(tables, "SELECT video_id, run_id, is_stale FROM scores_latest ORDER BY ALL")
    assert rows == [
        {"video_id": "a", "run_id": "run-2", "is_stale": False},
        {"video_id": "b", "run_id": "run-1", "is_stale": False},
    ]
    assert len(ask(tables, "SELECT * FROM scores")) == 3
    assert {row["n"] for row in ask(tables, "SELECT count(*) AS n FROM regions GROUP BY video_id")} == {60}


def test_changed_content_is_stale_until_scored(tables: Tables) -> None:
    start(tables, "run-1", ["a"], [KVQ]).commit(make_batch(["a"], content="etag:1"))
    writer = start(tables, "run-2", ["a"], [KVQ], content="etag:2")
    (row,) = ask(tables, "SELECT content_id, is_stale FROM scores_latest")
    assert row == {"content_id": "etag:1", "is_stale": True}
    assert ask(tables, "SELECT * FROM regions") == []
    writer.commit(make_batch(["a"], content="etag:2"))
    (row,) = ask(tables, "SELECT content_id, is_stale FROM scores_latest")
    assert row == {"content_id": "etag:2", "is_stale": False}
    start(tables, "run-3", ["a"], [KVQ], content="etag:1")
    (row,) = ask(tables, "SELECT content_id, is_stale, run_id FROM scores_latest")
    assert row == {"content_id": "etag:1", "is_stale": False, "run_id": "run-1"}


def test_failed_changed_content_leaves_old_score_stale(tables: Tables) -> None:
    start(tables, "run-1", ["a"], [KVQ]).commit(make_batch(["a"], content="etag:1"))
    start(tables, "run-2", ["a"], [KVQ], content="etag:2").commit(make_failures(["a"], content="etag:2"))
    assert ask(tables, "SELECT content_id, is_stale FROM scores_latest") == [{"content_id": "etag:1", "is_stale": True}]
    assert ask(tables, "SELECT * FROM regions") == []
    # If the content is restored, the old score is current again, despite later failures.
    start(tables, "run-3", ["a"], [KVQ], content="etag:1")
    assert ask(tables, "SELECT run_id, is_stale FROM scores_latest") == [{"run_id": "run-1", "is_stale": False}]


def test_newer_model_makes_only_its_older_scores_stale(tables: Tables) -> None:
    writer = start(tables, "run-1", ["a"], [KVQ, LUMA])
    writer.commit(make_batch(["a"], KVQ))
    writer.commit(make_batch(["a"], LUMA))
    writer = start(tables, "run-2", ["a"], [NEWER_KVQ])
    query = "SELECT model_name, model_id, is_stale FROM scores_latest ORDER BY ALL"
    assert [(r["model_name"], r["is_stale"]) for r in ask(tables, query)] == [("kvq-tiny", True), ("luma", False)]
    writer.commit(make_batch(["a"], NEWER_KVQ))
    assert ask(tables, query)[0] == {"model_name": "kvq-tiny", "model_id": NEWER_KVQ.model_id, "is_stale": False}


def test_catalog_is_not_stale_by_model_of_another(tables: Tables) -> None:
    start(tables, "run-1", ["a"], [KVQ]).commit(make_batch(["a"], KVQ))
    start(tables, "run-2", ["z"], [NEWER_KVQ], catalog_name="trial").commit(make_batch(["z"], NEWER_KVQ))
    rows = ask(tables, "SELECT video_id, model_id, is_stale FROM scores_latest ORDER BY ALL")
    assert [(r["video_id"], r["model_id"], r["is_stale"]) for r in rows] == [
        ("a", KVQ.model_id, False),
        ("z", NEWER_KVQ.model_id, False),
    ]


def test_removed_videos_remain_only_in_scores(tables: Tables) -> None:
    start(tables, "run-1", ["a", "b"], [KVQ]).commit(make_batch(["a", "b"]))
    start(tables, "run-2", ["b"], [KVQ])
    assert ask(tables, "SELECT video_id, first_run_id, run_id, last_run_id FROM catalog") == [
        {"video_id": "b", "first_run_id": "run-1", "run_id": "run-1", "last_run_id": "run-2"}
    ]
    assert [row["video_id"] for row in ask(tables, "SELECT video_id FROM scores_latest")] == ["b"]
    assert len(ask(tables, "SELECT * FROM scores")) == 2


def test_video_in_second_catalog_stays_listed(tables: Tables) -> None:
    start(tables, "run-1", ["a"], [KVQ], catalog_name="one")
    start(tables, "run-2", ["a"], [KVQ], catalog_name="two")
    start(tables, "run-3", [], [KVQ], catalog_name="two")
    assert ask(tables, "SELECT video_id, catalog FROM catalog") == [{"video_id": "a", "catalog": "one"}]


def test_catalog_shows_newest_columns(tables: Tables) -> None:
    start(tables, "run-1", ["a", "b"], [KVQ])
    start(tables, "run-2", ["a", "b"], [KVQ], country=["de", "fr"])
    rows = ask(tables, "SELECT video_id, country, run_id FROM catalog ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == [("a", "de", "run-2"), ("b", "fr", "run-2")]


def test_mos_is_the_default_calibration(tables: Tables) -> None:
    writer = start(tables, "run-1", ["a"], [KVQ, LUMA])
    writer.commit(make_batch(["a"], KVQ))
    writer.commit(make_batch(["a"], LUMA))
    writer.write_models(make_model(KVQ))
    writer.write_models(make_model(LUMA))
    assert [row["mos"] for row in ask(tables, "SELECT mos FROM scores")] == [None, None]
    writer.write_models(make_model(KVQ, "konvid", (0.0, 10.0, 0.0, 1.0), is_default=True))
    writer.write_models(make_model(KVQ, "lsvq", (1.0, 5.0, 0.3, -0.1), is_default=True))
    rows = ask(tables, "SELECT raw_score, mos FROM scores_latest WHERE model_name = 'kvq-tiny'")
    raw_score, mos = rows[0]["raw_score"], rows[0]["mos"]
    assert mos == pytest.approx(5 + (1 - 5) / (1 + np.exp(-(raw_score - 0.3) / 0.1)))
    assert [row["mos"] for row in ask(tables, "SELECT mos FROM scores WHERE model_name = 'luma'")] == [None]
    cards = ask(tables, "SELECT calibration, is_default FROM models WHERE model_name = 'kvq-tiny' ORDER BY ALL")
    assert [(c["calibration"], c["is_default"]) for c in cards] == [("konvid", False), ("lsvq", True), (None, False)]
    writer.write_models(make_model(KVQ, "konvid", (0.0, 10.0, 0.0, 1.0), is_default=True))
    (row,) = ask(tables, "SELECT mos FROM scores WHERE model_name = 'kvq-tiny'")
    assert row["mos"] == pytest.approx(10 - 10 / (1 + np.exp(-raw_score)))


def test_runs_show_their_newest_state(tables: Tables) -> None:
    writer = Writer(tables, "run-1")
    writer.write_run(make_run(state="running"))
    writer.write_run(make_run(state="finished"))
    assert [row["state"] for row in ask(tables, "SELECT state FROM runs")] == ["finished"]


def test_all_failures_are_shown(tables: Tables) -> None:
    Writer(tables, "run-1").commit(make_failures(["a", "b"]))
    (row,) = ask(tables, "SELECT * FROM failures WHERE video_id = 'a'")
    assert (row["stage"], row["final"], row["permanent"], row["run_id"]) == ("decode", True, True, "run-1")


def test_regions_join_the_catalog(tables: Tables) -> None:
    videos = ["a", "b", "c"]
    start(tables, "run-1", videos, [KVQ], country=["de", "de", "fr"]).commit(make_batch(videos))
    rows = ask(
        tables,
        """SELECT country, count(DISTINCT video_id)::INTEGER AS videos, count(*)::INTEGER AS cells FROM regions
        JOIN catalog USING (video_id) WHERE cell_row >= 2 GROUP BY country ORDER BY country""",
    )
    assert rows == [{"country": "de", "videos": 2, "cells": 60}, {"country": "fr", "videos": 1, "cells": 30}]


def test_files_with_and_without_added_column_are_read(tables_location: tuple[str, StorageOptions]) -> None:
    uri, options = tables_location
    tables = Tables.create(uri, options)
    writer = start(tables, "run-1", ["old", "new"], [KVQ])
    writer.commit(make_batch(["old"]))
    tables.add_columns("scores", [pa.field("noise", pa.float64())])
    batch = make_batch(["new"])
    scores = batch.scores.append_column("noise", pa.array([0.5]))
    writer.commit(Batch(batch.maps, batch.clips, None, scores))
    rows = ask(tables, "SELECT video_id, noise FROM scores_latest ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == [("new", 0.5), ("old", None)]
    assert [r["video_id"] for r in ask(tables, "SELECT video_id FROM scores WHERE noise > 0.1")] == ["new"]


def test_every_column_is_described() -> None:
    views = describe_views()
    assert list(views) == list(VIEWS)
    for view in views.values():
        assert view.description
        assert all(column.comment and column.type for column in view.columns)
    names = {name: {column.name for column in view.columns} for name, view in views.items()}
    wanted = {"video_id", "uri", "content_id", "model_id", "raw_score", "mos", "num_clips", "run_id", "scored_at"}
    assert wanted <= names["scores"]
    assert wanted | {"is_stale"} <= names["scores_latest"]
    failures = {"video_id", "model_id", "stage", "error", "message", "final", "permanent", "run_id"}
    assert failures <= names["failures"]
    assert make_rows("clips", []).num_rows == 0
