"""Read-only SQL sessions over the views: one SELECT or EXPLAIN per query.

A session shows the tables as they were when it was opened. Queries run in a `Sandbox`, which rejects everything else
that DuckDB can do. The session keeps no connection to the store between queries.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import duckdb
import pyarrow as pa

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.errors import foreign_errors
from kvq_batch.storage.options import StorageOptions, translate_storage_errors
from kvq_batch.storage.redact import redact
from kvq_batch.tables.database import missing_data_file
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.sandbox import DEFAULT_LIMITS, Parameters, QueryLimits, Sandbox
from kvq_batch.tables.schemas import TABLES
from kvq_batch.tables.views import RAW_PREFIX, VIEWS, create_views

CURRENT_VIEWS = ("catalog", "scores_latest")
"""Views to materialise where many questions follow: to find the current scores of a million videos takes 4 core-s."""


class Session:
    """A DuckDB session over one version of the tables. Use it in a `with` block, or `close` it."""

    def __init__(
        self,
        tables: Tables,
        limits: QueryLimits = DEFAULT_LIMITS,
        num_threads: int | None = None,
        materialised: Sequence[str] = (),
    ) -> None:
        """Open the session. The rows of the views `materialised`, in their order, are computed once, and kept.

        Raises:
            SpecError: a table is out of reach, or a limit is invalid.
        """
        self.tables = tables
        with ExitStack() as stack:
            self._sandbox = stack.enter_context(Sandbox(limits, num_threads))
            with translate_storage_errors(tables.uri):
                for schema in TABLES:
                    self._sandbox.connection.register(f"{RAW_PREFIX}{schema.name}", tables.dataset(schema.name))
            create_views(self._sandbox.connection)
            for view in materialised:
                # Views that use this one find it by its name when they run.
                self._sandbox.connection.execute(f"CREATE TABLE kept_{view} AS FROM {view}")
                self._sandbox.connection.execute(f"CREATE OR REPLACE VIEW {view} AS FROM kept_{view}")
            self._sandbox.lock()
            stack.pop_all()

    def sql(self, text: str, parameters: Parameters | None = None) -> pa.Table:
        """Run one query and return the result. `parameters` are the values of `$name` or `?` in it.

        Raises:
            SpecError: the text is not one SELECT or EXPLAIN, it exceeds a limit, DuckDB rejects it (with its message),
                or the store fails.
        """
        try:
            return self._sandbox.query(text, parameters)
        except duckdb.Error as error:
            raise SpecError(self._missing_file_message(error) or _readable(error)) from error
        except (pa.ArrowException, *foreign_errors()) as error:
            raise SpecError(f"The tables cannot be read: {_readable(error)}") from error

    def add_view(self, name: str, text: str) -> None:
        """Add a view for the queries of this session; its SQL is checked as that of `sql`. Raises: SpecError."""
        try:
            self._sandbox.add_view(name, text)
        except duckdb.Error as error:
            raise SpecError(_readable(error)) from error

    def register(self, name: str, table: pa.Table) -> None:
        """Add a table for the queries of this session. Raises: SpecError if a view of ours has this name."""
        if name.casefold() in VIEWS or name.casefold().startswith(RAW_PREFIX):
            raise SpecError(f"A table cannot be named {name!r}: it is a view of kvq-batch. Choose another name.")
        try:
            self._sandbox.add_table(name, table)
        except duckdb.Error as error:
            raise SpecError(_readable(error)) from error

    def close(self) -> None:
        self._sandbox.close()

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


def open_session(
    uri: str,
    storage: StorageOptions | None = None,
    limits: QueryLimits = DEFAULT_LIMITS,
    materialised: Sequence[str] = (),
) -> Session:
    """Open a session over the tables below `uri`. Raises: SpecError if they do not exist or are out of reach."""
    return Session(Tables.open(uri, storage), limits, materialised=materialised)


def _readable(error: BaseException) -> str:
    return redact(str(error)).strip()
