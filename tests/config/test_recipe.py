"""Recipes and segments: round trips through text, and rejected values."""

from dataclasses import replace

import pytest

from kvq_batch.config.recipe import STEPS, Cells, Patch, Recipe, Segment, Step
from kvq_batch.domain.errors import SpecError

REGION = Recipe((), (Patch(Cells(1, 2, 3, 4), (Step("blur", 2.5),)),), seed=7)
MIX = Recipe((Step("h264", 40),), (Patch(Cells(0, 0, 2, 2), (Step("h264", 20),)),), seed=1)


@pytest.mark.parametrize("recipe", [Recipe(), REGION, MIX, Recipe((Step("downscale", 2), Step("av1", 50)), seed=9)])
def test_recipe_round_trips(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_equal_recipes_have_equal_text() -> None:
    assert Recipe((Step("h264", 35),)).to_json() == Recipe((Step("h264", 35.0),)).to_json()
    assert Recipe((Step("h264", 35),)).to_json() == '{"patches":[],"seed":0,"steps":[["h264",35.0]]}'


def test_recipe_has_name_chains_and_rate() -> None:
    assert str(REGION) == "none~blur-2.5"
    assert str(Recipe((Step("blur", 2), Step("h264", 35)))) == "blur-2+h264-35"
    assert MIX.chains == ((Step("h264", 40),), (Step("h264", 20),))
    assert (REGION.rate, MIX.rate, Recipe().rate) == ("source", "h264-40", "source")


@pytest.mark.parametrize("name", STEPS)
def test_amount_outside_range_is_rejected(name: str) -> None:
    kind = STEPS[name]
    assert Step(name, kind.low).amount == kind.low
    for amount in (kind.low - 1e-3, kind.high + 1e-3, float("nan")):
        with pytest.raises(SpecError, match=name):
            Step(name, amount)


def test_invalid_recipe_is_rejected() -> None:
    with pytest.raises(SpecError, match="no degradation 'sepia'"):
        Step("sepia", 1)
    with pytest.raises(SpecError, match="rectangle"):
        Cells(-1, 0, 1, 1)
    for text in ("{}", "[]", "x", '{"steps":[["blur"]],"patches":[],"seed":0}'):
        with pytest.raises(SpecError, match="not a recipe"):
            Recipe.from_json(text)


def test_segment_is_centred_in_its_interval() -> None:
    assert [Segment(k, 3, num_frames=10).first_frame(62) for k in range(3)] == [5, 25, 45]
    assert Segment(0, 3, num_frames=10).first_frame(29) is None
    assert Segment(2, 3, num_frames=10).first_frame(30) == 20
    assert Segment(1, 2).segment_id != Segment(0, 2).segment_id


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"number": 2, "of": 2}, "is not within 0 to 1"), ({"num_frames": 7}, "even"), ({"height_px": 450}, "cells")],
)
def test_invalid_segment_is_rejected(fields: dict[str, int], word: str) -> None:
    with pytest.raises(SpecError, match=word):
        Segment(**fields)  # type: ignore[arg-type]


def test_segment_of_a_camera_round_trips() -> None:
    plain, at_rest = Segment(num_frames=10), Segment(num_frames=10, camera="rest")
    assert "camera" not in plain.segment_id, "ids of earlier labels stay the same"
    assert '"camera":"rest"' in at_rest.segment_id
    assert [Segment.from_json(segment.segment_id) for segment in (plain, at_rest)] == [plain, at_rest]


def test_pre_degraded_segment_round_trips() -> None:
    plain = Segment(num_frames=10)
    pre_degraded = replace(plain, pre_degraded=(Step("downscale", 2.0), Step("h264", 24.0)))
    assert '"pre_degraded":[["downscale",2.0],["h264",24.0]]' in pre_degraded.segment_id
    assert "pre_degraded" not in plain.segment_id
    assert [Segment.from_json(segment.segment_id) for segment in (plain, pre_degraded)] == [plain, pre_degraded]
    with pytest.raises(SpecError, match="no degradation"):
        Segment.from_json(plain.segment_id[:-1] + ',"pre_degraded":[["rust",1]]}')
