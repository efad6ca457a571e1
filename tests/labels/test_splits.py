"""A scene is in one split, always the same; frequent labels are thinned and rare ones kept."""

import pytest

from kvq_batch.domain.errors import SpecError
from kvq_batch.labels.training_set import parse_shares, split_scenes, stratified

SOURCES = [f"s{n}" for n in range(20)]


def test_shares_are_kept_and_every_part_has_a_source() -> None:
    parts = split_scenes(SOURCES * 3, parse_shares("80/10/10"), 0)
    assert set(parts) == set(SOURCES)
    assert [list(parts.values()).count(part) for part in ("train", "validation", "test")] == [16, 2, 2]
    few = split_scenes(SOURCES[:3], parse_shares("98/1/1"), 0)
    assert sorted(few.values()) == ["test", "train", "validation"]
    assert set(split_scenes(SOURCES[:4], parse_shares("2/49/49"), 0).values()) == {"train", "validation", "test"}
    assert list(split_scenes(SOURCES[:18], parse_shares("80/10/10"), 0).values()).count("test") == 2


def test_a_split_depends_on_its_seed_only() -> None:
    shares = parse_shares("50/25/25")
    assert split_scenes(SOURCES, shares, 1) == split_scenes(reversed(SOURCES), shares, 1)
    assert split_scenes(SOURCES, shares, 1) != split_scenes(SOURCES, shares, 2)


def test_a_part_without_a_share_is_empty() -> None:
    assert set(split_scenes(SOURCES, parse_shares("9/1/0"), 0).values()) == {"train", "validation"}
    assert set(split_scenes(["one"], parse_shares("1/0/0"), 0).values()) == {"train"}


def test_too_few_sources_are_refused() -> None:
    with pytest.raises(SpecError, match=r"2 scene\(s\) cannot be split into train, validation, test"):
        split_scenes(SOURCES[:2], parse_shares("80/10/10"), 0)


@pytest.mark.parametrize("text", ["80/20", "a/b/c", "0/50/50", "80/-10/30", "nan/1/1", ""])
def test_shares_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="80/10/10"):
        parse_shares(text)


def test_no_range_keeps_more_than_an_even_share() -> None:
    values = [1.0] * 90 + [50.0] * 6 + [99.0] * 4
    keys = [str(n) for n in range(100)]
    kept = stratified(keys, values, 5, 0)
    assert sum(place < 90 for place in kept) == 20
    assert set(range(90, 100)) <= set(kept)
    assert kept == sorted(kept) == stratified(keys, values, 5, 0)
    assert kept != stratified(keys, values, 5, 1)


def test_equal_values_are_one_range() -> None:
    assert len(stratified(list("abcd"), [3.0] * 4, 2, 0)) == 2
    assert stratified([], [], 3, 0) == []
