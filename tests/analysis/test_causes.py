"""Causes in answers: the question `why`, and the cause of the worst moment."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from kvq_batch.analysis.comparison import compare
from kvq_batch.analysis.overview import list_scored_models
from kvq_batch.analysis.questions import ask, build, find_causes
from kvq_batch.analysis.video_maps import find_video
from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import ModelRef
from kvq_batch.domain.maps import quantise_causes
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.session import Session
from kvq_batch.tables.writer import Batch, Writer
from tests.support.results import KVQ, make_batch, make_catalog, make_maps, make_model, make_run

CAUSES = ModelRef("causes", "causes@1-0123456789ab", "c" * 64)
SHAPE = (3, 14, 14)


def cells(slot: int, rows: slice, columns: slice, severity: float) -> NDArray[np.float32]:
    values = np.zeros(SHAPE, np.float32)
    values[slot, rows, columns] = severity
    return values


EVERYWHERE = slice(None)
MEASURED: dict[str, tuple[dict[str, NDArray[np.float32]], dict[str, float]]] = {
    # Blur at the lower right of the second slot, and little noise everywhere.
    "v0": (
        {
            "blur": cells(1, slice(10, 14), slice(10, 14), 0.9),
            "noise": np.full(SHAPE, 0.2, np.float32),
        },
        {"blur": 0.4, "noise": 0.2},
    ),
    "v1": ({"blur": np.zeros(SHAPE, np.float32), "freeze": np.array([0, 0, 1], np.float32)}, {"freeze": 0.33}),
    "v2": ({"blur": np.zeros(SHAPE, np.float32)}, {"blur": 0.0}),
}


def causes_batch(videos: list[str]) -> Batch:
    batch = make_batch(videos, CAUSES)
    maps, scores = [], []
    for row, score in zip(batch.maps.to_pylist(), batch.scores.to_pylist(maps_as_pydicts="strict"), strict=True):
        found, outputs = MEASURED[row["video_id"]]
        names = ("video_id", "content_id", "model_id", "fingerprint")
        maps.append({**{name: row[name] for name in names}, "clip_index": 0, **quantise_causes(found).row()})
        scores.append({**score, "raw_score": None, "outputs": outputs})
    return replace(batch, maps=make_rows("maps", maps), scores=make_rows("scores", scores))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    tables = Tables.create(str(tmp_path_factory.mktemp("causes") / "tables"))
    writer = Writer(tables, "run-1")
    writer.write_run(make_run([KVQ, CAUSES], state="finished"))
    writer.write_models(pa.concat_tables([make_model(KVQ), make_model(CAUSES)]))
    catalog = make_catalog([*MEASURED, "unmeasured"], country=["CH", "IT", "IT", "IT"])
    writer.write_catalog(catalog_changes(tables, catalog, "nightly"))
    writer.commit(make_batch([*MEASURED, "unmeasured"]))
    writer.commit(causes_batch(list(MEASURED)))
    tables.refresh()
    with Session(tables) as opened:
        yield opened


def test_why_names_causes_with_moment_and_region(session: Session) -> None:
    rows = ask(session, "why").to_pylist()
    assert [(r["video_id"], r["cause"], r["severity"], r["worst_at_s"], r["worst_region"]) for r in rows] == [
        ("v0", "blur", 0.4, 1.5, "lower right"),
        ("v1", "freeze", 0.33, 3.0, "whole frame"),
    ]
    # A zone at the lower right of 14 x 14 cells has 4 x 4 of them.
    assert rows[0]["worst_severity"] == pytest.approx(0.9)


def test_why_takes_a_condition_a_column_and_a_limit(session: Session) -> None:
    rows = ask(session, "why", where="country = 'IT'", by="country").to_pylist()
    assert [(row["country"], row["video_id"]) for row in rows] == [("IT", "v1")]
    assert ask(session, "why", limit=1)["video_id"].to_pylist() == ["v0"]
    assert session.sql(build(session, "why")).equals(ask(session, "why"))


def test_cause_of_a_moment_is_the_one_in_its_slot_and_zone(session: Session) -> None:
    moments = [
        ("v0", 1.5, "lower right"),
        ("v0", 2.9, "lower right"),
        ("v0", 0.0, "lower right"),
        ("v0", 1.6, "top"),
        ("v1", 3.5, "top"),
        ("v1", 3.5, None),
        ("v0", None, None),
        ("v2", 0.0, "top"),
        ("v2", None, None),
        ("unmeasured", 0.0, "top"),
        ("unmeasured", None, None),
        ("v0", None, "top"),
    ]
    expected = ["blur", "blur", None, None, "freeze", "freeze", "blur", None, None, None, None, None]
    assert find_causes(session, moments) == expected
    assert find_causes(session, []) == []


def test_worst_videos_name_the_cause_of_their_worst_moment(session: Session) -> None:
    rows = ask(session, "worst").to_pylist()
    # The model of causes has no score, so no worst videos.
    assert {row["model_name"] for row in rows} == {KVQ.name}
    moments = [(row["video_id"], row["worst_at_s"], row["worst_region"]) for row in rows]
    assert [row["worst_cause"] for row in rows] == find_causes(session, moments)
    found = {row["video_id"]: row for row in rows}
    texture, saliency = make_maps(1000)
    slot = int((texture * saliency).mean(axis=(1, 2)).argmin())
    assert found["v1"]["worst_cause"] == ("freeze" if slot == 2 else None)


def test_models_without_a_score_are_not_in_distributions(session: Session) -> None:
    assert ask(session, "distribution")["model_name"].to_pylist() == [KVQ.name]
    assert set(ask(session, "by-cell")["model_name"].to_pylist()) == {KVQ.name}
    assert set(ask(session, "cost")["model_name"].to_pylist()) == {KVQ.name, CAUSES.name}


def test_other_answers_leave_a_model_without_score_out(session: Session) -> None:
    assert [model.model_name for model in list_scored_models(session)] == [KVQ.name]
    assert find_video(session, "v0").model_name == KVQ.name
    with pytest.raises(SpecError, match="no maps of model 'causes'"):
        find_video(session, "v0", CAUSES.name)
    with pytest.raises(SpecError, match="no model and no run 'causes' here"):
        compare(session, CAUSES.name, KVQ.name)
    # One model of the run has scores, so it need not be named.
    assert compare(session, "run-1", "run-1").scores.num_rows == 4
