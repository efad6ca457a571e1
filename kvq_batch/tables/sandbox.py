"""DuckDB database that runs SQL of users: one read per query, within a time limit and a memory limit.

DuckDB's own parser judges a query, and the statement that it returns is the one that runs:

- It is one SELECT. A SELECT may contain statements that write (`WITH w AS (COPY ...)`), so the kinds of all nodes of
  its syntax tree are checked, and the names of all functions.
- EXPLAIN is built here, over a statement that was accepted as a SELECT.
- PIVOT without IN is several statements for DuckDB: it also creates a type and removes it. No syntax tree is available
  for it, so it must parse as a subquery, without words and functions that can write.

Each query runs in a transaction that is rolled back. Files, network, extensions and settings are disabled. The folder
for data over the memory limit, which DuckDB leaves readable, belongs to one database and to this user alone.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import duckdb
import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.redact import summarize_error
from kvq_batch.tables.database import limit_memory, spill_folder

Parameters = Mapping[str, Any] | Sequence[Any]
"""Values of parameters: of `$name` by name, or of `?` in order."""


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """Limits of one query: memory, for its work and again for its result, such as "4GB"; and time (None: no limit)."""

    memory: str = "4GB"
    timeout_s: float | None = None


DEFAULT_LIMITS = QueryLimits()

# The last statement locks all settings, so the order matters. Replacement scans would read variables of the program.
_LOCKS = (
    "SET TimeZone = 'UTC'",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)

_READING_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "CTE_NODE", "RECURSIVE_CTE_NODE"})
_WRITING_WORDS = frozenset({"copy", "insert", "update", "delete", "merge"})

# Table functions that read nothing but their arguments and the catalog of this database. All others are disabled.
_TABLE_FUNCTIONS = frozenset({
    "range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree", "summary", "histogram",
    "histogram_values", "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_schemas", "duckdb_tables",
    "duckdb_types", "duckdb_views", "pragma_table_info", "pragma_version", "icu_calendar_names", "pg_timezone_names",
})  # fmt: skip

# They change the state of the database, or read more than the views.
_SCALAR_FUNCTIONS_WITH_STATE = frozenset({
    "currval", "nextval", "setval", "setseed", "write_log", "getvariable", "current_setting", "sleep_ms",
})  # fmt: skip

_EXPLAIN_OPTIONS = frozenset({"(", ")", ",", "analyze", "format", "json", "text", "true", "false"})

_BATCH_ROWS = 65_536
_INTERRUPT_EVERY_S = 0.1

_ONE_QUERY = "A query must be one SELECT or EXPLAIN over the views; found "


class Sandbox:
    """An in-memory database: fill `connection`, then `lock` it, then `query` it from any thread, then `close` it."""

    def __init__(self, limits: QueryLimits = DEFAULT_LIMITS, num_threads: int | None = None) -> None:
        """Raises: SpecError if the memory limit is invalid, or there is no folder to spill to."""
        self._limits = limits
        # A DuckDB connection holds one pending result; a query of another thread would discard it.
        self._one_query = threading.Lock()
        with ExitStack() as stack:
            self._folder = folder = stack.enter_context(spill_folder())
            self.connection = stack.enter_context(duckdb.connect())
            try:
                limit_memory(self.connection, limits.memory, folder)
                (self._result_bytes,) = self._fetch_one("SELECT parse_formatted_bytes($1)", limits.memory)
            except duckdb.Error as error:
                raise SpecError(f"Invalid memory limit {limits.memory!r}: expected a size such as 4GB.") from error
            if num_threads is not None:
                self.connection.execute(f"SET threads = {int(num_threads)}")
            self._stack = stack.pop_all()

    def lock(self) -> None:
        """Disable everything but queries. Nothing can be added or set afterwards."""
        for statement in _LOCKS:
            self.connection.execute(statement)

    def query(self, text: str, parameters: Parameters | None = None) -> pa.Table:
        """Run one query and return its result. `parameters` are the values of `$name` or `?` in it.

        Raises:
            SpecError: the text is not one read, or it exceeds a limit.
            duckdb.Error: DuckDB rejects it.
        """
        seconds = self._limits.timeout_s
        # In a thread of its own: DuckDB looks at signals rarely, at `interrupt` after every block of rows.
        with self._one_query, ThreadPoolExecutor(1, thread_name_prefix="query") as thread:
            running = thread.submit(self._query, text, parameters)
            try:
                wait([running], seconds)
                if running.done():
                    return running.result()
            finally:
                # More than once: DuckDB forgets an interrupt that comes before the query runs, while it is parsed.
                while not running.done():
                    self.connection.interrupt()
                    wait([running], _INTERRUPT_EVERY_S)
        raise SpecError(
            f"The query was stopped at its time limit of {seconds:g} s. Read less (WHERE, LIMIT, fewer joins), or "
            "raise the limit (--timeout, timeout_s)."
        )

    def add_view(self, name: str, text: str) -> None:
        """Add a view, also after `lock`. Raises as `query`; the text must be one SELECT."""
        with self._one_query:
            if self._judge(text).type != duckdb.StatementType.SELECT:
                raise SpecError(f"{_ONE_QUERY}a PIVOT or EXPLAIN, which a view cannot hold.")
            self.connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS {text}')

    def add_table(self, name: str, table: pa.Table) -> None:
        """Add an Arrow table under a name, also after `lock`; a table of this name that was added is replaced."""
        with self._one_query:
            self.connection.register(name, table)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, statement: duckdb.Statement, parameters: Parameters | None) -> pa.Table:
        reader = self.connection.sql(statement, params=parameters).to_arrow_reader(_BATCH_ROWS)
        batches, num_bytes = [], 0
        with reader:
            for batch in reader:
                batches.append(batch)
                # DuckDB's limit does not count the result.
                num_bytes += batch.nbytes
                if num_bytes > self._result_bytes:
                    raise SpecError(self._needs_more_memory("The result"))
        return pa.Table.from_batches(batches, reader.schema)

    def _needs_more_memory(self, what: str) -> str:
        return (
            f"{what} needs more memory than the limit of {self._limits.memory}. Select fewer rows or columns "
            "(WHERE, LIMIT), or aggregate, or raise the limit (--memory-limit, memory_limit)."
        )

    def _query(self, text: str, parameters: Parameters | None) -> pa.Table:
        statement = self._judge(text)
        self.connection.begin()
        try:
            return self._run(statement, parameters)
        except (duckdb.OutOfMemoryException, MemoryError, pa.ArrowMemoryError) as error:
            raise SpecError(self._needs_more_memory("The query")) from error
        finally:
            self.connection.rollback()

    def _judge(self, text: str) -> duckdb.Statement:
        """Return the statement to run. Raises: SpecError if the text is not one read."""
        # DuckDB reads a file whose name is used as a table. Only this folder is readable; its name is random.
        if self._folder.name in text:
            raise SpecError(f"{_ONE_QUERY}the temporary folder.")
        statements = self.connection.extract_statements(text)
        if len(statements) != 1:
            raise SpecError(f"{_ONE_QUERY}{len(statements)} statements.")
        (statement,) = statements
        match statement.type:
            case duckdb.StatementType.SELECT:
                self._check_tree(text)
            case duckdb.StatementType.MULTI:
                self._check_pivot(text)
            case duckdb.StatementType.EXPLAIN:
                statement = self._build_explain(text)
            case kind:
                raise SpecError(f"{_ONE_QUERY}{kind.name}.")
        return statement

    def _check_tree(self, text: str) -> None:
        """Raises: SpecError if the syntax tree of a SELECT holds a statement that writes, or a disabled function."""
        (serialized,) = self._fetch_one("SELECT json_serialize_sql($1::VARCHAR)", text)

        def check(node: dict[str, Any]) -> dict[str, Any]:
            kind = node.get("type")
            if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _READING_NODES:
                raise SpecError(f"{_ONE_QUERY}{kind.removesuffix('_NODE').removesuffix('_QUERY')}.")
            _check_function(node.get("function_name"))
            return node

        try:
            # Every object of the tree is passed to the hook.
            tree = json.loads(serialized, object_hook=check)
        except RecursionError as error:
            raise SpecError("The query is nested too deeply.") from error
        if tree["error"] is not False:
            raise SpecError(f"{_ONE_QUERY}a statement without a syntax tree.")

    def _check_pivot(self, text: str) -> None:
        """Raises: SpecError if a text of several statements is not a query with PIVOT that only reads."""
        tokens = _tokenize(text)
        while tokens and tokens[-1].text == ";":
            tokens.pop()
        for token, following in zip(tokens, [*tokens[1:], None], strict=True):
            if token.text.casefold() in _WRITING_WORDS:
                raise SpecError(f"{_ONE_QUERY}{token.text.upper()}. Quote names that are words of SQL.")
            if following is not None and following.text == "(":
                _check_function(token.name)
        subquery = f"SELECT * FROM ({text.encode()[: tokens[-1].end].decode()}\n)"
        if not self._is_one(subquery, duckdb.StatementType.MULTI):
            raise SpecError(f"{_ONE_QUERY}a statement around a PIVOT.")

    def _build_explain(self, text: str) -> duckdb.Statement:
        """Return EXPLAIN with the options of `text`, over its query. Raises: SpecError if that is not a SELECT."""
        _, *tokens = _tokenize(text)
        num_options = 0
        if tokens[0].text.casefold() == "analyze":
            num_options = 1
        elif tokens[0].text == "(" and not self._is_one(_from(text, tokens[0]), duckdb.StatementType.SELECT):
            num_options = 1 + next(index for index, token in enumerate(tokens) if token.text == ")")
        options = [token.text.casefold() for token in tokens[:num_options]]
        if unknown := set(options) - _EXPLAIN_OPTIONS:
            raise SpecError(f"EXPLAIN has no option {min(unknown)!r} here; its options are ANALYZE and FORMAT json.")
        explained = _from(text, tokens[num_options])
        if not self._is_one(explained, duckdb.StatementType.SELECT):
            raise SpecError(f"{_ONE_QUERY}EXPLAIN of another statement.")
        self._check_tree(explained)
        (statement,) = self.connection.extract_statements(f"EXPLAIN {' '.join(options)} {explained}")
        return statement

    def _is_one(self, text: str, kind: duckdb.StatementType) -> bool:
        try:
            return [statement.type for statement in self.connection.extract_statements(text)] == [kind]
        except duckdb.Error:
            return False

    def _fetch_one(self, query: str, value: str) -> tuple[Any, ...]:
        (row,) = self.connection.execute(query, [value]).fetchall()
        return tuple(row)


def check_expression(text: str, name: str) -> str:
    """Return `text`, to be put between parentheses in a query, if it is one expression of SQL.

    It ends with a line break, which ends a comment. Raises: SpecError, with the name of the option that holds it.
    """
    try:
        duckdb.SQLExpression(text)
    except duckdb.Error as error:
        raise SpecError(f"{name}: {text!r} is not one SQL expression: {summarize_error(error, 300)}") from error
    return f"{text}\n"


def evaluate(row: pa.Table, condition: str, name: str) -> object:
    """Return the value of one expression of SQL over the columns of a table with one row, and nothing else.

    Raises: SpecError, with the name of the option that holds it, if it is not one expression or DuckDB rejects it.
    """
    expression = check_expression(condition, name)
    with Sandbox() as sandbox:
        sandbox.connection.register("given", row)
        sandbox.lock()
        try:
            (value,) = sandbox.query(f"SELECT ({expression}) AS value FROM given")["value"].to_pylist()
        except (SpecError, duckdb.Error) as error:
            reason = summarize_error(error, 300)
            raise SpecError(f"{name}: {condition!r}: {reason} Columns: {', '.join(row.column_names)}.") from error
    return value


@dataclass(frozen=True, slots=True)
class _Token:
    """A token of SQL: its text, where it starts and ends in the UTF-8 bytes, and the name that it is as a name."""

    text: str
    start: int
    end: int

    @property
    def name(self) -> str:
        return self.text[1:-1].replace('""', '"') if self.text.startswith('"') else self.text


def _tokenize(text: str) -> list[_Token]:
    """Return the tokens of DuckDB's lexer, without comments."""
    data = text.encode()
    found = duckdb.tokenize(text)
    starts = [start for start, _ in found]
    tokens = []
    for (start, kind), end in zip(found, [*starts[1:], len(data)], strict=True):
        if kind != duckdb.token_type.comment:
            token = data[start:end].decode().rstrip()
            tokens.append(_Token(token, start, start + len(token.encode())))
    return tokens


def _from(text: str, token: _Token) -> str:
    return text.encode()[token.start :].decode()


def _check_function(name: object) -> None:
    if isinstance(name, str) and name.casefold() in _disabled_functions():
        raise SpecError(f"Function {name} is disabled: a query reads the views only.")


@cache
def _disabled_functions() -> frozenset[str]:
    query = "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type LIKE 'table%'"
    with duckdb.connect() as connection:
        names = {name for (name,) in connection.execute(query).fetchall()}
    return frozenset(names - _TABLE_FUNCTIONS | _SCALAR_FUNCTIONS_WITH_STATE)
