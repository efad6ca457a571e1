"""Splits of a training set by scene, and thinning of rows by label.

Decisions use hashes of names, so the same seed always gives the same result, and a new scene moves few others.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from kvq_batch.domain.errors import SpecError

SPLITS = ("train", "validation", "test")


def parse_shares(text: str) -> dict[str, float]:
    """Parse shares of train, validation and test such as "80/10/10"; the result adds up to 1.

    Raises:
        SpecError: not three numbers, a number below 0, or no share for train.
    """
    try:
        splits = [float(split) for split in text.split("/")]
    except ValueError:
        splits = []
    if len(splits) != len(SPLITS) or min(splits) < 0 or not splits[0] > 0 or sum(splits) == float("inf"):
        raise SpecError(f"Invalid split {text!r}: expected the shares of {', '.join(SPLITS)}, such as 80/10/10")
    return {name: split / sum(splits) for name, split in zip(SPLITS, splits, strict=True)}


def split_scenes(scenes: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Return the split of each scene; every split with a share gets at least one scene.

    Raises:
        SpecError: there are fewer scenes than splits with a share.
    """
    names = sorted(set(scenes), key=lambda scene: _hash(seed, scene))
    wanted = [split for split in SPLITS if shares[split] > 0]
    if len(names) < len(wanted):
        raise SpecError(
            f"{len(names)} scene(s) cannot be split into {', '.join(wanted)}: a scene is in one split only; "
            "add scenes, or leave a split out (100/0/0)"
        )
    counts = {split: max(1, round(shares[split] * len(names))) for split in wanted}
    while sum(counts.values()) != len(names):
        # Correct the rounding in the largest split, where it changes the share least.
        largest = max(counts, key=lambda split: counts[split])
        counts[largest] += 1 if sum(counts.values()) < len(names) else -1
    splits = [split for split in reversed(wanted) for _ in range(counts[split])]
    return dict(zip(names, splits, strict=True))


def named_splits(scenes: Sequence[str], splits: Sequence[str | None]) -> dict[str, str]:
    """Return the split of each scene, given the scene and the split of each row.

    Raises:
        SpecError: an unknown split, or a scene in two splits.
    """
    found: dict[str, str] = {}
    for scene, split in zip(scenes, splits, strict=True):
        if split not in SPLITS:
            raise SpecError(f"scene {scene!r} has the unknown split {split!r}; expected {', '.join(SPLITS)}")
        if found.setdefault(scene, split) != split:
            raise SpecError(f"scene {scene!r} is in {found[scene]} and in {split}; a scene must be in one split only")
    return found


def stratified(keys: Sequence[str], values: Sequence[float], num_bins: int, seed: int) -> list[int]:
    """Return the indices of the rows to keep, ascending. No range of values keeps more than an even share.

    There are `num_bins` ranges of equal width. `keys` are the names of the rows; their hashes decide which rows of a
    crowded range are kept.
    """
    low, high = min(values, default=0.0), max(values, default=0.0)
    width = (high - low) / num_bins or 1.0
    bins: dict[int, list[int]] = {}
    for index, value in enumerate(values):
        bins.setdefault(min(num_bins - 1, int((value - low) / width)), []).append(index)
    most = -(-len(values) // num_bins)
    return sorted(
        index for indices in bins.values() for index in sorted(indices, key=lambda i: _hash(seed, keys[i]))[:most]
    )


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
