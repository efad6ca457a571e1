"""Which scene goes into which split of a training set, and which rows are left out of a crowd.

Decided by hashes of names, so that the same seed gives the same answer wherever it is asked, and a new scene moves as
few others as can be. This module knows no table.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from kvq_batch.domain.errors import SpecError

SPLITS = ("train", "validation", "test")


def parse_shares(text: str) -> dict[str, float]:
    """Shares of train, validation and test out of "80/10/10"; they add up to 1.

    Raises:
        SpecError: not three numbers, one below 0, or nothing to train on.
    """
    try:
        splits = [float(split) for split in text.split("/")]
    except ValueError:
        splits = []
    if len(splits) != len(SPLITS) or min(splits) < 0 or not splits[0] > 0 or sum(splits) == float("inf"):
        raise SpecError(f"split {text!r}: write the shares of {', '.join(SPLITS)}, as 80/10/10")
    return {name: split / sum(splits) for name, split in zip(SPLITS, splits, strict=True)}


def split_scenes(sources: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of each source; every split that has a share gets at least one.

    Raises:
        SpecError: fewer sources than splits with a share.
    """
    names = sorted(set(sources), key=lambda source: _hash(seed, source))
    wanted = [split for split in SPLITS if shares[split] > 0]
    if len(names) < len(wanted):
        raise SpecError(
            f"{len(names)} source(s) cannot be split into {', '.join(wanted)}: a source stands in one split only; "
            "add sources, or leave a split out (100/0/0)"
        )
    counts = {split: max(1, round(shares[split] * len(names))) for split in wanted}
    while sum(counts.values()) != len(names):
        # What rounding left or took is the largest split's: it feels it least.
        largest = max(counts, key=lambda split: counts[split])
        counts[largest] += 1 if sum(counts.values()) < len(names) else -1
    splits = [split for split in reversed(wanted) for _ in range(counts[split])]
    return dict(zip(names, splits, strict=True))


def named_splits(sources: Sequence[str], splits: Sequence[str | None]) -> dict[str, str]:
    """The split of each source, where every row names its own.

    Raises:
        SpecError: a name that is no split, or a source in two splits.
    """
    found: dict[str, str] = {}
    for source, split in zip(sources, splits, strict=True):
        if split not in SPLITS:
            raise SpecError(f"source {source!r} is put into the split {split!r}; expected {', '.join(SPLITS)}")
        if found.setdefault(source, split) != split:
            raise SpecError(f"source {source!r} is put into {found[source]} and {split}; it stands in one split only")
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
