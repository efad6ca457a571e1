"""Who may still commit to a table, as its log knows it: application transactions, the one fence that holds.

    kvq-batch          version: the newest claim of anybody, or the newest commit of a writer of the whole
    kvq-batch 2/4      the newest commit of the writer of that shard
    kvq-batch shards   into how many shards the tables were divided by the newest claim

A writer commits under the id of its shard, so that writers of disjoint shards never meet. A claim carries the id of
the whole as well, so that claims come one after the other and no epoch is given out twice; where the table was divided
otherwise before, it also carries the ids of all those shards. So whoever is excluded by the new writer finds its own
id taken by a newer epoch. This module commits nothing.
"""

from collections.abc import Collection, Mapping
from itertools import chain

from deltalake import DeltaTable, Transaction

from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.tables.schemas import COUNTER_BITS

APPLICATION_ID = "kvq-batch"
"""Of the whole; of old the only one. Constant, so that a log refuses a writer whose commits come out of order."""

SHARDS_ID = f"{APPLICATION_ID} shards"

_COUNT_MASK = (1 << COUNTER_BITS) - 1


def application_id(shard: Shard) -> str:
    """Under which the writer of `shard` commits."""
    return APPLICATION_ID if shard == WHOLE else f"{APPLICATION_ID} {shard}"


def commit_seq_of(application: str, version: int) -> int | None:
    """The `commit_seq` that a transaction of a log tells of; None where it tells of none."""
    is_writer = application == APPLICATION_ID or application.startswith(f"{APPLICATION_ID} ")
    return version if is_writer and application != SHARDS_ID else None


def claim_transactions(delta: DeltaTable, shard: Shard, epoch: int) -> list[Transaction]:
    """What a claim of `epoch` for `shard` carries, by the loaded version of the table."""
    first = epoch << COUNTER_BITS
    count = shard_count(delta)
    excluded = _ids_of(count) if count != shard.count else ()
    ids = dict.fromkeys((APPLICATION_ID, application_id(shard), *excluded))
    transactions = [Transaction(name, first) for name in ids]
    # Tables that were never divided have no such entry, and need none.
    if shard.count != count:
        transactions.append(Transaction(SHARDS_ID, first | shard.count))
    return transactions


def progress_of(delta: DeltaTable, shard: Shard, counts: Collection[int]) -> Mapping[str, int]:
    """{application id: its newest `commit_seq`} in this table of all who could have written of `shard`'s videos.

    `counts` are those of all tables: not every table carries claims, and so tells of its own how it is divided.
    """
    excluded = chain.from_iterable(_ids_of(count) for count in counts if count != shard.count)
    ids = dict.fromkeys((APPLICATION_ID, application_id(shard), *excluded))
    found = {name: delta.transaction_version(name) for name in ids}
    return {name: version for name, version in found.items() if version is not None}


def shard_count(delta: DeltaTable) -> int:
    """Into how many shards the table is divided, 1 where it is not."""
    return (delta.transaction_version(SHARDS_ID) or 1) & _COUNT_MASK


def _ids_of(count: int) -> list[str]:
    return [application_id(Shard(number, count)) for number in range(1, count + 1)]
