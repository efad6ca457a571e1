"""The leases that may stand beside tables: one for the whole, one for each shard that was ever worked off alone.

This module says what they are called and which are there; who holds one is `io/lease.py`'s.
"""

import re
from collections.abc import Iterable

from kvq_batch.domain.shard import WHOLE, Shard
from kvq_batch.io.conditional import names_beginning
from kvq_batch.io.storage import StorageOptions, is_local, local_path

FILE = "lease.json"
_STEM = "lease"
_SHARD_FILE = re.compile(r"lease-(\d+)-of-(\d+)\.json")


def file_of(shard: Shard) -> str:
    """Name of the lease of `shard`, beside the tables."""
    return FILE if shard == WHOLE else f"{_STEM}-{shard.number}-of-{shard.count}.json"


def known_shards(uri: str, options: StorageOptions) -> list[Shard]:
    """Shards that have, or had, a lease here."""
    if is_local(uri):
        names: Iterable[str] = (path.name for path in local_path(uri).glob(f"{_STEM}*"))
    else:
        names = names_beginning(uri, _STEM, options)
    shards = []
    for name in names:
        found = _SHARD_FILE.fullmatch(name)
        if found is not None or name == FILE:
            shards.append(Shard(int(found[1]), int(found[2])) if found else WHOLE)
    return shards


def excluded(uri: str, options: StorageOptions, shard: Shard) -> list[Shard]:
    """The others that have, or had, a lease here, and may not be at work beside `shard`."""
    return [other for other in known_shards(uri, options) if other != shard and shard.excludes(other)]
