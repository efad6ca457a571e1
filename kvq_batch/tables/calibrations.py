"""Calibrations in the table `models`: the curve from raw scores to labels that the column `mos` applies.

A calibration changes no score and needs no inference: the newest default of a model is what SQL computes with. What a
card says of its own is written once, so that a later run of the same card does not take a calibration back.
"""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import new_run_id
from kvq_batch.storage.options import StorageOptions, display_uri, filesystem, translate_storage_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer

_PARAMETERS = ("b1", "b2", "b3", "b4")
_OF_A_COMMIT = ("run_id", "commit_seq", "added_at")


@dataclass(frozen=True, slots=True)
class Calibration:
    """mos = b2 + (b1 - b2) / (1 + exp(-(raw_score - b3) / |b4|)) for one model, under a name."""

    name: str
    model_id: str
    parameters: tuple[float, float, float, float]


def read_calibration(source: str, options: StorageOptions | None = None) -> Calibration:
    """The calibration that `evaluate` wrote. Raises: SpecError for a file that is none, naming what is wrong."""
    shown = display_uri(source)
    with translate_storage_errors(source):
        file_system, path = filesystem(source, options or StorageOptions())
        with file_system.open(path, "rb") as file:
            content = file.read()
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise SpecError(f"{shown}: no JSON ({error}); `kvq-batch evaluate --out` writes calibrations") from error
    if not isinstance(fields, dict):
        raise SpecError(f"{shown}: no JSON object; `kvq-batch evaluate --out` writes calibrations")
    for key in ("calibration", "model_id"):
        if not isinstance(fields.get(key), str) or not fields[key]:
            raise SpecError(f"{shown}: lacks the text {key!r}")
    for key in _PARAMETERS:
        if type(fields.get(key)) not in (int, float) or not math.isfinite(fields[key]):
            raise SpecError(f"{shown}: {key!r} is {fields.get(key)!r}, no finite number")
    if fields["b4"] == 0:
        raise SpecError(f"{shown}: b4 is 0, which makes no curve")
    b1, b2, b3, b4 = (float(fields[key]) for key in _PARAMETERS)
    return Calibration(fields["calibration"], fields["model_id"], (b1, b2, b3, b4))


def add_calibration(uri: str, options: StorageOptions, calibration: Calibration) -> None:
    """Makes `calibration` the one that `mos` of its model is computed with, in the tables below `uri`.

    Raises:
        SpecError: no tables, a model that never scored there, or another run at work.
        FatalError: the tables cannot be written.
    """
    cards = _newest(Tables.open(uri, options))
    card = cards.get((calibration.model_id, None))
    if card is None:
        known = ", ".join(sorted({model_id for model_id, _ in cards})) or "none"
        raise SpecError(
            f"{display_uri(uri)}: model {calibration.model_id} has no row here; the tables know {known}. "
            "A calibration holds for exactly the weights that it was fitted on"
        )
    row = card | {
        "calibration": calibration.name,
        "is_default": True,
        "added_at": datetime.now(UTC),
        **dict(zip(_PARAMETERS, calibration.parameters, strict=True)),
    }
    holder = Holder.this_process(new_run_id(), "calibrate")
    with hold(uri, options, holder):
        writer = Writer(Tables.open(uri, options), holder.run_id)
        writer.write_models(make_rows("models", [row]))


def unknown_cards(tables: Tables, rows: pa.Table) -> pa.Table:
    """Those of `rows` (of `models`) that the tables do not say already, in order."""
    known = _newest(tables)
    said = [
        known.get((row["model_id"], row["calibration"])) == {k: v for k, v in row.items() if k not in _OF_A_COMMIT}
        for row in rows.to_pylist()
    ]
    return rows.filter(pa.array([not is_said for is_said in said], pa.bool_()))


def _newest(tables: Tables) -> dict[tuple[str, str | None], dict[str, Any]]:
    """The newest row of each model and calibration, without what only its commit says."""
    rows = tables.dataset("models").to_table().sort_by("commit_seq").to_pylist()
    return {
        (row["model_id"], row["calibration"]): {key: value for key, value in row.items() if key not in _OF_A_COMMIT}
        for row in rows
    }
