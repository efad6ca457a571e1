"""The selection of a job, applied to a catalog: the same rows for the same catalog, in a plan as in a run.

A sample goes by a hash of the video id: the same videos every time, a smaller share within a larger one, whatever else
the catalog holds. What is due, and why, is the planner's.

SQL conditions and orders of users over the rows of a catalog: one expression, and nothing else within its reach.

This module reads no table of ours and keeps no connection.
"""

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.config.selection import Select
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.storage.redact import summary
from kvq_batch.tables.database import connect

_PLACE = "__kvq_place"


def indices_that_match(table: pa.Table, condition: str, key: str) -> pa.Array:
    """Places (int64) of the rows of `table` that meet the SQL `condition`, in order; `key` names it in errors.

    Raises: SpecError for what is no condition over these columns, or reaches for anything else.
    """
    try:
        with duckdb.connect(config={"enable_external_access": "false"}) as connection:
            # Names of tables are not looked up among the variables of this program.
            connection.execute("SET python_enable_replacements = false")
            connection.execute("SET lock_configuration = true")
            expression = duckdb.SQLExpression(condition)
            indices = pa.array(range(table.num_rows), pa.int64())
            connection.register("catalog", table.append_column(_PLACE, indices))
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


# 64 bits of md5: the same in every version of DuckDB, which its own hash() is not.
_IN_SHARE = "SELECT place FROM videos WHERE md5_number_lower(video_id) / 18446744073709551616 < $share ORDER BY place"
_SMALLEST = """
SELECT place FROM (SELECT place FROM videos ORDER BY md5_number_lower(video_id), video_id LIMIT $size) ORDER BY place
"""


def shard_condition(shard: Shard) -> str:
    """SQL over `video_id` that holds for the videos of `shard`; the same in every version of DuckDB."""
    return "true" if shard == WHOLE else f"md5_number_lower(video_id) % {shard.count} = {shard.number - 1}"


def in_shard(catalog: pa.Table, shard: Shard) -> pa.Table:
    """The rows of `catalog` whose videos `shard` has, in their order; of a count of shards one has each video."""
    if shard == WHOLE:
        return catalog
    with connect() as connection:
        indices = pa.array(range(catalog.num_rows), pa.int64())
        connection.register("videos", pa.table({"video_id": catalog.column("video_id"), "place": indices}))
        found = connection.sql(f"SELECT place FROM videos WHERE {shard_condition(shard)} ORDER BY place")
        chosen: pa.Table = found.to_arrow_table()
    return catalog.take(chosen.column("place").combine_chunks())


def select_indices(catalog: pa.Table, select: Select) -> pa.Array | None:
    """Places (int64, rising) of the videos that `where` and `sample` take; None for all of them.

    Raises: SpecError for a condition that this catalog cannot answer.
    """
    if select.where is None and select.sample is None:
        return None
    if select.where is None:
        indices = pa.array(range(catalog.num_rows), pa.int64())
    else:
        indices = indices_that_match(catalog, select.where, "select.where")
    if select.sample is None:
        return indices
    with connect() as connection:
        ids = catalog.column("video_id").take(indices)
        connection.register("videos", pa.table({"video_id": ids, "place": indices}))
        if select.sample_size is None:
            found = connection.sql(_IN_SHARE, params={"share": select.sample_share})
        else:
            found = connection.sql(_SMALLEST, params={"size": select.sample_size})
        chosen: pa.Table = found.to_arrow_table()
    return chosen.column("place").combine_chunks()


def in_order(found: pa.Table, catalog: pa.Table, select: Select) -> pa.Table:
    """`found` (with the columns place and ref, sorted by both) in the order that the selection asks for.

    Videos of one value keep the order of the catalog, those without a value come last. Raises: SpecError for a column
    that is not there or has no order.
    """
    if select.order is None:
        return found
    name, is_falling = select.order
    column = catalog.column(column_named(catalog, name, "select.order_by"))
    rank = ranks(column, is_falling, "select.order_by").take(found.column("place"))
    order = pc.sort_indices(found.append_column("rank", rank), sort_keys=[("rank", "ascending"), ("ref", "ascending")])
    return found.take(order)
