"""DuckDB connections for internal queries: in memory, with a memory limit; and translation of their errors.

SQL of users runs in a `Session`, with stricter settings.
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

SPILL_FOLDER = "kvq-batch-duckdb"
"""Folder below the system's temporary folder for data over the memory limit. DuckDB creates and cleans it up."""

# DuckDB and Arrow lose the class of the error. This is the text of delta-rs' file system.
_MISSING = re.compile(r"Object at location (\S+\.parquet) not found")


def connect() -> duckdb.DuckDBPyConnection:
    """Open an empty DuckDB database in memory, in UTC, limited to `MEMORY_LIMIT`; it spills to `SPILL_FOLDER`."""
    connection = duckdb.connect()
    limit_memory(connection, MEMORY_LIMIT)
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def limit_memory(connection: duckdb.DuckDBPyConnection, limit: str) -> None:
    """Limit the memory of the connection to `limit`, such as "4GB"; it spills to `SPILL_FOLDER`."""
    connection.execute(f"SET memory_limit = '{limit}'")
    # By default DuckDB spills into the current folder.
    connection.execute("SET temp_directory = $folder", {"folder": str(Path(tempfile.gettempdir()) / SPILL_FOLDER)})


@contextmanager
def translate_read_errors(uri: str) -> Iterator[None]:
    """Raise SpecError for errors of DuckDB, Arrow and the store while tables below `uri` are read."""
    with translate_storage_errors(uri):
        try:
            yield
        except (duckdb.Error, pa.ArrowException, FileNotFoundError) as error:
            missing = missing_data_file(error)
            if missing is not None:
                raise SpecError(
                    f"{display_uri(uri)}: data file {missing} is missing: the tables were compacted while they were "
                    "read, or the file was deleted. Try again. If the error remains, run `kvq-batch tables check`."
                ) from error
            raise SpecError(f"{display_uri(uri)}: the tables cannot be read: {summarize_error(error, 300)}") from error


def missing_data_file(error: BaseException) -> str | None:
    """Return the location of the data file that was not found, or None for other errors."""
    found = _MISSING.search(str(error))
    return None if found is None else found[1]
