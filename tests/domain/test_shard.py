"""Catalog shards: their text, and which of them may run at the same time."""

from itertools import product

import pytest

from kvq_batch.domain.shard import MAX_SHARDS, WHOLE, Shard


def test_shard_round_trips() -> None:
    assert (Shard.parse("2/4"), str(Shard.parse(" 2/4 "))) == (Shard(2, 4), "2/4")
    assert Shard.parse("1/1") == WHOLE


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "1/0", "-1/4", "1/2/3", "half", f"1/{MAX_SHARDS + 1}"])
def test_invalid_shard_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is not a shard"):
        Shard.parse(text)


def test_shards_of_one_count_do_not_exclude() -> None:
    shards = [Shard(number, count) for count in (1, 2, 4) for number in range(1, count + 1)]
    together = {(str(a), str(b)) for a, b in product(shards, shards) if not a.excludes(b)}
    fours = {(f"{a}/4", f"{b}/4") for a, b in product(range(1, 5), repeat=2) if a != b}
    assert together == {("1/2", "2/2"), ("2/2", "1/2")} | fours
    assert all(a.excludes(b) == b.excludes(a) for a, b in product(shards, shards))
