"""Which scene goes into which part of a training set, and which rows are left out of a crowd.

Decided by hashes of names, so that the same seed gives the same answer wherever it is asked, and a new scene moves as
few others as can be. This module knows no table.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from kvq_batch.domain.errors import SpecError

PARTS = ("train", "validation", "test")


def parse_shares(text: str) -> dict[str, float]:
    """Shares of train, validation and test out of "80/10/10"; they add up to 1.

    Raises:
        SpecError: not three numbers, one below 0, or nothing to train on.
    """
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError:
        parts = []
    if len(parts) != len(PARTS) or min(parts) < 0 or not parts[0] > 0 or sum(parts) == float("inf"):
        raise SpecError(f"split {text!r}: write the shares of {', '.join(PARTS)}, as 80/10/10")
    return {name: part / sum(parts) for name, part in zip(PARTS, parts, strict=True)}


def split_sources(sources: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """The part of each source; every part that has a share gets at least one.

    Raises:
        SpecError: fewer sources than parts with a share.
    """
    names = sorted(set(sources), key=lambda source: _hash(seed, source))
    wanted = [part for part in PARTS if shares[part] > 0]
    if len(names) < len(wanted):
        raise SpecError(
            f"{len(names)} source(s) cannot be split into {', '.join(wanted)}: a source stands in one part only; "
            "add sources, or leave a part out (100/0/0)"
        )
    counts = {part: max(1, round(shares[part] * len(names))) for part in wanted}
    while sum(counts.values()) != len(names):
        # What rounding left or took is the largest part's: it feels it least.
        largest = max(counts, key=lambda part: counts[part])
        counts[largest] += 1 if sum(counts.values()) < len(names) else -1
    parts = [part for part in reversed(wanted) for _ in range(counts[part])]
    return dict(zip(names, parts, strict=True))


def named_splits(sources: Sequence[str], parts: Sequence[str | None]) -> dict[str, str]:
    """The part of each source, where every row names its own.

    Raises:
        SpecError: a name that is no part, or a source in two parts.
    """
    found: dict[str, str] = {}
    for source, part in zip(sources, parts, strict=True):
        if part not in PARTS:
            raise SpecError(f"source {source!r} is put into the part {part!r}; expected {', '.join(PARTS)}")
        if found.setdefault(source, part) != part:
            raise SpecError(f"source {source!r} is put into {found[source]} and {part}; it stands in one part only")
    return found


def stratified(keys: Sequence[str], values: Sequence[float], num_bins: int, seed: int) -> list[int]:
    """Places that are kept, ascending: of `num_bins` equally wide ranges of value none holds more than an even share.

    `keys` name the rows; which of a crowded range stay is decided by hashes of them.
    """
    low, high = min(values, default=0.0), max(values, default=0.0)
    width = (high - low) / num_bins or 1.0
    bins: dict[int, list[int]] = {}
    for place, value in enumerate(values):
        bins.setdefault(min(num_bins - 1, int((value - low) / width)), []).append(place)
    most = -(-len(values) // num_bins)
    return sorted(
        place for places in bins.values() for place in sorted(places, key=lambda p: _hash(seed, keys[p]))[:most]
    )


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
