"""The fixed scale on which the quality of a model is shown: the same colours for every video and every night.

A model with a default calibration is shown as MOS. The score is the weighted mean of the texture map, so the
calibration applies to cells and time slots, too: the MOS that a whole video of this quality would have. A model without
a calibration is shown by its raw values, between bounds taken from all its maps, or its scores if it has none.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvq_batch.analysis.questions import quote_literal
from kvq_batch.tables.session import Session

# Labels on a scale such as 1 to 5 calibrate to at most this; every other calibration is shown from 0 to 100.
_MAX_OF_SHORT_SCALE = 10.0

_BOUNDS = """
WITH bounds AS (
    SELECT texture_offset - 127 * abs(texture_scale) AS low, texture_offset + 127 * abs(texture_scale) AS high
    FROM maps WHERE model_id = {model_id} AND texture_scale IS NOT NULL
),
scored AS (SELECT raw_score FROM scores WHERE model_id = {model_id})
SELECT coalesce(quantile_cont(low, 0.05), (SELECT quantile_cont(raw_score, 0.01) FROM scored)) AS low,
    coalesce(quantile_cont(high, 0.95), (SELECT quantile_cont(raw_score, 0.99) FROM scored)) AS high
FROM bounds
"""


@dataclass(frozen=True, slots=True)
class QualityScale:
    """Unit and bounds of the colours of one model, and how raw values become values of this unit."""

    unit: Literal["mos", "raw score"]
    low: float
    high: float
    calibration: tuple[float, float, float, float] | None = None

    def values(self, raw: NDArray[Any]) -> NDArray[np.float64]:
        """Return raw values (scores, or texture of cells) of any shape in this unit, float64."""
        raw64 = np.asarray(raw, np.float64)
        if self.calibration is None:
            return raw64
        b1, b2, b3, b4 = self.calibration
        # The exponent is limited only where the result no longer changes.
        return b2 + (b1 - b2) / (1 + np.exp(np.clip(-(raw64 - b3) / abs(b4), -700, 700)))

    def shares(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return where values of this unit are between the bounds, from 0 to 1; values beyond are clipped."""
        span = self.high - self.low
        return np.clip((np.asarray(values, np.float64) - self.low) / (span or 1.0), 0, 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Return `count` evenly spaced values from the lower to the upper bound."""
        return [float(value) for value in np.linspace(self.low, self.high, count)]

    def text(self, value: float | None) -> str:
        """Return a value of this unit with the digits that it deserves; an en dash if there is none."""
        if value is None or not np.isfinite(value):
            return "–"
        return f"{value:.1f}" if self.unit == "mos" and self.high > _MAX_OF_SHORT_SCALE else f"{value:.3g}"


def load_scale(session: Session, model_id: str) -> QualityScale:
    """Return the scale of a model. Raises: SpecError if the tables cannot be read."""
    quoted = quote_literal(model_id)
    rows = session.sql(f"SELECT b1, b2, b3, b4 FROM models WHERE is_default AND model_id = {quoted}").to_pylist()
    if rows:
        b1, b2, b3, b4 = (float(rows[0][name]) for name in ("b1", "b2", "b3", "b4"))
        low, high = min(b1, b2), max(b1, b2)
        is_short = high <= _MAX_OF_SHORT_SCALE
        bounds = (float(np.floor(low)), float(np.ceil(high))) if is_short else (0.0, 100.0)
        return QualityScale("mos", *bounds, (b1, b2, b3, b4))
    found = session.sql(_BOUNDS.format(model_id=quoted)).to_pylist()[0]
    if found["low"] is None:
        return QualityScale("raw score", 0.0, 1.0)
    return QualityScale("raw score", float(found["low"]), float(found["high"]))


def worst_cells(values: NDArray[Any], scale: QualityScale, max_share: float = 0.1) -> NDArray[np.bool_]:
    """Return which cells [row, column] of one map are clearly worse than the rest of it.

    `values` are in the unit of `scale`. These are the lowest cells, at most `max_share` of all but at least one, that
    are at least 5% of the scale below the median. There are none if the quality is even.
    """
    flat = np.asarray(values, np.float64).ravel()
    limit = np.median(flat) - 0.05 * (scale.high - scale.low)
    count = max(1, round(max_share * flat.size))
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(flat, kind="stable")[:count]] = True
    marked: NDArray[np.bool_] = (chosen & (flat <= limit)).reshape(np.shape(values))
    return marked
