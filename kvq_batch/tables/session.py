"""Read-only SQL sessions over the views: one SELECT or EXPLAIN per query.

A session shows the tables as they were when it was opened. Before the first query, everything else that DuckDB can do
is disabled: files, network, extensions, settings, variables of the program. Other statements are rejected by their
type. The session keeps no connection to the store between queries.
"""

import re
import threading
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.errors import FOREIGN_ERRORS
from kvq_batch.storage.options import StorageOptions, translate_storage_errors
from kvq_batch.storage.redact import redact
from kvq_batch.tables.database import limit_memory, missing_data_file
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import TABLES
from kvq_batch.tables.views import RAW_PREFIX, create_views

DEFAULT_MEMORY = "4GB"

# The last statement locks all settings, so the order matters. Replacement scans would read variables of the program.
_LOCKS = (
    "SET TimeZone = 'UTC'",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)

_BLANK = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)+", re.DOTALL)
_EXPLAIN = re.compile(r"explain\b", re.IGNORECASE)
_ANALYZE = re.compile(r"analyze\b|\([^()]*\)", re.IGNORECASE)

_ONE_QUERY = "A query must be one SELECT or EXPLAIN over the views; found "


class Session:
    """A DuckDB session over one version of the tables. Use it in a `with` block, or `close` it."""

    def __init__(self, tables: Tables, memory_limit: str = DEFAULT_MEMORY, num_threads: int | None = None) -> None:
        """Raises: SpecError if a table is out of reach."""
        self.tables = tables
        # A DuckDB connection holds one pending result; a query of another thread would discard it.
        self._lock = threading.Lock()
        self._connection = duckdb.connect()
        limit_memory(self._connection, memory_limit)
        if num_threads is not None:
            self._connection.execute(f"SET threads = {int(num_threads)}")
        with translate_storage_errors(tables.uri):
            for schema in TABLES:
                self._connection.register(f"{RAW_PREFIX}{schema.name}", tables.dataset(schema.name))
        create_views(self._connection)
        for statement in _LOCKS:
            self._connection.execute(statement)

    def sql(self, text: str) -> pa.Table:
        """Run one query and return the result.

        Raises:
            SpecError: the text is not one SELECT or EXPLAIN, DuckDB rejects it (with its message), or the store fails.
        """
        try:
            with self._lock:
                self._check(text)
                return self._connection.sql(text).to_arrow_table()
        except duckdb.Error as error:
            raise SpecError(self._missing_file_message(error) or _readable(error)) from error
        except (pa.ArrowException, *FOREIGN_ERRORS) as error:
            raise SpecError(f"The tables cannot be read: {_readable(error)}") from error

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _missing_file_message(self, error: duckdb.Error) -> str | None:
        """Return the message for a missing data file of this session's version, or None for other errors."""
        location = missing_data_file(error)
        if location is None:
            return None
        newest = Tables.open(self.tables.uri, self.tables.options)
        if any(location.endswith(file.path) for schema in TABLES for file in newest.data_files(schema.name)):
            return f"Data file {location} is missing, but the log lists it. Run `kvq-batch tables check`."
        return (
            f"Data file {location} is missing: the tables were compacted after this session was opened, and the "
            "replaced files were deleted. Open the session again."
        )

    def _check(self, text: str) -> None:
        """Raises: SpecError if the text is not one SELECT or EXPLAIN of one."""
        statements = self._connection.extract_statements(text)
        if len(statements) != 1:
            raise SpecError(f"{_ONE_QUERY}{len(statements)} statements.")
        kind = statements[0].type
        if kind == duckdb.StatementType.SELECT:
            return
        if kind == duckdb.StatementType.EXPLAIN:
            # EXPLAIN ANALYZE runs the statement. A parenthesis may hold options or the query itself.
            explained = _after(_EXPLAIN, statements[0].query)
            if any(self._is_select(query) for query in (explained, _after(_ANALYZE, explained))):
                return
        raise SpecError(f"{_ONE_QUERY}{kind.name}.")

    def _is_select(self, query: str) -> bool:
        try:
            statements = self._connection.extract_statements(query)
        except duckdb.Error:
            return False
        return len(statements) == 1 and statements[0].type == duckdb.StatementType.SELECT


def open_session(uri: str, storage: StorageOptions | None = None, memory_limit: str = DEFAULT_MEMORY) -> Session:
    """Open a session over the tables below `uri`. Raises: SpecError if they do not exist or are out of reach."""
    return Session(Tables.open(uri, storage), memory_limit)


def _after(word: re.Pattern[str], query: str) -> str:
    """Return the query without `word` at its start, and without blanks and comments around it."""
    query = _without_blank(query)
    found = word.match(query)
    return _without_blank(query[found.end() :]) if found else query


def _without_blank(query: str) -> str:
    found = _BLANK.match(query)
    return query[found.end() :] if found else query


def _readable(error: BaseException) -> str:
    return redact(str(error)).strip()
