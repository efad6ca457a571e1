"""Evaluate a model on renditions with known recipes: agreement, falling codec steps, and distorted regions.

    srcc, plcc ...       scores of whole frames against their labels (`metrics.agreement`), over all and within a
                         scene: of all renditions, and of each group of degradations
    falling_steps        share of neighbouring steps of a codec ladder, on one segment, at which the score falls
    coverage             share of whole frames whose label is within 1 or 2 standard deviations (the output std) of the
                         calibrated score: 0.68 and 0.95 of normal errors; for labels of the kind that the model learned
    auc                  share of pairs of cells, one distorted and one not, that the texture map orders correctly: of
                         each clip alone, and of its difference from the clean rendition of the same frames

Cells are those of the model's grid, each labelled by the rendition at its centre. Labels are measured against a
reference, they are not opinions of people. The metrics show how well a no-reference model predicts them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvq_batch.config.recipe import STEPS, Recipe
from kvq_batch.metrics.agreement import agree
from kvq_batch.metrics.bootstrap import MetricValue, bootstrap_mean
from kvq_batch.metrics.ranks import Pairs, Real
from kvq_batch.tables.table_files import write_csv_and_parquet

COLUMNS = ("metric", "of", "clips", "scenes", "value", "low", "high", "remarks")
ALL = "(all)"

# Groups by kind of artefact: lost detail, added noise, and codec artefacts.
GROUPS = {
    "blur": ("blur", "motion_blur", "downscale"),
    "noise": ("noise",),
    "blocks": tuple(name for name, kind in STEPS.items() if kind.is_codec),
}


@dataclass(frozen=True, slots=True)
class ScoredRendition:
    """A rendition with its score and maps.

    `frames_id` identifies the frames that renditions share before degradation. `cells` [row, column] are cell labels,
    `score` is the raw score (higher is better), `texture` [row, column] is the texture map, averaged over time slots.
    `deviation` is the difference of the label from the calibrated score, in units of the output std; None without one.
    """

    scene_id: str
    frames_id: str
    recipe: Recipe
    label: float
    cells: Real
    score: float
    texture: Real
    deviation: float | None = None


def rendition_rows(
    renditions: Sequence[ScoredRendition], n_resamples: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Return rows of COLUMNS, one per metric. The 95% intervals come from a bootstrap over whole scenes."""
    rows = []
    whole = [rendition for rendition in renditions if not rendition.recipe.patches]
    rows += _agreement_rows(whole, ALL, ("srcc", "krcc", "plcc", "rmse", "srcc_within"), n_resamples, seed)
    for group, names in GROUPS.items():
        # Includes the clean rendition, the first step of every ladder.
        own = [rendition for rendition in whole if all(step.name in names for step in rendition.recipe.steps)]
        if any(rendition.recipe.steps for rendition in own):
            rows += _agreement_rows(own, group, ("srcc", "srcc_within"), n_resamples, seed)
    rows += _coverage_rows(whole, n_resamples, seed)
    steps = list(_steps(whole))
    for codec in (ALL, *sorted({codec for codec, _, _ in steps})):
        falling = [(scene, falls) for name, scene, falls in steps if codec in (ALL, name)]
        rows.append(_mean_row("falling_steps", codec, falling, n_resamples, seed))
    for group, names in {ALL: tuple(STEPS), **GROUPS}.items():
        for texture in ("alone", "against the clean rendition"):
            aucs = list(_region_aucs(renditions, names, against_clean=texture != "alone"))
            rows.append(_mean_row("auc", f"{group}, {texture}", aucs, n_resamples, seed))
    return rows


def _agreement_rows(
    renditions: Sequence[ScoredRendition], of: str, metrics: Sequence[str], n_resamples: int, seed: int
) -> list[dict[str, Any]]:
    scenes = [rendition.scene_id for rendition in renditions]
    scores, labels = np.array([v.score for v in renditions]), np.array([v.label for v in renditions])
    agreement = agree(scores, labels, scenes, n_resamples, seed)
    return [_row(name, of, len(renditions), len(set(scenes)), agreement.metrics[name]) for name in metrics]


