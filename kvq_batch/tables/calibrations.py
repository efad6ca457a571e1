"""Calibrations in the table `models`: logistic curves from raw scores to MOS, used by the column `mos`.

A calibration changes no score and needs no inference: SQL applies the newest default calibration of each model. The
calibrations of a model card are written only once, so a later run of the same card does not replace one that was added.
"""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.identity import new_run_id
from kvq_batch.storage.objects import read_file
from kvq_batch.storage.options import StorageOptions, display_uri, translate_storage_errors
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.tables.schemas import make_rows
from kvq_batch.tables.writer import Writer

_PARAMETERS = ("b1", "b2", "b3", "b4")
_COMMIT_COLUMNS = ("run_id", "commit_seq", "added_at")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A named curve of one model: mos = b2 + (b1 - b2) / (1 + exp(-(raw_score - b3) / |b4|))."""

    name: str
    model_id: str
    parameters: tuple[float, float, float, float]


def read_calibration(source: str, options: StorageOptions | None = None) -> Calibration:
    """Read a calibration file written by `evaluate`. Raises: SpecError if it is invalid, naming the field."""
    shown = display_uri(source)
    with translate_storage_errors(source):
        content = read_file(source, options or StorageOptions())
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise SpecError(
            f"{shown}: not JSON ({error}). Calibration files are written by `kvq-batch evaluate scores --out`."
        ) from error
    if not isinstance(fields, dict):
        raise SpecError(
            f"{shown}: not a JSON object. Calibration files are written by `kvq-batch evaluate scores --out`."
        )
    for key in ("calibration", "model_id"):
        if not isinstance(fields.get(key), str) or not fields[key]:
            raise SpecError(f"{shown}: field {key!r} is missing or not a string.")
    for key in _PARAMETERS:
        if type(fields.get(key)) not in (int, float) or not math.isfinite(fields[key]):
            raise SpecError(f"{shown}: field {key!r} is {fields.get(key)!r}, expected a finite number.")
    if fields["b4"] == 0:
        raise SpecError(f"{shown}: field 'b4' is 0, expected another number: the curve divides by it.")
    b1, b2, b3, b4 = (float(fields[key]) for key in _PARAMETERS)
    return Calibration(fields["calibration"], fields["model_id"], (b1, b2, b3, b4))


def add_calibration(uri: str, options: StorageOptions, calibration: Calibration) -> None:
    """Add a calibration to the tables below `uri`, and use it for `mos` of its model.

    Raises:
        SpecError: there are no tables, the model has no scores there, or another run is using them.
        FatalError: the tables cannot be written.
    """
    cards = _newest_rows(Tables.open(uri, options))
    card = cards.get((calibration.model_id, None))
    if card is None:
        known = ", ".join(sorted({model_id for model_id, _ in cards})) or "none"
        raise SpecError(
            f"{display_uri(uri)}: the tables have no model {calibration.model_id}; they have {known}. A calibration is "
            "valid only for the weights that it was fitted on."
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
    """Return those of `rows` (for `models`) that the tables do not have yet, in order."""
    known = _newest_rows(tables)
    is_known = [
        known.get((row["model_id"], row["calibration"])) == {k: v for k, v in row.items() if k not in _COMMIT_COLUMNS}
        for row in rows.to_pylist()
    ]
    return rows.filter(pa.array([not found for found in is_known], pa.bool_()))


def _newest_rows(tables: Tables) -> dict[tuple[str, str | None], dict[str, Any]]:
    """Return {(model id, calibration): newest row}, without the columns that differ between commits."""
    rows = tables.dataset("models").to_table().sort_by("commit_seq").to_pylist()
    return {
        (row["model_id"], row["calibration"]): {key: value for key, value in row.items() if key not in _COMMIT_COLUMNS}
        for row in rows
    }
