"""Calibrations in the table `models`: logistic curves from raw scores to MOS, used by the column `mos`.

A calibration changes no score and needs no inference: SQL applies the newest default calibration of each model. Rows
are only added: a row with `is_default` NULL removes the calibration of its name. The calibrations of a model card are
written only once, so a later run of the same card does not replace a choice that was made in between.
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

MIN_SCENES = 30
"""Scenes that a calibration needs."""
END_MARGIN = 0.02
"""Distance from an end of the scale, as a share of the scale, below which a fitted score counts as at the end."""
MAX_SHARE_AT_ENDS = 0.5

_PARAMETERS = ("b1", "b2", "b3", "b4")
_FIT_FIELDS = ("srcc_low", "srcc_high", "num_references", "share_at_ends")
_COMMIT_COLUMNS = ("run_id", "commit_seq", "added_at")


@dataclass(frozen=True, slots=True)
class FitQuality:
    """How well a curve was determined: the 95% interval of SRCC, None if undefined, and what it was fitted on.

    `share_at_ends` is the share of fitted scores that are within END_MARGIN of an end of the scale.
    """

    srcc_low: float | None
    srcc_high: float | None
    num_scenes: int
    share_at_ends: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A named curve of one model: mos = b2 + (b1 - b2) / (1 + exp(-(raw_score - b3) / |b4|)).

    `quality` is None in files of earlier releases, which do not have it.
    """

    name: str
    model_id: str
    parameters: tuple[float, float, float, float]
    quality: FitQuality | None = None

    def find_weaknesses(self) -> list[str]:
        """Return the reasons why the curve must not be used for `mos`; empty if there is none."""
        quality = self.quality
        if quality is None:
            return ["its file does not say how well it was fitted"]
        reasons = []
        if quality.srcc_low is None or quality.srcc_high is None:
            reasons.append("SRCC has no 95% interval")
        elif quality.srcc_low <= 0 <= quality.srcc_high:
            reasons.append(f"the 95% interval of SRCC contains 0 ({quality.srcc_low:.3f} to {quality.srcc_high:.3f})")
        if quality.num_scenes < MIN_SCENES:
            reasons.append(f"it was fitted on {quality.num_scenes} scenes, expected at least {MIN_SCENES}")
        if quality.share_at_ends > MAX_SHARE_AT_ENDS:
            reasons.append(
                f"{quality.share_at_ends:.0%} of the fitted scores are within {END_MARGIN:.0%} of an end of the scale"
            )
        return reasons


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
    return Calibration(fields["calibration"], fields["model_id"], (b1, b2, b3, b4), _fit_quality(fields, shown))


def _fit_quality(fields: dict[str, Any], shown: str) -> FitQuality | None:
    """Return the quality of the fit in a calibration file, None if the file does not have it."""
    if not set(_FIT_FIELDS) <= set(fields):
        return None
    for key in _FIT_FIELDS:
        is_undefined = fields[key] is None and key.startswith("srcc")
        if not is_undefined and (type(fields[key]) not in (int, float) or not math.isfinite(fields[key])):
            raise SpecError(f"{shown}: field {key!r} is {fields[key]!r}, expected a finite number.")
    return FitQuality(*(fields[key] for key in _FIT_FIELDS))


def add_calibration(uri: str, options: StorageOptions, calibration: Calibration, is_forced: bool = False) -> None:
    """Add a calibration to the tables below `uri`, and use it for `mos` of its model.

    Raises:
        SpecError: the curve is too weak and not forced, there are no tables, the model has no scores there, or another
            run is using them.
        FatalError: the tables cannot be written.
    """
    cards = _newest_rows(Tables.open(uri, options))
    weaknesses = calibration.find_weaknesses()
    if weaknesses and not is_forced:
        raise SpecError(
            f"Calibration {calibration.name!r} of {calibration.model_id} is too weak for `mos`: "
            f"{'; '.join(weaknesses)}. Evaluate on labels of more scenes, or use it anyway with --force."
        )
    card = cards.get((calibration.model_id, None))
    if card is None:
        known = ", ".join(sorted({model_id for model_id, _ in cards})) or "none"
        raise SpecError(
            f"{display_uri(uri)}: the tables have no model {calibration.model_id}; they have {known}. A calibration is "
            "valid only for the weights that it was fitted on."
        )
    parameters = dict(zip(_PARAMETERS, calibration.parameters, strict=True))
    _write(uri, options, card | {"calibration": calibration.name, "is_default": True, **parameters})


def use_calibration(uri: str, options: StorageOptions, name: str, model: str | None) -> str:
    """Use a calibration that the tables have for `mos` of its model; return the model id.

    `model` is a model name or id; None if only one model has a calibration of this name.

    Raises:
        SpecError: no calibration or several of this name, there are no tables, or another run is using them.
        FatalError: the tables cannot be written.
    """
    row = _find(uri, options, name, model)
    _write(uri, options, row | {"is_default": True})
    return str(row["model_id"])


def remove_calibration(uri: str, options: StorageOptions, name: str, model: str | None) -> str:
    """Remove a calibration from the tables; return its model id. The newest other default calibration is used then.

    Raises:
        SpecError: as `use_calibration`.
        FatalError: the tables cannot be written.
    """
    row = _find(uri, options, name, model)
    _write(uri, options, row | {"is_default": None})
    return str(row["model_id"])


def _find(uri: str, options: StorageOptions, name: str, model: str | None) -> dict[str, Any]:
    """Return the row of the only calibration of this name, of `model` if it is given."""
    rows = [row for row in _newest_rows(Tables.open(uri, options)).values() if _is_calibration(row)]
    found = [
        row
        for row in rows
        if row["calibration"] == name and (model is None or model in (row["model_id"], row["model_name"]))
    ]
    if not found:
        known = ", ".join(sorted(f"{row['calibration']!r} of {row['model_id']}" for row in rows)) or "none"
        whose = "" if model is None else f" of model {model}"
        raise SpecError(f"{display_uri(uri)}: the tables have no calibration {name!r}{whose}; they have {known}.")
    if len(found) > 1:
        models = ", ".join(sorted(row["model_id"] for row in found))
        raise SpecError(f"{len(found)} models have a calibration {name!r}: {models}. Choose one with --model.")
    return found[0]


def _is_calibration(row: dict[str, Any]) -> bool:
    """Return whether a row is a calibration that has not been removed."""
    return row["calibration"] is not None and row["is_default"] is not None


def _write(uri: str, options: StorageOptions, row: dict[str, Any]) -> None:
    holder = Holder.this_process(new_run_id(), "calibrate")
    with hold(uri, options, holder):
        writer = Writer(Tables.open(uri, options), holder.run_id)
        writer.write_models(make_rows("models", [row | {"added_at": datetime.now(UTC)}]))


def unknown_cards(tables: Tables, rows: pa.Table) -> pa.Table:
    """Return those of `rows` (for `models`) that the tables do not have yet, in order.

    Whether a calibration is used or was removed is the choice of the user, so `is_default` is not compared.
    """
    ignored = (*_COMMIT_COLUMNS, "is_default")
    known = {key: {k: v for k, v in row.items() if k not in ignored} for key, row in _newest_rows(tables).items()}
    is_known = [
        known.get((row["model_id"], row["calibration"])) == {k: v for k, v in row.items() if k not in ignored}
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
