"""A catalog shard: one of n disjoint subsets of a catalog, each processed by its own driver.

The whole catalog is the shard 1/1. A hash of the video ids, in `catalog`, decides which shard a video belongs to.
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
        """Return the shard that `text` names. Raises: ValueError if it names none."""
        found = _TEXT.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is not a shard; write 2/4 for the second of four")
        number, count = int(found[1]), int(found[2])
        if not 1 <= number <= count <= MAX_SHARDS:
            raise ValueError(f"{text!r} is not a shard: from 1/N to N/N, with at most {MAX_SHARDS} of them")
        return cls(number, count)

    def excludes(self, other: "Shard") -> bool:
        """Return whether the two shards must not run at the same time; symmetric.

        Shards of different counts exclude each other even if they are disjoint, so that the log of a table needs one
        count only to find the predecessor of a new writer.
        """
        return self.count != other.count or self.number == other.number

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Shard(1, 1)
"""The whole catalog, and everything else in the tables."""
