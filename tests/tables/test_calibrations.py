"""An added calibration applies to `mos` immediately, and a later run of the same model card keeps it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kvq_batch.catalog.stored_rows import catalog_changes
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.calibrations import (
    Calibration,
    FitQuality,
    add_calibration,
    read_calibration,
    remove_calibration,
    unknown_cards,
    use_calibration,
)
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.session import open_session
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, LUMA, make_batch, make_catalog, make_model, make_run
from tests.support.stores import Store

CARD = (90.0, 10.0, 0.0, 1.0)
FITTED = (5.0, 1.0, 0.25, 0.5)
GOOD_FIT = FitQuality(srcc_low=0.7, srcc_high=0.9, num_scenes=30, share_at_ends=0.5)


def make_tables(uri: str, options: StorageOptions) -> Writer:
    """Create tables with one video scored by KVQ, whose model card has a calibration."""
    tables = Tables.create(uri, options)
    writer = Writer(tables, "run-1")
    writer.write_run(make_run([KVQ], state="finished"))
    writer.write_models(cards())
    writer.write_catalog(catalog_changes(tables, make_catalog(["a"]), "nightly"))
    writer.commit(make_batch(["a"], KVQ))
    return writer


def cards() -> pa.Table:
    return pa.concat_tables([make_model(KVQ), make_model(KVQ, "lsvq", CARD, is_default=True)])


def mos(uri: str, options: StorageOptions) -> tuple[float, float]:
    with open_session(uri, options) as session:
        (row,) = session.sql("SELECT raw_score, mos FROM scores_latest").to_pylist()
    return row["raw_score"], row["mos"]


def curve(raw: float, b: tuple[float, float, float, float]) -> float:
    return b[1] + (b[0] - b[1]) / (1 + math.exp(-(raw - b[2]) / abs(b[3])))


def test_added_calibration_applies_immediately_and_later(
    tables_location: tuple[str, StorageOptions],
) -> None:
    uri, options = tables_location
    make_tables(uri, options)
    raw, before = mos(uri, options)
    assert before == pytest.approx(curve(raw, CARD))
    add_calibration(uri, options, Calibration("ours", KVQ.model_id, FITTED, GOOD_FIT))
    assert mos(uri, options)[1] == pytest.approx(curve(raw, FITTED))
    # The next run writes rows of its model card only if the tables lack them.
    writer = Writer(Tables.open(uri, options), "run-2")
    again = unknown_cards(writer.tables, pa.concat_tables([cards(), make_model(LUMA)]))
    assert again["model_id"].to_pylist() == [LUMA.model_id]
    writer.write_models(again)
    assert mos(uri, options)[1] == pytest.approx(curve(raw, FITTED))
    # A changed card is written.
    changed = make_model(KVQ, "lsvq", (80.0, 20.0, 0.0, 1.0), is_default=True)
    assert unknown_cards(writer.tables, changed).num_rows == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"srcc_low": -0.01}, r"the 95% interval of SRCC contains 0 \(-0.010 to 0.900\)"),
        ({"srcc_low": -0.9, "srcc_high": -0.1}, None),
        ({"srcc_low": None, "srcc_high": None}, "SRCC has no 95% interval"),
        ({"num_scenes": 29}, "it was fitted on 29 scenes, expected at least 30"),
        ({"share_at_ends": 0.51}, "51% of the fitted scores are within 2% of an end of the scale"),
    ],
)
def test_weak_curve_needs_force(tmp_path: Path, changes: dict[str, Any], reason: str | None) -> None:
    uri, options = str(tmp_path / "tables"), StorageOptions()
    make_tables(uri, options)
    quality = dataclasses.replace(GOOD_FIT, **changes)
    curve = Calibration("ours", KVQ.model_id, FITTED, quality)
    if reason is not None:
        with pytest.raises(SpecError, match=rf"too weak for `mos`: {reason}\. .* --force"):
            add_calibration(uri, options, curve)
    add_calibration(uri, options, curve, is_forced=reason is not None)
    assert used(uri, options) == "ours"


def test_curve_of_unknown_quality_needs_force(tmp_path: Path) -> None:
    uri, options = str(tmp_path / "tables"), StorageOptions()
    make_tables(uri, options)
    path = tmp_path / "c.json"
    path.write_text(json.dumps({key: value for key, value in GOOD.items() if key != "srcc_low"}))
    curve = read_calibration(str(path))
    with pytest.raises(SpecError, match="its file does not say how well it was fitted"):
        add_calibration(uri, options, curve)
    add_calibration(uri, options, curve, is_forced=True)


def used(uri: str, options: StorageOptions) -> str | None:
    """Return the name of the calibration that `mos` uses."""
    with open_session(uri, options) as session:
        names = session.sql("SELECT calibration FROM models WHERE is_default").to_pylist()
    assert len(names) <= 1
    return names[0]["calibration"] if names else None


def test_choice_of_calibration_survives_runs(tmp_path: Path) -> None:
    uri, options = str(tmp_path / "tables"), StorageOptions()
    writer = make_tables(uri, options)
    card = pa.concat_tables([cards(), make_model(KVQ, "second", (70.0, 30.0, 0.0, 1.0))])
    writer.write_models(unknown_cards(writer.tables, card))

    def run() -> None:
        tables = Tables.open(uri, options)
        assert unknown_cards(tables, card).num_rows == 0

    assert used(uri, options) == "lsvq"
    assert use_calibration(uri, options, "second", "kvq-tiny") == KVQ.model_id
    run()
    assert used(uri, options) == "second"
    remove_calibration(uri, options, "second", None)
    run()
    assert used(uri, options) == "lsvq"
    raw, value = mos(uri, options)
    assert value == pytest.approx(curve(raw, CARD))
    remove_calibration(uri, options, "lsvq", KVQ.model_id)
    run()
    assert used(uri, options) is None
    assert mos(uri, options)[1] is None
    with pytest.raises(SpecError, match="no calibration 'lsvq'; they have none"):
        use_calibration(uri, options, "lsvq", None)
    # A removed calibration can be added again.
    add_calibration(uri, options, Calibration("lsvq", KVQ.model_id, FITTED, GOOD_FIT))
    assert used(uri, options) == "lsvq"


def test_calibration_of_several_models_needs_the_model(tmp_path: Path) -> None:
    uri, options = str(tmp_path / "tables"), StorageOptions()
    writer = make_tables(uri, options)
    writer.write_models(pa.concat_tables([make_model(LUMA), make_model(LUMA, "lsvq", FITTED)]))
    with pytest.raises(SpecError, match=rf"2 models have a calibration 'lsvq': {KVQ.model_id}, {LUMA.model_id}"):
        use_calibration(uri, options, "lsvq", None)
    assert use_calibration(uri, options, "lsvq", "luma") == LUMA.model_id
    with pytest.raises(SpecError, match=rf"no calibration 'none' of model luma; they have 'lsvq' of {KVQ.model_id}"):
        remove_calibration(uri, options, "none", "luma")


def test_calibration_is_rejected_for_unknown_model_or_running_job(tmp_path: Path) -> None:
    uri, options = str(tmp_path / "tables"), StorageOptions()
    with pytest.raises(SpecError, match="there are no tables here"):
        add_calibration(uri, options, Calibration("ours", KVQ.model_id, FITTED, GOOD_FIT))
    make_tables(uri, options)
    with pytest.raises(SpecError, match=rf"the tables have no model kvq@9-0; they have {KVQ.model_id}"):
        add_calibration(uri, options, Calibration("ours", "kvq@9-0", FITTED, GOOD_FIT))
    with (
        hold(uri, options, Holder.this_process("run-9", "nightly")),
        pytest.raises(SpecError, match="run-9"),
    ):
        add_calibration(uri, options, Calibration("ours", KVQ.model_id, FITTED, GOOD_FIT))


GOOD = {
    "calibration": "ours",
    "model_id": KVQ.model_id,
    "b1": 5,
    "b2": 1.0,
    "b3": 0.25,
    "b4": 0.5,
    "rmse": 0.3,
    "srcc_low": 0.7,
    "srcc_high": 0.9,
    "num_references": 30,
    "share_at_ends": 0.5,
}


def test_calibration_file_is_read(store: Store) -> None:
    read = read_calibration(store.put("c.json", json.dumps(GOOD).encode()), store.options)
    assert read == Calibration("ours", KVQ.model_id, FITTED, GOOD_FIT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no", "not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps(GOOD | {"model_id": None}), "field 'model_id' is missing"),
        (json.dumps(GOOD | {"b3": "1"}), "'b3' is '1', expected a finite number"),
        (json.dumps(GOOD | {"b1": float("nan")}), "'b1' is nan"),
        (json.dumps(GOOD | {"b4": 0}), "'b4' is 0"),
        (json.dumps(GOOD | {"srcc_low": "0.5"}), "'srcc_low' is '0.5'"),
        (json.dumps(GOOD | {"share_at_ends": None}), "'share_at_ends' is None"),
    ],
)
def test_invalid_calibration_file_is_rejected(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(SpecError, match=said):
        read_calibration(str(tmp_path / "c.json"))
