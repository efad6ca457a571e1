"""How well a texture map finds where quality is lost: the LPVQ protocol (KVQ_SPEC section 7) on any labelled grid.

A still becomes a static clip, as large as the model asks; its texture map, before saliency weighs it, is averaged over
time and over the cells of the labels' grid. Then, over those cells:

    inter-sample    all cells of all files in one pool: a model must know how bad a place is, whatever the picture
    intra-sample    the mean over files of each file's own figure: a model must know where in it

`auc` is the share of pairs of cells with different labels that the map orders the same way, ties half: where labels
have two values (distorted or not), the area under the ROC curve. Where clean files are named, all of it again for the
change of texture against them. This module trains nothing and keeps no map.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvq_batch.domain.errors import ScoreError, SpecError
from kvq_batch.domain.scorer import Scorer
from kvq_batch.evaluation.region_labels import RegionLabels, RegionSet
from kvq_batch.evaluation.tables import write_table
from kvq_batch.media.local_files import clip_of_file
from kvq_batch.metrics.bootstrap import Figure, bootstrap_figures, mean_figure
from kvq_batch.metrics.ranks import Pairs, Ranking, Real, pearson, spearman

PROTOCOL_FRAMES = 16
"""Frames of a static clip, as published; fewer where a model asks for fewer."""

FIGURES = ("srcc", "plcc", "auc")
_REALS = tuple(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high"))
COLUMNS = ("group", "texture", "cells_of", "files", "cells", *_REALS, "remarks")
ALL = "(all)"
ALONE, AGAINST_CLEAN = "alone", "against the clean file"

Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class RatedFile:
    """Cells of one file, float64 [row, column]: labels, texture, and `change`, the texture less the clean file's."""

    name: str
    labels: Real
    texture: Real
    change: Real | None


def num_still_frames(scorer: Scorer) -> int:
    """Frames of a static clip for this model."""
    return min(PROTOCOL_FRAMES, scorer.spec.frames.sampling.num_frames)


def rate_regions(scorer: Scorer, regions: RegionSet, tell: Tell = lambda num_done: None) -> list[RatedFile]:
    """The texture of every labelled cell, file by file.

    Raises:
        SpecError: a model without texture maps.
        ItemError: a file that cannot be read, or that the model cannot score.
    """
    if "texture" not in scorer.spec.maps:
        raise SpecError(f"model {scorer.spec.card.model_id} makes no texture map; choose one that does")
    rated = []
    for item in regions.items:
        texture = _texture(scorer, item, is_clean=False)
        change = None if item.clean is None else texture - _texture(scorer, item, is_clean=True)
        rated.append(RatedFile(item.path.name, item.cells, texture, change))
        tell(len(rated))
    return rated


def _texture(scorer: Scorer, item: RegionLabels, is_clean: bool) -> Real:
    path = item.clean if is_clean and item.clean is not None else item.path
    clip = clip_of_file(path, scorer.spec.frames, num_still_frames(scorer))
    (prediction,) = scorer.score([clip])
    if prediction.texture is None or not np.isfinite(prediction.texture).all():
        raise ScoreError("non_finite", f"{path}: the model gave no texture, or NaN")
    rows, columns = item.cells.shape
    return pooled(prediction.texture.astype(np.float64).mean(axis=0), rows, columns)


def pooled(cells: Real, num_rows: int, num_columns: int) -> Real:
    """Means of `cells` [row, column] over a grid of any size, each cell by the area that it shares.

    Where a grid divides the other, plain average pooling.
    """
    pooled_cells: Real = _shares(cells.shape[0], num_rows) @ cells @ _shares(cells.shape[1], num_columns).T
    return pooled_cells


def _shares(num_in: int, num_out: int) -> Real:
    """Weight of each input in each output, [out, in]: the part of the output's stretch that it covers."""
    low, high = np.arange(num_in) / num_in, np.arange(1, num_in + 1) / num_in
    first, last = np.arange(num_out)[:, None] / num_out, np.arange(1, num_out + 1)[:, None] / num_out
    overlap = np.clip(np.minimum(high, last) - np.maximum(low, first), 0, None)
    shares: Real = overlap / overlap.sum(axis=1, keepdims=True)
    return shares


