"""The one writer of a run: rows become parts, parts become commits, and a stale writer is refused by the log.

Opening a writer claims the next epoch by an empty commit to every table that carries results, so that whatever an
older writer of the same videos still has in hand is refused from then on
(`tables/transactions.py`). Writers of disjoint shards commit side by side.
One batch commits in a fixed order, `scores` last: maps and clips without a score of the same `commit_seq` are
invisible to the views. This module neither plans nor compacts; who may open a writer is said by `tables/lease.py`.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltalake import CommitProperties, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from kvq_batch.domain.errors import FatalError
from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.storage.errors import FOREIGN_ERRORS, explain_error
from kvq_batch.storage.objects import put_files
from kvq_batch.storage.options import display_uri, join, translate_storage_errors
from kvq_batch.storage.retry import RetryPolicy
from kvq_batch.tables.data_files import DataFile, align_to_schema, make_data_files
from kvq_batch.tables.delta import Tables
from kvq_batch.tables.schemas import COUNTER_BITS, DATA_TABLES, RESULT_TABLES, find_schema
from kvq_batch.tables.transactions import application_id, claim_transactions

_FENCED_TABLES = (*RESULT_TABLES, "catalog")
_CLAIM_ATTEMPTS = 20
"""Of drivers that start together, each but one begins anew."""

_CLAIM_PAUSE_S = 0.2

_LOG_ATTEMPTS = 10
"""A log entry meets another one that it may not follow unseen only where somebody adds a column: once in a while."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Results that become visible together, as pa.Tables of the rows that `make_rows` makes, or None for no rows.

    All rows of a (video, model) belong into one batch: views join them by `commit_seq`.
    """

    maps: Any = None
    clips: Any = None
    failures: Any = None
    scores: Any = None


@dataclass(frozen=True, slots=True)
class Commit:
    """What one commit took, with all of its tables: seconds, and bytes of parts."""

    seconds: float = 0.0
    size_bytes: int = 0


class Writer:
    """Commits for one run. Raises: FatalError from every method where another run has taken over or the store fails.

    After a FatalError nothing more should be committed with this writer; a new one goes on.
    """

    def __init__(self, tables: Tables, run_id: str, patience: RetryPolicy | None = None, shard: Shard = WHOLE) -> None:
        self.tables = tables
        self.run_id = run_id
        self.shard = shard
        self._application = application_id(shard)
        self._patience = patience or RetryPolicy()
        self.last_commit = Commit()
        self._counter = 0
        # Table -> version up to which its log is known to hold no newer writer.
        self._checked_versions: dict[str, int] = {}
        self.epoch, self.found = self._claim()

    @property
    def commit_seq(self) -> int:
        """The newest `commit_seq` that this writer gave out."""
        return (self.epoch << COUNTER_BITS) | self._counter

    def commit(self, batch: Batch) -> int:
        """Commits the batch: maps, clips, failures, scores. Returns its `commit_seq`."""
        return self._commit({name: getattr(batch, name) for name in DATA_TABLES})

    def commit_labels(self, labels: Any, failures: Any) -> int:
        """Commits failures, then labels (`make_rows`), either may be None. Returns the `commit_seq`."""
        return self._commit({"failures": failures, "labels": labels})

    def write_opinions(self, rows: Any) -> int:
        """Appends opinions (`make_rows("opinions", [...])`). Returns the `commit_seq`."""
        return self._commit({"opinions": rows})

    def write_catalog(self, rows: Any) -> int:
        """Appends what `catalog_changes` found, after adding the columns that are new. Returns the `commit_seq`."""
        self.tables.add_columns("catalog", rows.schema)
        return self._commit({"catalog": rows})

    def write_run(self, rows: Any, run_id: str | None = None) -> int:
        """Appends the state of this run, or of a dead one (`make_rows("runs", [...])`). Returns the `commit_seq`."""
        return self._commit({"runs": rows}, run_id)

    def write_models(self, rows: Any) -> int:
        """Appends cards and calibrations (`make_rows("models", [...])`). Returns the `commit_seq`."""
        return self._commit({"models": rows})

    def _claim(self) -> tuple[int, Mapping[str, int]]:
        """The epoch of this writer, committed to every fenced table, and how far those before it had come."""
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
        raise FatalError(f"{display_uri(self.tables.uri)}: other runs keep starting on these tables; start only one")

    def _commit(self, rows_by_table: Mapping[str, Any], run_id: str | None = None) -> int:
        started = time.perf_counter()
        self._counter += 1
        commit_seq = self.commit_seq
        parts: dict[str, list[DataFile]] = {}
        for name, rows in rows_by_table.items():
            if rows is None or rows.num_rows == 0:
                continue
            schema = find_schema(name)
            full = align_to_schema(rows, schema, self.tables.arrow_schema(name), run_id or self.run_id, commit_seq)
            parts[name] = list(make_data_files(full, schema, commit_seq))
        for name, made in parts.items():
            self._store(name, made)
        for name, made in parts.items():
            self._append(name, made, commit_seq)
        size_bytes = sum(part.content.size for made in parts.values() for part in made)
        self.last_commit = Commit(time.perf_counter() - started, size_bytes)
        return commit_seq

    def _store(self, name: str, parts: list[DataFile]) -> None:
        folder = join(self.tables.uri, name)
        contents = {join(folder, part.path): part.content.to_pybytes() for part in parts}
        try:
            put_files(contents, self.tables.options, self._patience)
        except FOREIGN_ERRORS as error:
            raise self._fatal(name, error) from error

    def _append(self, name: str, parts: list[DataFile], commit_seq: int) -> None:
        def append(attempt: int) -> None:
            # After a fault, the answer may be what was lost, and not the commit.
            if attempt > 1 and self._has_landed(name, commit_seq):
                return None
            # Reading it costs requests, so only where somebody else has committed since we looked.
            for log_attempt in range(_LOG_ATTEMPTS):
                if self.tables.delta(name).version() != self._checked_versions.get(name):
                    self._check_not_overtaken(name, commit_seq)
                try:
                    actions = [part.action for part in parts]
                    return self._log(name, actions, [Transaction(self._application, commit_seq)])
                except CommitFailedError:
                    if self._has_landed(name, commit_seq):
                        return None
                    self._check_not_overtaken(name, commit_seq)
                    if log_attempt + 1 == _LOG_ATTEMPTS:
                        raise
            return None

        try:
            self._patience.run(append)
        except FOREIGN_ERRORS as error:
            try:
                has_landed = self._has_landed(name, commit_seq)
            except FOREIGN_ERRORS:
                has_landed = False
            if not has_landed:
                raise self._fatal(name, error) from error

    def _check_not_overtaken(self, name: str, commit_seq: int) -> None:
        newest = self.tables.delta(name).transaction_version(self._application)
        if newest is not None and newest >= commit_seq:
            raise self._taken_over(name)

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
        # Without it the next commit would be compared with the version before this one, and refuse itself.
        delta.update_incremental()
        if delta.version() == before + 1:
            self._checked_versions[name] = delta.version()

    def _has_landed(self, name: str, commit_seq: int) -> bool:
        """Whether the log holds this commit after all; nobody else has our epoch. Raises what the store raises."""
        delta = self.tables.delta(name)
        delta.update_incremental()
        return delta.transaction_version(self._application) == commit_seq

    def _taken_over(self, name: str) -> FatalError:
        return FatalError(
            f"{display_uri(self.tables.uri)}: another run has taken over these tables (seen in {name!r}); run "
            f"{self.run_id} ends, what it committed stays. Let the other run finish, then start this job again"
        )

    def _fatal(self, name: str, error: Exception) -> FatalError:
        return FatalError(
            f"{display_uri(self.tables.uri)}: table {name!r} cannot be written: {explain_error(error)}. "
            f"What was committed stays; start the job again"
        )
