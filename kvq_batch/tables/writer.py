"""The writer of a run: turns rows into data files and commits them; stale writers are rejected by the log.

A new writer claims the next epoch with an empty commit to every table that holds results. From then on these tables
reject every older writer of the same videos (`tables/transactions.py`). Writers of disjoint catalog shards commit side
by side. The tables of one batch are committed in a fixed order, `scores` last: views hide maps and clips without a
score of the same `commit_seq`. The lease (`tables/lease.py`) decides who may open a writer.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from deltalake import CommitProperties, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from kvq_batch.domain.column_types import same_type
from kvq_batch.domain.errors import FatalError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.storage.errors import RetryPolicy, explain_error, foreign_errors
from kvq_batch.storage.masking import mask_rows
from kvq_batch.storage.objects import put_files
from kvq_batch.storage.options import display_uri, join, translate_storage_errors
from kvq_batch.tables.data_files import DataFile, align_to_schema, make_data_files
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schema_changes import change_catalog_schema, extend_schema
from kvq_batch.tables.schemas import COUNTER_BITS, DATA_TABLES, RESULT_TABLES, find_schema
from kvq_batch.tables.transactions import application_id, claim_transactions

_FENCED_TABLES = (*RESULT_TABLES, "catalog")
_CLAIM_ATTEMPTS = 20
"""If several drivers start together, all but one of them have to claim again."""

_CLAIM_PAUSE_S = 0.2

_LOG_ATTEMPTS = 10
"""A commit conflicts with another one only if that one adds a column, which is rare."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Results that become visible together: tables made by `make_rows`, or None for no rows.

    All rows of one (video, model) must be in one batch: views join them by `commit_seq`.
    """

    maps: pa.Table = None
    clips: pa.Table = None
    failures: pa.Table = None
    scores: pa.Table = None
    features: pa.Table = None


@dataclass(frozen=True, slots=True)
class CommitStats:
    """Duration of one commit over all its tables, and the bytes of its data files."""

    seconds: float = 0.0
    size_bytes: int = 0


class Writer:
    """Commits the rows of one run, with secrets masked (`storage/masking.py`).

    Every method raises FatalError if another run has taken over the tables, or the store fails. Do not use the writer
    after that; a new writer can continue.
    """

    def __init__(
        self, tables: Tables, run_id: str, retry_policy: RetryPolicy | None = None, shard: Shard = WHOLE
    ) -> None:
        self.tables = tables
        self.run_id = run_id
        self.shard = shard
        self._application = application_id(shard)
        self._retry_policy = retry_policy or RetryPolicy()
        self.last_commit = CommitStats()
        self._counter = 0
        # {table: version up to which its log is known to have no newer writer}
        self._checked_versions: dict[str, int] = {}
        # {table: columns of the data files that were written last}
        self._schemas: dict[str, pa.Schema] = {}
        self.epoch, self.progress_before = self._claim()

    @property
    def commit_seq(self) -> int:
        """The newest `commit_seq` of this writer."""
        return (self.epoch << COUNTER_BITS) | self._counter

    def commit(self, batch: Batch) -> int:
        """Commit maps, clips, features, failures and scores, in this order. Return the `commit_seq`."""
        return self._commit({name: getattr(batch, name) for name in DATA_TABLES})

    def commit_labels(self, labels: pa.Table | None, failures: pa.Table | None) -> int:
        """Commit failures, then labels. Return the `commit_seq`."""
        return self._commit({"failures": failures, "labels": labels})

    def write_opinions(self, rows: pa.Table) -> int:
        """Append opinions. Return the `commit_seq`."""
        return self._commit({"opinions": rows})

    def write_catalog(self, rows: pa.Table) -> int:
        """Append rows of `catalog_changes`, with new columns and wider types. Return the `commit_seq`."""
        return self._commit({"catalog": rows}, catalog_schema=rows.schema)

    def write_run(self, rows: pa.Table, run_id: str | None = None) -> int:
        """Append the state of this run, or of the crashed run `run_id`. Return the `commit_seq`."""
        return self._commit({"runs": rows}, run_id)

    def write_models(self, rows: pa.Table) -> int:
        """Append model cards and calibrations. Return the `commit_seq`."""
        return self._commit({"models": rows})

    def _claim(self) -> tuple[int, Mapping[str, int]]:
        """Claim an epoch in every fenced table. Return it, and the progress of earlier writers."""
        for attempt in range(_CLAIM_ATTEMPTS):
            self.tables.refresh()
            found = self.tables.progress(self.shard)
            epoch = (max(found.values(), default=0) >> COUNTER_BITS) + 1
            with translate_storage_errors(self.tables.uri):
                try:
                    for name in _FENCED_TABLES:
                        self._log(name, [], claim_transactions(self.tables.delta(name), self.shard, epoch))
                except CommitFailedError:
                    time.sleep(random.uniform(0, _CLAIM_PAUSE_S * (attempt + 1)))
                    continue
            return epoch, found
        raise FatalError(
            f"{display_uri(self.tables.uri)}: other runs keep starting on these tables. Start only one run at a time."
        )

    def _commit(
        self,
        rows_by_table: Mapping[str, pa.Table | None],
        run_id: str | None = None,
        catalog_schema: pa.Schema | None = None,
    ) -> int:
        started = time.perf_counter()
        self._counter += 1
        commit_seq = self.commit_seq
        files: dict[str, list[DataFile]] = {}
        for name, rows in rows_by_table.items():
            if rows is None or rows.num_rows == 0:
                continue
            schema, target = find_schema(name), self.tables.arrow_schema(name)
            if catalog_schema is not None:
                target = extend_schema(target, catalog_schema)
            self._schemas[name] = target
            full = align_to_schema(mask_rows(rows), schema, target, run_id or self.run_id, commit_seq)
            files[name] = list(make_data_files(full, schema, commit_seq))
        for name, made in files.items():
            self._store(name, made)
        if catalog_schema is not None and files:
            # Only now, when the rows are known to be writable: a schema that no row fits would block every later run.
            change_catalog_schema(self.tables, catalog_schema)
        for name, made in files.items():
            self._append(name, made, commit_seq)
        size_bytes = sum(file.content.size for made in files.values() for file in made)
        self.last_commit = CommitStats(time.perf_counter() - started, size_bytes)
        return commit_seq

    def _store(self, name: str, files: list[DataFile]) -> None:
        folder = join(self.tables.uri, name)
        contents = {join(folder, file.path): file.content.to_pybytes() for file in files}
        try:
            put_files(contents, self.tables.options, self._retry_policy)
        except foreign_errors() as error:
            raise self._fatal(name, error) from error

    def _append(self, name: str, files: list[DataFile], commit_seq: int) -> None:
        def append(attempt: int) -> None:
            # After a fault, the commit may have landed and only the answer was lost.
            if attempt > 1 and self._has_landed(name, commit_seq):
                return None
            for log_attempt in range(_LOG_ATTEMPTS):
                # The check costs requests, so it is made only if the version changed since the last one.
                if self.tables.delta(name).version() != self._checked_versions.get(name):
                    self._check_not_overtaken(name, commit_seq)
                self._check_types(name)
                try:
                    actions = [file.action for file in files]
                    return self._log(name, actions, [Transaction(self._application, commit_seq)])
                except CommitFailedError:
                    if self._has_landed(name, commit_seq):
                        return None
                    self._check_not_overtaken(name, commit_seq)
                    if log_attempt + 1 == _LOG_ATTEMPTS:
                        raise
            return None

        try:
            self._retry_policy.run(append)
        except foreign_errors() as error:
            try:
                has_landed = self._has_landed(name, commit_seq)
            except foreign_errors():
                has_landed = False
            if not has_landed:
                raise self._fatal(name, error) from error

    def _check_not_overtaken(self, name: str, commit_seq: int) -> None:
        newest = self.tables.delta(name).transaction_version(self._application)
        if newest is not None and newest >= commit_seq:
            raise self._taken_over(name)

    def _check_types(self, name: str) -> None:
        """Raises: FatalError if the log no longer has the columns in which the data files are written."""
        found = self.tables.arrow_schema(name)
        changed = [
            field.name
            for field in self._schemas[name]
            for index in (found.get_field_index(field.name),)
            if index < 0 or not same_type(found.field(index).type, field.type)
        ]
        if changed:
            raise FatalError(
                f"{display_uri(self.tables.uri)}: another process changed column {changed[0]!r} of table {name!r} "
                f"while run {self.run_id} wrote to it. Start the job again."
            )

    def _log(self, name: str, actions: list[AddAction], transactions: list[Transaction]) -> None:
        delta = self.tables.delta(name)
        before = delta.version()
        delta.create_write_transaction(
            list(actions),
            mode="append",
            schema=delta.schema(),
            partition_by=list(find_schema(name).partition_by),
            commit_properties=CommitProperties(app_transactions=transactions),
        )
        # Without this, the next commit would be compared with the version before this one and conflict with itself.
        delta.update_incremental()
        if delta.version() == before + 1:
            self._checked_versions[name] = delta.version()

    def _has_landed(self, name: str, commit_seq: int) -> bool:
        """Return whether the log has this commit. No other writer has our epoch. Raises errors of the store."""
        delta = self.tables.delta(name)
        delta.update_incremental()
        return delta.transaction_version(self._application) == commit_seq

    def _taken_over(self, name: str) -> FatalError:
        return FatalError(
            f"{display_uri(self.tables.uri)}: another run has taken over these tables (found in {name!r}). Run "
            f"{self.run_id} stops; its commits are kept. Let the other run finish, then start this job again."
        )

    def _fatal(self, name: str, error: Exception) -> FatalError:
        uri = self.tables.uri
        return FatalError(
            f"{display_uri(uri)}: table {name!r} cannot be written: {explain_error(error, uri)}. "
            "Earlier commits are kept. Start the job again."
        )
