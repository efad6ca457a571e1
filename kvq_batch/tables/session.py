"""Questions in SQL, read-only: one SELECT or EXPLAIN at a time, over the views and nothing else.

A session shows the tables as they were when it was opened. What DuckDB could do beside answering is taken away before
the first question: files, networks, extensions, settings, variables of the program; and what is no question is
refused by its kind. This module writes nothing, and keeps no connection to the store open between questions.
"""

import re
import threading
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.errors import FOREIGN_ERRORS
from kvq_batch.storage.options import StorageOptions, translate_storage_errors
from kvq_batch.storage.redact import redact
from kvq_batch.tables.database import bound_memory, missing_data_file
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import TABLES
from kvq_batch.tables.views import RAW_PREFIX, create_views

DEFAULT_MEMORY = "4GB"

# The order counts: the last one ends all setting. Replacement scans would read variables of the calling program.
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

_ONE_QUESTION = "a query is one SELECT or EXPLAIN over the views; this is "


class Session:
    """Answers questions about one version of the tables. Use as a context manager, or `close` it."""

    def __init__(self, tables: Tables, memory_limit: str = DEFAULT_MEMORY, num_threads: int | None = None) -> None:
        """Raises: SpecError where a table is out of reach."""
        self.tables = tables
        # A DuckDB connection holds one pending result; a second thread would take it away.
        self._lock = threading.Lock()
        self._connection = duckdb.connect()
        bound_memory(self._connection, memory_limit)
        if num_threads is not None:
            self._connection.execute(f"SET threads = {int(num_threads)}")
        with translate_storage_errors(tables.uri):
            for schema in TABLES:
                self._connection.register(f"{RAW_PREFIX}{schema.name}", tables.dataset(schema.name))
        create_views(self._connection)
        for statement in _LOCKS:
            self._connection.execute(statement)

    def sql(self, text: str) -> Any:
        """The answer as a pa.Table.

        Raises: SpecError for anything but one SELECT or EXPLAIN, for what DuckDB refuses, with its message, and where
        the store fails while it is read.
        """
        try:
            with self._lock:
                self._check(text)
                return self._connection.sql(text).to_arrow_table()
        except duckdb.Error as error:
            raise SpecError(self._vanished(error) or _readable(error)) from error
        except (pa.ArrowException, *FOREIGN_ERRORS) as error:
            raise SpecError(f"the tables cannot be read: {_readable(error)}") from error

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _vanished(self, error: duckdb.Error) -> str | None:
        """What to say where a part is gone that this session's version of the tables has; None for other errors."""
        location = missing_data_file(error)
        if location is None:
            return None
        newest = Tables.open(self.tables.uri, self.tables.options)
        if any(location.endswith(part.path) for schema in TABLES for part in newest.parts(schema.name)):
            return f"the part {location} is gone, though the log names it; see `kvq-batch tables check`"
        return (
            f"the part {location} is gone: reopen, the tables were compacted since this session was opened, and what "
            "that replaced was deleted"
        )

    def _check(self, text: str) -> None:
        """Returns when the text is one question."""
        statements = self._connection.extract_statements(text)
        if len(statements) != 1:
            raise SpecError(f"{_ONE_QUESTION}{len(statements)} statements")
        kind = statements[0].type
        if kind == duckdb.StatementType.SELECT:
            return
        if kind == duckdb.StatementType.EXPLAIN:
            # EXPLAIN ANALYZE runs what it explains. A parenthesis may hold options or the query itself.
            explained = _after(_EXPLAIN, statements[0].query)
            if any(self._is_select(query) for query in (explained, _after(_ANALYZE, explained))):
                return
        raise SpecError(f"{_ONE_QUESTION}{kind.name}")

    def _is_select(self, query: str) -> bool:
        try:
            statements = self._connection.extract_statements(query)
        except duckdb.Error:
            return False
        return len(statements) == 1 and statements[0].type == duckdb.StatementType.SELECT


def open_session(uri: str, storage: StorageOptions | None = None, memory_limit: str = DEFAULT_MEMORY) -> Session:
    """A session over the tables below `uri`. Raises: SpecError where there are none, or they are out of reach."""
    return Session(Tables.open(uri, storage), memory_limit)


def _after(word: re.Pattern[str], query: str) -> str:
    """What follows `word` at the start of `query`, blanks and comments left out; all of it without the word."""
    query = _without_blank(query)
    found = word.match(query)
    return _without_blank(query[found.end() :]) if found else query


def _without_blank(query: str) -> str:
    found = _BLANK.match(query)
    return query[found.end() :] if found else query


def _readable(error: BaseException) -> str:
    return redact(str(error)).strip()
