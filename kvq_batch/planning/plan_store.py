"""The plan of each run, kept beside the tables as one Parquet file before any work starts.

It answers "why was this video scored that night" long after. This module plans nothing and reads no plan back: the
next run makes its own.
"""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from kvq_batch.domain.errors import FatalError
from kvq_batch.storage.errors import FOREIGN_ERRORS, HINTS, classify_error, told
from kvq_batch.storage.options import display_uri, display_uris, filesystem, is_local, join
from kvq_batch.storage.retry import RetryPolicy
from kvq_batch.tables.delta import Tables

FOLDER = "plans"


def store_plan(tables: Tables, run_id: str, tasks: pa.Table) -> str:
    """Writes `pairs` and returns the address of the file. Raises: FatalError where the store refuses it."""
    uri = join(join(tables.uri, FOLDER), f"{run_id}.parquet")
    shown = tasks.set_column(tasks.column_names.index("uri"), "uri", display_uris(tasks["uri"]))
    content = io.BytesIO()
    pq.write_table(shown, content, compression="zstd")
    try:
        file_system, path = filesystem(uri, tables.options)
        if is_local(uri):
            file_system.makedirs(path.rpartition("/")[0], exist_ok=True)
        RetryPolicy().repeat(lambda _: file_system.pipe_file(path, content.getvalue()))
    except FOREIGN_ERRORS as error:
        raise FatalError(
            f"{display_uri(uri)}: the plan cannot be stored: {HINTS[classify_error(error)]} ({told(error)})"
        ) from error
    return uri