def _coverage_rows(whole: Sequence[ScoredRendition], n_resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return the coverage of one and of two standard deviations; nothing for a model without them."""
    known = [(v.scene_id, abs(v.deviation)) for v in whole if v.deviation is not None]
    return [
        _mean_row(
            "coverage", f"{count} std", [(scene, float(size <= count)) for scene, size in known], n_resamples, seed
        )
        for count in ((1, 2) if known else ())
    ]


def write_renditions(renditions: Sequence[ScoredRendition], rows: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write metrics.csv and .parquet (`rows`), renditions.csv and .parquet (one row each). Raises: SpecError."""
    kinds = {"clips": pa.int64(), "scenes": pa.int64()} | dict.fromkeys(("value", "low", "high"), pa.float64())
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    scored = [
        {"scene_id": v.scene_id, "frames_id": v.frames_id, "recipe": str(v.recipe), "label": v.label, "score": v.score}
        for v in renditions
    ]
    tables = {"metrics": pa.Table.from_pylist(list(rows), schema), "renditions": pa.Table.from_pylist(scored)}
    return [path for name, table in tables.items() for path in write_csv_and_parquet(table, out / name)]


def _steps(whole: Sequence[ScoredRendition]) -> Iterator[tuple[str, str, float]]:
    """Yield (codec, scene, 1.0 if the score falls, else 0.0) for each two neighbouring steps of a ladder."""
    ladders: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for rendition in whole:
        steps = rendition.recipe.steps
        if len(steps) == 1 and STEPS[steps[0].name].is_codec:
            ladder = ladders.setdefault((steps[0].name, rendition.frames_id), [])
            ladder.append((steps[0].amount, rendition.score, rendition.scene_id))
    for (codec, _), ladder in ladders.items():
        ladder.sort()
        for (_, better, scene), (_, worse, _) in pairwise(ladder):
            yield codec, scene, float(worse < better)


def _region_aucs(
    renditions: Sequence[ScoredRendition], names: Sequence[str], against_clean: bool
) -> Iterator[tuple[str, float]]:
    """Yield (scene, AUC) of each clean clip with one region that was distorted by a step of `names`."""
    clean = {v.frames_id: v.texture for v in renditions if not v.recipe.steps and not v.recipe.patches}
    for rendition in renditions:
        recipe = rendition.recipe
        if recipe.steps or len(recipe.patches) != 1 or len(recipe.patches[0].steps) != 1:
            continue
        if recipe.patches[0].steps[0].name not in names or (against_clean and rendition.frames_id not in clean):
            continue
        texture = rendition.texture - clean[rendition.frames_id] if against_clean else rendition.texture
        yield rendition.scene_id, _region_auc(texture, rendition.cells)


def _region_auc(texture: Real, cells: Real) -> float:
    """Return the share of pairs of cells with different labels that the texture orders alike; NaN without pairs."""
    rows, columns = (
        (2 * np.arange(count) + 1) * extent // (2 * count)
        for count, extent in zip(texture.shape, cells.shape, strict=True)
    )
    labels = cells[rows[:, None], columns[None, :]].ravel()
    if np.ptp(labels) == 0:
        return float("nan")
    pairs = Pairs(texture.ravel(), labels, np.zeros(labels.size, np.int64))
    return float(pairs.concordance(np.ones((1, 1)))[0])


def _mean_row(name: str, of: str, found: Sequence[tuple[str, float]], n_resamples: int, seed: int) -> dict[str, Any]:
    """Return the mean over clips or steps; its interval is that of the mean over scenes."""
    by_scene: dict[str, list[float]] = {}
    for scene, value in found:
        if np.isfinite(value):
            by_scene.setdefault(scene, []).append(value)
    if not by_scene:
        return _row(name, of, 0, 0, MetricValue(None, reason="no such rendition"))
    mean = bootstrap_mean([float(np.mean(values)) for values in by_scene.values()], n_resamples, seed, "scenes")
    values = [value for own in by_scene.values() for value in own]
    metric = MetricValue(float(np.mean(values)), mean.low, mean.high, mean.reason)
    return _row(name, of, len(values), len(by_scene), metric)


def _row(name: str, of: str, num_clips: int, num_scenes: int, metric: MetricValue) -> dict[str, Any]:
    facts: Mapping[str, Any] = {"metric": name, "of": of, "clips": num_clips, "scenes": num_scenes}
    return {**facts, "value": metric.value, "low": metric.low, "high": metric.high, "remarks": metric.reason}
