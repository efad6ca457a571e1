"""DuckDB for our own statements: in memory, bounded, reading only what is registered; and its errors as ours.

Statements of users run under stricter rules, in `session`. This module holds no statement.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import display_uri, translate_storage_errors
from kvq_batch.storage.redact import summarize_error

MEMORY_LIMIT = "3GB"

TEMPORARY = "kvq-batch-duckdb"
"""Folder below the system's temporary one for what does not fit; DuckDB makes it, and removes what it put there."""

# Through DuckDB and Arrow the class of an error is lost; this is what delta-rs' file system says.
_MISSING = re.compile(r"Object at location (\S+\.parquet) not found")


def connect() -> duckdb.DuckDBPyConnection:
    """An empty DuckDB in memory, in UTC, within `MEMORY_LIMIT`; what does not fit goes to its temporary folder."""
    connection = duckdb.connect()
    bound_memory(connection, MEMORY_LIMIT)
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def bound_memory(connection: duckdb.DuckDBPyConnection, limit: str) -> None:
    """Keeps the connection within `limit` ("4GB") of memory; the rest goes to the temporary folder."""
    connection.execute(f"SET memory_limit = '{limit}'")
    # By default DuckDB spills into the folder that the command was typed in.
    connection.execute("SET temp_directory = $folder", {"folder": str(Path(tempfile.gettempdir()) / TEMPORARY)})


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turns what DuckDB, Arrow or the store raise while tables below `uri` are read into a SpecError."""
    with translate_storage_errors(uri):
        try:
            yield
        except (duckdb.Error, pa.ArrowException, FileNotFoundError) as error:
            missing = missing_data_file(error)
            if missing is not None:
                raise SpecError(
                    f"{display_uri(uri)}: the part {missing} is gone: the tables were compacted while they were read, "
                    "or somebody deleted it. Start again; if it stays so, see `kvq-batch tables check`"
                ) from error
            raise SpecError(f"{display_uri(uri)}: the tables cannot be read: {summarize_error(error, 300)}") from error


def missing_data_file(error: BaseException) -> str | None:
    """Where the file should be that Arrow did not find, as its store names it; None for any other error."""
    found = _MISSING.search(str(error))
    return None if found is None else found[1]
