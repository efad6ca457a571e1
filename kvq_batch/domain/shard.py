"""A shard: one of so many disjoint parts of a catalog, each worked off by a driver of its own.

The whole catalog is the only shard of one. Which videos a shard has is decided by a hash of their ids, in `io`; who may
work beside whom is decided here.
"""

import re
from dataclasses import dataclass
from typing import Self

MAX_SHARDS = 64
"""Beyond that the object store's rate of log entries bounds the whole, and not the drivers (docs/scaling.md)."""

_TEXT = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Shard:
    """Number `number` of `count`, from 1; written 2/4."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that `text` names. Raises: ValueError for anything that is none."""
        found = _TEXT.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is no shard; write 2/4 for the second of four")
        number, count = int(found[1]), int(found[2])
        if not 1 <= number <= count <= MAX_SHARDS:
            raise ValueError(f"{text!r} is no shard: from 1/N to N/N, with at most {MAX_SHARDS} of them")
        return cls(number, count)

    def excludes(self, other: "Shard") -> bool:
        """Whether the two may not be worked off at the same time; the same for both.

        Shards of different counts may well be disjoint, but exclude each other all the same: so that the log of a
        table has to remember one count only to know whom a new writer follows.
        """
        return self.count != other.count or self.number == other.number

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Shard(1, 1)
"""All of the catalog, and whatever else stands in the tables."""
