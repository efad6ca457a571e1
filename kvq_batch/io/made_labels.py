"""Which labels of a plan need not be made: those that stand, and those that failed for good.

One look at two tables. This module plans nothing.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from kvq_batch.io.storage import refusing
from kvq_batch.io.tables import Tables

LABELS_MODEL = "labels"
"""Stands as the model's name in `failures` of runs that make labels; the label's id stands as the fingerprint."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Label ids, pa.Array of text each: made, and given up until the source's bytes change."""

    made: pa.Array
    given_up: pa.Array


def standing_labels(tables: Tables | None) -> Standing:
    """What the tables hold; nothing without tables. Raises: SpecError where they are out of reach."""
    nothing = pa.array([], pa.string())
    if tables is None:
        return Standing(nothing, nothing)
    with refusing(tables.uri):
        made = tables.dataset("labels").to_table(columns=["label_id"])["label_id"]
        of_labels = (pads.field("model_name") == LABELS_MODEL) & pads.field("final") & pads.field("permanent")
        given_up = tables.dataset("failures").to_table(columns=["fingerprint"], filter=of_labels)["fingerprint"]
    return Standing(pc.unique(made), pc.unique(given_up))
