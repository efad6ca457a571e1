"""Metrics over hand-made renditions: order, groups of degradations, ladders and regions."""

import numpy as np
import pytest

from kvq_batch.config.recipe import Cells, Patch, Recipe, Step
from kvq_batch.evaluation.renditions import ScoredRendition, rendition_rows

GRID = (2, 4)
LOST = {"blur-1": 80.0, "blur-3": 40.0, "noise-8": 90.0, "noise-24": 70.0, "h264-30": 85.0, "h264-40": 50.0}


def rendition(
    scene: str, recipe: Recipe, label: float, score: float, texture: np.ndarray | None = None
) -> ScoredRendition:
    flat = np.full(GRID, label)
    return ScoredRendition(scene, f"{scene}/0", recipe, label, flat, score, flat if texture is None else texture)


def step(text: str) -> Step:
    name, _, amount = text.rpartition("-")
    return Step(name, float(amount))


def whole(scene: str) -> list[ScoredRendition]:
    """Scores of a model that orders blur and codecs correctly, and takes noise for detail."""
    found = [rendition(scene, Recipe(), 100.0, 1.0)]
    for text, label in LOST.items():
        score = 2.0 - label / 100 if text.startswith("noise") else label / 100
        found.append(rendition(scene, Recipe((step(text),)), label, score))
    return found


def metrics(renditions: list[ScoredRendition]) -> dict[tuple[str, str], float | None]:
    return {(row["metric"], row["of"]): row["value"] for row in rendition_rows(renditions, n_resamples=20)}


def test_groups_of_degradations_are_evaluated_separately() -> None:
    found = metrics(whole("one") + whole("two"))
    assert found["srcc", "blur"] == found["srcc_within", "blocks"] == pytest.approx(1)
    assert found["srcc", "noise"] == found["srcc_within", "noise"] == pytest.approx(-1)
    overall = found["srcc", "(all)"]
    assert overall is not None
    assert -1 < overall < 1
    assert found["falling_steps", "(all)"] == found["falling_steps", "h264"] == 1
    assert ("srcc", "blur") not in metrics([v for v in whole("one") if "blur" not in str(v.recipe)])


def test_region_is_found_against_the_clean_clip() -> None:
    blurred = Recipe((), (Patch(Cells(0, 0, 2, 2), (step("blur-3"),)),))
    cells = np.array([[40.0, 40, 100, 100]] * 2)
    # The texture of the scene hides the region until that of the clean clip is subtracted.
    scene = np.array([[0.9, 0.9, 0.1, 0.1]] * 2)
    clean = rendition("one", Recipe(), 100.0, 1.0, scene)
    region = ScoredRendition("one", "one/0", blurred, 70.0, cells, 0.7, scene - 0.3 * (cells < 50))
    found = metrics([*whole("one")[1:], clean, region])
    assert found["auc", "(all), alone"] == found["auc", "blur, alone"] == 0
    assert found["auc", "blur, against the clean rendition"] == 1
    assert found["auc", "noise, alone"] is None


def test_coverage_is_the_share_of_labels_within_deviations() -> None:
    assert ("coverage", "1 std") not in metrics(whole("one"))
    deviations = np.random.default_rng(1).standard_normal(400)
    known = [
        ScoredRendition(
            f"scene-{i % 4}", f"{i}", Recipe(), 90.0, np.full(GRID, 90.0), 0.9, np.full(GRID, 0.9), float(d)
        )
        for i, d in enumerate(deviations)
    ]
    found = metrics(known)
    assert found["coverage", "1 std"] == pytest.approx(np.mean(np.abs(deviations) <= 1))
    assert found["coverage", "2 std"] == pytest.approx(0.954, abs=0.03)
