"""An added calibration applies to `mos` immediately, and a later run of the same model card keeps it."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pytest

from kvq_batch.catalog.changes import catalog_changes
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import StorageOptions
from kvq_batch.tables.calibrations import Calibration, add_calibration, read_calibration, unknown_cards
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.session import open_session
from kvq_batch.tables.writer import Writer
from tests.support.results import KVQ, LUMA, make_batch, make_catalog, make_model, make_run
from tests.support.stores import Store

CARD = (90.0, 10.0, 0.0, 1.0)
FITTED = (5.0, 1.0, 0.25, 0.5)


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
    add_calibration(uri, options, Calibration("ours", KVQ.model_id, FITTED))
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


def test_calibration_is_rejected_for_unknown_model_or_running_job(tmp_path: Path) -> None:
    uri, options = str(tmp_path / "tables"), StorageOptions()
    with pytest.raises(SpecError, match="there are no tables here"):
        add_calibration(uri, options, Calibration("ours", KVQ.model_id, FITTED))
    make_tables(uri, options)
    with pytest.raises(SpecError, match=rf"the tables have no model kvq@9-0; they have {KVQ.model_id}"):
        add_calibration(uri, options, Calibration("ours", "kvq@9-0", FITTED))
    with (
        hold(uri, options, Holder.this_process("run-9", "nightly")),
        pytest.raises(SpecError, match="run-9"),
    ):
        add_calibration(uri, options, Calibration("ours", KVQ.model_id, FITTED))


GOOD = {"calibration": "ours", "model_id": KVQ.model_id, "b1": 5, "b2": 1.0, "b3": 0.25, "b4": 0.5, "rmse": 0.3}


def test_calibration_file_is_read(store: Store) -> None:
    read = read_calibration(store.put("c.json", json.dumps(GOOD).encode()), store.options)
    assert read == Calibration("ours", KVQ.model_id, FITTED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no", "not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps(GOOD | {"model_id": None}), "field 'model_id' is missing"),
        (json.dumps(GOOD | {"b3": "1"}), "'b3' is '1', expected a finite number"),
        (json.dumps(GOOD | {"b1": float("nan")}), "'b1' is nan"),
        (json.dumps(GOOD | {"b4": 0}), "'b4' is 0"),
    ],
)
def test_invalid_calibration_file_is_rejected(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(SpecError, match=said):
        read_calibration(str(tmp_path / "c.json"))
