"""What a model makes of versions whose making is known: order, falling codec steps, and regions that were distorted.

    srcc, plcc ...       scores of whole frames against their labels (`metrics.agreement`), and within a source: of
                         all, and of each group of degradations by itself
    falling_steps        share of neighbouring steps of a codec's ladder, on one segment, at which the score falls
    auc                  share of pairs of cells, one distorted and one not, that the texture map orders rightly: of
                         each clip alone, and of its change against the clean version of the same frames

Cells are those of the model's grid, each labelled by the version that stands in its middle. Labels are measures
against a source, not opinions of people; a figure here says how well a model that sees no source foretells them.
This module scores nothing and opens no table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvq_batch.config.recipe import STEPS, Recipe
from kvq_batch.evaluation.tables import write_table
from kvq_batch.metrics.agreement import agree
from kvq_batch.metrics.bootstrap import Figure, mean_figure
from kvq_batch.metrics.ranks import Pairs, Real

COLUMNS = ("figure", "of", "clips", "sources", "value", "low", "high", "remarks")
ALL = "(all)"

# What is lost: detail, or order that was never there, or the grid of a codec.
GROUPS = {
    "blur": ("blur", "motion_blur", "downscale"),
    "noise": ("noise",),
    "blocks": tuple(name for name, kind in STEPS.items() if kind.is_codec),
}


@dataclass(frozen=True, slots=True)
class ScoredRendition:
    """One version: `pixels` names the frames that it shares with others, `cells` [row, column] its cell labels.

    `score` is the model's, higher is better; `texture` [row, column] its texture map, the mean over slots.
    """

    scene_id: str
    pixels: str
    recipe: Recipe
    label: float
    cells: Real
    score: float
    texture: Real


def rendition_rows(versions: Sequence[ScoredRendition], n_resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of COLUMNS: a figure each, with its interval (95%, drawing whole sources)."""
    rows = []
    whole = [version for version in versions if not version.recipe.patches]
    rows += _agreement_rows(whole, ALL, ("srcc", "krcc", "plcc", "rmse", "srcc_within"), n_resamples, seed)
    for group, names in GROUPS.items():
        # The clean version is where each of these ladders begins.
        own = [version for version in whole if all(step.name in names for step in version.recipe.steps)]
        if any(version.recipe.steps for version in own):
            rows += _agreement_rows(own, group, ("srcc", "srcc_within"), n_resamples, seed)
    steps = list(_steps(whole))
    for codec in (ALL, *sorted({codec for codec, _, _ in steps})):
        falling = [(source, falls) for name, source, falls in steps if codec in (ALL, name)]
        rows.append(_mean_row("falling_steps", codec, falling, n_resamples, seed))
    for group, names in {ALL: tuple(STEPS), **GROUPS}.items():
        for reference in ("alone", "against the clean version"):
            areas = list(_areas(versions, names, reference != "alone"))
            rows.append(_mean_row("auc", f"{group}, {reference}", areas, n_resamples, seed))
    return rows


def _agreement_rows(
    versions: Sequence[ScoredRendition], of: str, figures: Sequence[str], n_resamples: int, seed: int
) -> list[dict[str, Any]]:
    sources = [version.scene_id for version in versions]
    scores, labels = np.array([v.score for v in versions]), np.array([v.label for v in versions])
    agreement = agree(scores, labels, sources, n_resamples, seed)
    return [_row(name, of, len(versions), len(set(sources)), agreement.figures[name]) for name in figures]


def write_renditions(versions: Sequence[ScoredRendition], rows: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Writes figures.csv and .parquet (`rows`), versions.csv and .parquet (a row a version). Raises: SpecError."""
    kinds = {"clips": pa.int64(), "sources": pa.int64()} | dict.fromkeys(("value", "low", "high"), pa.float64())
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    scored = [
        {"scene_id": v.scene_id, "pixels": v.pixels, "recipe": str(v.recipe), "label": v.label, "score": v.score}
        for v in versions
    ]
    tables = {"figures": pa.Table.from_pylist(list(rows), schema), "versions": pa.Table.from_pylist(scored)}
    return [path for name, table in tables.items() for path in write_table(table, out / name)]


def _steps(whole: Sequence[ScoredRendition]) -> Iterator[tuple[str, str, float]]:
    """(codec, source, 1 where the score falls else 0) of each pair of neighbours on a ladder."""
    ladders: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    for version in whole:
        steps = version.recipe.steps
        if len(steps) == 1 and STEPS[steps[0].name].is_codec:
            ladder = ladders.setdefault((steps[0].name, version.pixels), [])
            ladder.append((steps[0].amount, version.score, version.scene_id))
    for (codec, _), ladder in ladders.items():
        ladder.sort()
        for (_, better, source), (_, worse, _) in pairwise(ladder):
            yield codec, source, float(worse < better)


def _areas(
    versions: Sequence[ScoredRendition], names: Sequence[str], against_clean: bool
) -> Iterator[tuple[str, float]]:
    """(source, AUC) of each clean clip with one distorted region, made by a step of `names`."""
    clean = {v.pixels: v.texture for v in versions if not v.recipe.steps and not v.recipe.patches}
    for version in versions:
        recipe = version.recipe
        if recipe.steps or len(recipe.patches) != 1 or len(recipe.patches[0].steps) != 1:
            continue
        if recipe.patches[0].steps[0].name not in names or (against_clean and version.pixels not in clean):
            continue
        texture = version.texture - clean[version.pixels] if against_clean else version.texture
        yield version.scene_id, _area(texture, version.cells)


def _area(texture: Real, cells: Real) -> float:
    """Share of pairs of cells of different labels that the texture orders as they are; NaN where there is none."""
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
    """The mean over clips (or steps); its interval is that of the means of sources."""
    by_source: dict[str, list[float]] = {}
    for source, value in found:
        if np.isfinite(value):
            by_source.setdefault(source, []).append(value)
    if not by_source:
        return _row(name, of, 0, 0, Figure(None, reason="no such version"))
    drawn = mean_figure([float(np.mean(values)) for values in by_source.values()], n_resamples, seed)
    values = [value for own in by_source.values() for value in own]
    figure = Figure(float(np.mean(values)), drawn.low, drawn.high, drawn.reason)
    return _row(name, of, len(values), len(by_source), figure)


def _row(name: str, of: str, num_clips: int, num_sources: int, figure: Figure) -> dict[str, Any]:
    facts: Mapping[str, Any] = {"figure": name, "of": of, "clips": num_clips, "sources": num_sources}
    return {**facts, "value": figure.value, "low": figure.low, "high": figure.high, "remarks": figure.reason}
