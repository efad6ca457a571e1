"""Draws the recipes of one segment from those of the job: single steps, chains, regions, mixes.

The same job, reference and segment always give the same recipes.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from kvq_batch.config.labels import Renditions, parse_chain
from kvq_batch.config.recipe import Chain, Patch, Recipe, Segment, draw_cells
from kvq_batch.media.planes import cell_grid

_REGION_ON_A_VERSION = 0.3
"""Share of the degraded regions whose frame is degraded, too."""

_MOST_RECTANGLES = 3


def draw_recipes(renditions: Renditions, segment: Segment) -> list[Recipe]:
    """Return distinct recipes: the clean one, those of the whole frame, then regions and mixes.

    All have the same seed, so that a mix is made of the same renditions that are labelled on their own.
    """
    rng, seed = np.random.default_rng([segment.seed, segment.number]), segment.seed
    chains = renditions.chains
    whole = list(chains)
    if renditions.per_segment is not None and renditions.per_segment < len(chains):
        drawn = np.sort(rng.choice(len(chains), renditions.per_segment, replace=False))
        whole = [chains[index] for index in drawn]
    grid = cell_grid(segment.height_px, segment.width_px)
    recipes = [Recipe((), (), seed)] * renditions.clean + [Recipe(steps, (), seed) for steps in whole]
    recipes += [_region(whole, grid, rng, seed) for _ in range(renditions.regions)]
    recipes += [_mix(whole, grid, rng, seed) for _ in range(renditions.mixes)]
    return list(dict.fromkeys(recipes))


def segment_seed(job_seed: int, video_id: str, framing: str) -> int:
    """Return the seed of the segments of one reference, independent of that of any other."""
    digest = hashlib.sha256(f"{job_seed}:{framing}:{video_id}".encode()).digest()
    return int.from_bytes(digest[:6], "little")


def draw_pre_degraded(pre_degraded: Sequence[Sequence[str]], seed: int, number: int) -> Chain:
    """Return the pre-degradation of segment `number`: the chains in turn, in an order drawn from `seed`."""
    if not pre_degraded:
        return ()
    order = np.random.default_rng([seed, len(pre_degraded)]).permutation(len(pre_degraded))
    return parse_chain(pre_degraded[order[number % len(pre_degraded)]])


def _region(whole: list[Chain], grid: tuple[int, int], rng: np.random.Generator, seed: int) -> Recipe:
    inside = whole[rng.integers(len(whole))]
    bases: list[Chain] = [chain for chain in whole if chain != inside]
    base: Chain = ()
    if bases and rng.random() < _REGION_ON_A_VERSION:
        base = bases[rng.integers(len(bases))]
    return Recipe(base, (Patch(draw_cells(grid, rng), inside),), seed)


def _mix(whole: list[Chain], grid: tuple[int, int], rng: np.random.Generator, seed: int) -> Recipe:
    base = whole[rng.integers(len(whole))]
    # Another rendition, or the reference if there is only one rendition.
    others: list[Chain] = [(), *(chain for chain in whole if chain != base)]
    other = others[rng.integers(len(others))]
    rectangles = [draw_cells(grid, rng) for _ in range(int(rng.integers(1, _MOST_RECTANGLES + 1)))]
    return Recipe(base, tuple(Patch(cells, other) for cells in rectangles), seed)
