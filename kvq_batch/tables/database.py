"""DuckDB connections for internal queries: in memory, with a memory limit; and translation of their errors.

SQL of users runs in a `Sandbox`, with stricter settings.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.media.scratch import ScratchDirectory, sweep
from kvq_batch.storage.options import display_uri, translate_storage_errors
from kvq_batch.storage.redact import summarize_error

MEMORY_LIMIT = "3GB"

# DuckDB and Arrow lose the class of the error. This is the text of delta-rs' file system.
_MISSING = re.compile(r"Object at location (\S+\.parquet) not found")

_INTERRUPTED = "Query interrupted"
"""Text of the RuntimeError that DuckDB raises on Ctrl-C."""


@contextmanager
def connect() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty DuckDB database in memory, in UTC, limited to `MEMORY_LIMIT`, and close it at the end."""
    with translate_interrupt(), spill_folder() as folder, duckdb.connect() as connection:
        limit_memory(connection, MEMORY_LIMIT, folder)
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


@contextmanager
def spill_folder() -> Iterator[Path]:
    """Make a private folder below the system's temporary folder, for data over a memory limit; remove it at the end.

    Each database has its own: DuckDB names spill files without the process, and makes the folder readable for queries.

    Raises:
        SpecError: there is no temporary folder that can be written.
    """
    try:
        root = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise SpecError(f"{error.strerror}. Set TMPDIR to a folder that can be written.") from error
    sweep(root)
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(ScratchDirectory(root))
        except FatalError as error:
            raise SpecError(f"{error}. Set TMPDIR to a folder that can be written.") from error
        yield scratch.path


def limit_memory(connection: duckdb.DuckDBPyConnection, limit: str, folder: Path) -> None:
    """Limit the memory of the connection to `limit`, such as "4GB"; it spills to `folder`."""
    # By default DuckDB spills into the current folder.
    connection.execute("SET temp_directory = $folder", {"folder": str(folder)})
    connection.execute("SET memory_limit = $limit", {"limit": limit})


@contextmanager
def translate_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C during a query."""
    try:
        yield
    except RuntimeError as error:
        if str(error) == _INTERRUPTED:
            raise KeyboardInterrupt from error
        raise


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
