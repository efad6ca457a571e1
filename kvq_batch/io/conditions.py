"""SQL conditions and orders of users over the rows of a catalog: one expression, and nothing else within its reach.

This module reads no table of ours and keeps no connection.
"""

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.domain.errors import SpecError
from kvq_batch.io.redact import summary

_PLACE = "__kvq_place"


def places_that_meet(table: pa.Table, condition: str, key: str) -> pa.Array:
    """Places (int64) of the rows of `table` that meet the SQL `condition`, in order; `key` names it in errors.

    Raises: SpecError for what is no condition over these columns, or reaches for anything else.
    """
    try:
        with duckdb.connect(config={"enable_external_access": "false"}) as connection:
            # Names of tables are not looked up among the variables of this program.
            connection.execute("SET python_enable_replacements = false")
            connection.execute("SET lock_configuration = true")
            expression = duckdb.SQLExpression(condition)
            places = pa.array(range(table.num_rows), pa.int64())
            connection.register("catalog", table.append_column(_PLACE, places))
            found: pa.Table = connection.table("catalog").filter(expression).select(_PLACE).to_arrow_table()
    except duckdb.Error as error:
        raise SpecError(f"{key} = {condition!r} is refused: {summary(error, 400)}") from error
    return found.column(0).combine_chunks().sort()


def column_named(table: pa.Table, name: str, key: str) -> str:
    """The column of `table` that `name` means to SQL, whatever its case.

    Raises: SpecError naming `key` and the columns there are.
    """
    for column in table.column_names:
        if column.casefold() == name.strip('"').casefold():
            return str(column)
    raise SpecError(f"{key}: the catalog has no column {name!r}; there are {', '.join(table.column_names)}")


def ranks(values: pa.ChunkedArray, is_falling: bool, key: str) -> pa.Array:
    """Place of each value in the order of all of them (int64), nulls last, equals as they stand.

    Raises: SpecError naming `key` for values that have no order.
    """
    rows = pa.array(range(len(values)), pa.int64())
    table = pa.table({"value": values, "row": rows})
    keys = [("value", "descending" if is_falling else "ascending"), ("row", "ascending")]
    try:
        # Nulls last is Arrow's own default.
        order = pc.sort_indices(table, sort_keys=keys)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SpecError(f"{key}: {values.type} values have no order: {summary(error, 200)}") from error
    return pc.inverse_permutation(order.cast(pa.int64()))
