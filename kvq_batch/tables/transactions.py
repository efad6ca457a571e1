"""Fencing by application transactions in the log of each table: they decide which writer may still commit.

    kvq-batch          newest claim of any writer, or newest commit of a writer without shards
    kvq-batch 2/4      newest commit of the writer of that catalog shard
    kvq-batch shards   number of catalog shards, as of the newest claim

A writer commits under the application id of its shard, so writers of disjoint shards do not conflict. A claim also
carries the id without a shard, so claims are serialised and no epoch is used twice. If the table had another number of
shards before, the claim also carries the ids of all those shards. So every writer that the new one excludes finds a
newer epoch under its own id, and delta-rs rejects its commit.
"""

from collections.abc import Collection, Mapping
from itertools import chain

from deltalake import DeltaTable, Transaction

from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.tables.schemas import COUNTER_BITS

APPLICATION_ID = "kvq-batch"
"""Application id of a writer without shards. Constant, so that a log rejects a writer that commits out of order."""

SHARDS_ID = f"{APPLICATION_ID} shards"

_COUNT_MASK = (1 << COUNTER_BITS) - 1


def application_id(shard: Shard) -> str:
    """Return the id under which the writer of `shard` commits."""
    return APPLICATION_ID if shard == WHOLE else f"{APPLICATION_ID} {shard}"


def commit_seq_of(application: str, version: int) -> int | None:
    """Return the `commit_seq` in a transaction of a log, or None if it is not a transaction of a writer."""
    is_writer = application == APPLICATION_ID or application.startswith(f"{APPLICATION_ID} ")
    return version if is_writer and application != SHARDS_ID else None


def claim_transactions(delta: DeltaTable, shard: Shard, epoch: int) -> list[Transaction]:
    """Return the transactions with which a writer of `shard` claims `epoch`, for the loaded version of the table."""
    first = epoch << COUNTER_BITS
    count = shard_count(delta)
    excluded = _ids_of(count) if count != shard.count else ()
    ids = dict.fromkeys((APPLICATION_ID, application_id(shard), *excluded))
    transactions = [Transaction(name, first) for name in ids]
    # Tables that never had shards lack this entry and do not need it.
    if shard.count != count:
        transactions.append(Transaction(SHARDS_ID, first | shard.count))
    return transactions


def progress_of(delta: DeltaTable, shard: Shard, counts: Collection[int]) -> Mapping[str, int]:
    """Return {application id: newest `commit_seq`} in this table of all writers that may write videos of `shard`.

    `counts` are the shard counts of all tables: a table without claims does not know its own.
    """
    excluded = chain.from_iterable(_ids_of(count) for count in counts if count != shard.count)
    ids = dict.fromkeys((APPLICATION_ID, application_id(shard), *excluded))
    found = {name: delta.transaction_version(name) for name in ids}
    return {name: version for name, version in found.items() if version is not None}


def shard_count(delta: DeltaTable) -> int:
    """Return the number of catalog shards of the newest claim in this table; 1 without shards."""
    return (delta.transaction_version(SHARDS_ID) or 1) & _COUNT_MASK


def _ids_of(count: int) -> list[str]:
    return [application_id(Shard(number, count)) for number in range(1, count + 1)]
