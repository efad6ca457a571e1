"""Which labels of a plan need not be made: those that stand, and those that failed for good.

As for scores, the newest row in `failures` decides: another try, or somebody who asked for one, ends it. This module
plans nothing.
"""

from dataclasses import dataclass

import pyarrow as pa

from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import Tables

LABELS_MODEL = "labels"
"""Stands as the model's name in `failures` of runs that make labels; the label's id stands as the fingerprint."""

_GIVEN_UP = """
SELECT fingerprint FROM failures WHERE model_name = '{model}'
GROUP BY fingerprint HAVING arg_max(final AND permanent, (commit_seq, attempt, final))
"""


@dataclass(frozen=True, slots=True)
class LabelIndex:
    """Label ids, pa.ChunkedArray of text each: made, and given up until the source's bytes change."""

    made: pa.ChunkedArray
    given_up: pa.ChunkedArray


def read_label_index(tables: Tables | None) -> LabelIndex:
    """What the tables hold; nothing without tables. Raises: SpecError where they are out of reach."""
    if tables is None:
        nothing = pa.chunked_array([], pa.string())
        return LabelIndex(nothing, nothing)
    with connect() as connection, translate_read_errors(tables.uri):
        connection.register("labels", tables.dataset("labels"))
        connection.register("failures", tables.dataset("failures"))
        made = connection.sql("SELECT DISTINCT label_id FROM labels").to_arrow_table()
        given_up = connection.sql(_GIVEN_UP.format(model=LABELS_MODEL)).to_arrow_table()
    return LabelIndex(made["label_id"], given_up["fingerprint"])
