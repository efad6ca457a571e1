"""Selects and orders rows of a catalog: conditions of users, samples and shards.

A condition is one SQL expression of a user over the rows of a catalog, with access to nothing else. A sample is chosen
by a hash of the video id: always the same videos, a smaller sample within a larger one, whatever else the catalog
holds. Which of the selected videos are due is decided in `planning`.
"""

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.config.job import Select
from kvq_batch.domain.column_types import fold_name
from kvq_batch.domain.errors import SpecError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.storage.redact import summarize_error
from kvq_batch.tables.database import connect
from kvq_batch.tables.sandbox import Sandbox, check_expression


def matching_indices(table: pa.Table, condition: str, key: str) -> pa.Array:
    """Return the indices (int64, ascending) of the rows of `table` that meet the SQL `condition`.

    Raises:
        SpecError: with `key`, if it is not a condition over these columns, or accesses anything else.
    """
    try:
        expression = check_expression(condition, key)
        with Sandbox() as sandbox:
            index = _unused_name(table, "row_index")
            indices = pa.array(range(table.num_rows), pa.int64())
            sandbox.connection.register("catalog", table.append_column(index, indices))
            sandbox.lock()
            found = sandbox.query(f'SELECT "{index}" FROM catalog WHERE ({expression})')
    except (duckdb.Error, SpecError) as error:
        raise SpecError(f"{key} = {condition!r} is not a valid condition: {summarize_error(error, 400)}") from error
    return found.column(0).combine_chunks().sort()


def _unused_name(table: pa.Table, name: str) -> str:
    """Return `name` with as many underscores as it needs to be none of the columns of `table`."""
    taken = {fold_name(column) for column in table.column_names}
    while name in taken:
        name += "_"
    return name


def find_column(table: pa.Table, name: str, key: str) -> str:
    """Return the name of the column of `table` that SQL would find for `name`, ignoring case.

    Raises:
        SpecError: with `key` and the existing columns, if there is none.
    """
    for column in table.column_names:
        if fold_name(column) in (fold_name(name), fold_name(name.strip('"'))):
            return str(column)
    raise SpecError(f"{key}: the catalog has no column {name!r}; its columns are {', '.join(table.column_names)}")


def rank_values(values: pa.ChunkedArray, is_descending: bool, key: str) -> pa.Array:
    """Return the rank of each value (int64, from 0); nulls are last, and equal values keep their order.

    Raises:
        SpecError: with `key`, if values of this type cannot be ordered.
    """
    rows = pa.array(range(len(values)), pa.int64())
    table = pa.table({"value": values, "row": rows})
    sort_keys = [("value", "descending" if is_descending else "ascending"), ("row", "ascending")]
    try:
        # Arrow puts nulls last by default.
        order = pc.sort_indices(table, sort_keys=sort_keys)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SpecError(f"{key}: {values.type} values cannot be ordered: {summarize_error(error, 200)}") from error
    return pc.inverse_permutation(order.cast(pa.int64()))


# 64 bits of md5: stable across versions of DuckDB, unlike its hash().
_SHARE = (
    "SELECT row_index FROM videos WHERE md5_number_lower(video_id) / 18446744073709551616 < $share ORDER BY row_index"
)
_SMALLEST_HASHES = """
SELECT row_index FROM (SELECT row_index FROM videos ORDER BY md5_number_lower(video_id), video_id LIMIT $size)
ORDER BY row_index
"""


def shard_condition(shard: Shard) -> str:
    """Return the SQL condition over `video_id` for the videos of `shard`; stable across versions of DuckDB."""
    return "true" if shard == WHOLE else f"md5_number_lower(video_id) % {shard.count} = {shard.number - 1}"


def filter_shard(catalog: pa.Table, shard: Shard) -> pa.Table:
    """Return the rows of `catalog` whose videos belong to `shard`, in their order."""
    if shard == WHOLE:
        return catalog
    with connect() as connection:
        indices = pa.array(range(catalog.num_rows), pa.int64())
        connection.register("videos", pa.table({"video_id": catalog.column("video_id"), "row_index": indices}))
        query = f"SELECT row_index FROM videos WHERE {shard_condition(shard)} ORDER BY row_index"
        chosen: pa.Table = connection.sql(query).to_arrow_table()
    return catalog.take(chosen.column("row_index").combine_chunks())


def select_indices(catalog: pa.Table, select: Select) -> pa.Array | None:
    """Return the indices (int64, ascending) of the videos that `where` and `sample` select; None for all of them.

    Raises:
        SpecError: the condition does not fit this catalog.
    """
    if select.where is None and select.sample is None:
        return None
    if select.where is None:
        indices = pa.array(range(catalog.num_rows), pa.int64())
    else:
        indices = matching_indices(catalog, select.where, "select.where")
    if select.sample is None:
        return indices
    with connect() as connection:
        ids = catalog.column("video_id").take(indices)
        connection.register("videos", pa.table({"video_id": ids, "row_index": indices}))
        if select.sample_size is None:
            found = connection.sql(_SHARE, params={"share": select.sample_share})
        else:
            found = connection.sql(_SMALLEST_HASHES, params={"size": select.sample_size})
        chosen: pa.Table = found.to_arrow_table()
    return chosen.column("row_index").combine_chunks()


def sort_selected(selected: pa.Table, catalog: pa.Table, select: Select) -> pa.Table:
    """Return `selected` (columns row_index and model_index, sorted by both) in the order of `select.order_by`.

    Videos with equal values keep the order of the catalog. Those without a value come last.

    Raises:
        SpecError: the column does not exist or cannot be ordered.
    """
    if select.order is None:
        return selected
    name, is_descending = select.order
    column = catalog.column(find_column(catalog, name, "select.order_by"))
    rank = rank_values(column, is_descending, "select.order_by").take(selected.column("row_index"))
    sort_keys = [("rank", "ascending"), ("model_index", "ascending")]
    return selected.take(pc.sort_indices(selected.append_column("rank", rank), sort_keys=sort_keys))
