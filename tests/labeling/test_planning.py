"""A label plan lists every rendition that is missing, and it is the same each time."""

from pathlib import Path
from typing import Any

import pytest

from kvq_batch.config.labels import LabelJob, Renditions
from kvq_batch.config.load import checked
from kvq_batch.config.recipe import Recipe, Segment
from kvq_batch.domain.errors import SpecError
from kvq_batch.labeling.planning import draw_pre_degraded, draw_recipes, label_blocks, plan_labels, segment_seed

SEGMENT = Segment(seed=5)


def label_job(tables: Path | str, *references: dict[str, Any], **more: Any) -> LabelJob:
    values = {
        "name": "labels",
        "tables": str(tables),
        "references": list(references),
        "segments": {"num_frames": 4, "height_px": 64, "width_px": 96},
        "renditions": {"ladders": {"blur": [1, 3], "h264": [30, 45]}, "combinations": [], "regions": 1, "mixes": 1},
        "make": {"workers": {"num_cpus": 0.5}},
    }
    return checked(LabelJob, values | more, "labels.toml")


def test_recipes_follow_from_seed() -> None:
    renditions = Renditions(per_segment=6, regions=3, mixes=3)
    first = draw_recipes(renditions, SEGMENT)
    assert first == draw_recipes(renditions, SEGMENT)
    assert first != draw_recipes(renditions, Segment(seed=6))
    assert len(first) == len(set(first)) <= 1 + 6 + 3 + 3
    assert first[0] == Recipe((), (), 5)
    assert {recipe.seed for recipe in first} == {5}


def test_patches_differ_from_their_surroundings() -> None:
    renditions = Renditions(clean=False, per_segment=5, regions=40, mixes=40)
    recipes = draw_recipes(renditions, SEGMENT)
    whole = {recipe.steps for recipe in recipes if not recipe.patches}
    patched = [recipe for recipe in recipes if recipe.patches]
    assert len(patched) == 80
    for recipe in patched:
        assert {recipe.steps, *(patch.steps for patch in recipe.patches)} <= whole | {()}
        for patch in recipe.patches:
            assert patch.steps != recipe.steps
            assert patch.cells.top + patch.cells.rows <= 14
            assert patch.cells.left + patch.cells.columns <= 14
    assert {recipe.kind for recipe in patched} == {"region", "mix"}


def test_all_steps_are_used_without_per_segment() -> None:
    renditions = Renditions(regions=0, mixes=0)
    assert [recipe.steps for recipe in draw_recipes(renditions, SEGMENT)] == [(), *renditions.chains]


def test_a_picture_at_rest_has_no_frozen_frames() -> None:
    renditions = Renditions(
        regions=0, mixes=0, ladders={"freeze": (0.3,), "blur": (2,)}, combinations=(("freeze-0.5", "h264-30"),)
    )
    names = {
        camera: [str(recipe) for recipe in draw_recipes(renditions, Segment(camera=camera))]
        for camera in ("slow", "rest")
    }
    assert names == {"slow": ["none", "freeze-0.3", "blur-2", "freeze-0.5+h264-30"], "rest": ["none", "blur-2"]}


def test_cameras_make_segments_of_stills_only(tmp_path: Path) -> None:
    for name in ("a.png", "b.mp4"):
        (tmp_path / name).write_bytes(b"never opened")
    job = label_job(
        tmp_path / "tables",
        {"source": str(tmp_path)},
        {"source": "synthetic:leaves"},
        segments={"num_frames": 4, "height_px": 64, "width_px": 96, "cameras": ["moving", "rest"]},
    )
    rows = plan_labels(job).renditions.to_pylist()
    cameras: dict[str, set[str]] = {}
    for row in rows:
        cameras.setdefault(row["video_id"].split("/")[-1], set()).add(Segment.from_json(row["segment"]).camera)
    assert cameras == {"a.png": {"moving", "rest"}, "b.mp4": {"moving"}, "leaves-0000": {"moving"}}


def test_segments_have_different_seeds() -> None:
    seeds = {segment_seed(job, name, framing) for job in (0, 1) for name in "ab" for framing in ("native", "cover")}
    assert len(seeds) == 8


def test_plan_is_reproducible(tmp_path: Path) -> None:
    job = label_job(tmp_path / "tables", {"source": "synthetic:all", "count": 2}, segments={"per_reference": 2})
    first, second = plan_labels(job), plan_labels(job)
    assert first.renditions.equals(second.renditions)
    assert (first.num_references, first.num_segments) == (22, 44)
    ids = first.renditions["label_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 44 * 7
    assert not (tmp_path / "tables").exists()


def test_blocks_are_of_one_segment(tmp_path: Path) -> None:
    job = label_job(tmp_path / "tables", {"source": "synthetic:leaves", "count": 3})
    renditions = plan_labels(job).renditions
    assert [block.num_rows for block in label_blocks(renditions, 5)] == [5, 2] * 3
    assert all(len(set(block["video_id"].to_pylist())) == 1 for block in label_blocks(renditions, 5))
    assert [block.num_rows for block in label_blocks(renditions, 1)] == [1] * 21
    assert label_blocks(renditions.slice(0, 0), 5) == []


def test_invalid_sources_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown scene 'opera'"):
        plan_labels(label_job(tmp_path / "t", {"source": "synthetic:opera"}))
    with pytest.raises(SpecError, match=r"leaves-0000.*id_prefix"):
        plan_labels(label_job(tmp_path / "t", {"source": "synthetic:leaves"}, {"source": "synthetic:leaves"}))
    with pytest.raises(SpecError, match="no such file or folder"):
        plan_labels(label_job(tmp_path / "t", {"source": str(tmp_path / "gone")}))
    assert (
        plan_labels(
            label_job(tmp_path / "t", {"source": "synthetic:leaves"}, {"source": "synthetic:leaves", "id_prefix": "b-"})
        ).num_references
        == 2
    )


def test_segments_draw_all_pre_degradations() -> None:
    pre_degraded = ((), ("downscale-2",), ("blur-1.2", "h264-24"))
    drawn = [draw_pre_degraded(pre_degraded, 5, number) for number in range(6)]
    assert drawn[:3] == drawn[3:]
    assert {tuple(map(str, chain)) for chain in drawn} == set(pre_degraded)
    assert [draw_pre_degraded(pre_degraded, 5, number) for number in range(6)] == drawn
    assert draw_pre_degraded((), 5, 0) == ()