def groups_of(regions: RegionSet, pattern: str) -> list[str]:
    """The group of each file: what the regular expression finds in its name, its first bracket where it has one.

    Raises: SpecError for no such expression, and for a file in which it finds nothing.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SpecError(f"--by {pattern!r} is no regular expression: {error}") from error
    groups = []
    for item in regions.items:
        found = expression.search(item.path.name)
        if found is None:
            raise SpecError(f"--by {pattern!r} finds nothing in {item.path.name!r}; widen it, as in '(blur|noise|$)'")
        groups.append(found[1] if expression.groups else found[0])
    return groups


def write_regions(rated: Sequence[RatedFile], rows: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Writes regions.csv and .parquet (`rows`), cells.csv and .parquet (a row a cell). Raises: SpecError."""
    kinds = {"files": pa.int64(), "cells": pa.int64()} | dict.fromkeys(_REALS, pa.float64())
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    cells = [
        {
            "file": file.name,
            "row": row,
            "column": column,
            "label": float(label),
            "texture": float(file.texture[row, column]),
            "change": None if file.change is None else float(file.change[row, column]),
        }
        for file in rated
        for (row, column), label in np.ndenumerate(file.labels)
    ]
    kinds_of_cells = {"file": pa.string(), "row": pa.int64(), "column": pa.int64()}
    of_cells = pa.schema([*kinds_of_cells.items(), *((name, pa.float64()) for name in ("label", "texture", "change"))])
    tables = {"regions": pa.Table.from_pylist(list(rows), schema), "cells": pa.Table.from_pylist(cells, of_cells)}
    return [path for name, table in tables.items() for path in write_table(table, out / name)]


def region_rows(
    rated: Sequence[RatedFile],
    groups: Sequence[str] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row for each group (all first), reference and pool: files, cells, each of FIGURES with low and high, remarks.

    `groups` names the group of each file. Intervals (95%) come from drawing whole files.
    """
    rows = []
    names = [ALL, *sorted(set(groups or ()))]
    for group in names:
        own = [file for i, file in enumerate(rated) if group == ALL or (groups or ())[i] == group]
        with_clean = [file for file in own if file.change is not None]
        for reference, files in ((ALONE, own), (AGAINST_CLEAN, with_clean)):
            if not files:
                continue
            maps = [file.texture if reference == ALONE or file.change is None else file.change for file in files]
            for pool, measure in (("inter-sample", _inter), ("intra-sample", _intra)):
                figures = measure(maps, [file.labels for file in files], n_resamples, seed)
                facts = {"group": group, "texture": reference, "cells_of": pool, "files": len(files)}
                facts["cells"] = sum(file.labels.size for file in files)
                rows.append(facts | _columns(figures))
    return rows


def _columns(figures: Mapping[str, Figure]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in FIGURES:
        figure = figures[name]
        row |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    reasons = dict.fromkeys(figures[name].reason for name in FIGURES)
    row["remarks"] = "; ".join(reason for reason in reasons if reason)
    return row


def _inter(maps: Sequence[Real], labels: Sequence[Real], n_resamples: int, seed: int) -> dict[str, Figure]:
    """Figures over all cells in one pool."""
    x, y = (np.concatenate([cells.ravel() for cells in many]) for many in (maps, labels))
    file_of = np.repeat(np.arange(len(maps)), [cells.size for cells in maps])
    by_x, by_y, pairs = Ranking(x), Ranking(y), Pairs(x, y, file_of)

    def correlations(bootstrap: Real) -> dict[str, Real]:
        weights = bootstrap[:, file_of]
        return {"srcc": spearman(by_x, by_y, weights), "plcc": pearson(x, y, weights)}

    def order(bootstrap: Real) -> dict[str, Real]:
        return {"auc": pairs.concordance(bootstrap)}

    found = bootstrap_figures(correlations, len(maps), n_resamples, seed, unit="files")
    return found | bootstrap_figures(order, len(maps), n_resamples, seed, chunk=n_resamples, unit="files")


def _intra(maps: Sequence[Real], labels: Sequence[Real], n_resamples: int, seed: int) -> dict[str, Figure]:
    """Means over files of the figures of each."""
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for cells, own in zip(maps, labels, strict=True):
        x, y = cells.ravel(), own.ravel()
        one = np.ones((1, x.size))
        found["srcc"].append(float(spearman(Ranking(x), Ranking(y), one)[0]))
        found["plcc"].append(float(pearson(x, y, one)[0]))
        found["auc"].append(float(Pairs(x, y, np.zeros(x.size, np.int64)).concordance(np.ones((1, 1)))[0]))
    return {name: mean_figure(values, n_resamples, seed, "files") for name, values in found.items()}
