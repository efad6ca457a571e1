"""Compare texture maps with labelled cells: the LPVQ protocol (KVQ_SPEC section 7) on a grid of any size.

Labels are read from files:

    <folder>/labels/<set>.txt         <file> (0,0):3.5, (0,1):2, ... one line per file, (row,column) from the top left
    <folder>/<set>/<file>             the files, stills or videos
    <folder>/labels/<set>.clean.txt   optional: <file>, <clean file>: the clean original of each

A higher label is a better cell; each set has its own scale. An incomplete line is rejected with its number.

A still becomes a static clip of the model's input size. Its texture map, before it is weighted by saliency, is averaged
over time and over the cells of the labels' grid. Metrics are computed over those cells in two ways:

    inter-sample    over all cells of all files: does the model know how bad a cell is, in any picture
    intra-sample    as the mean over files of the metric of each file: does the model know where in a picture

`auc` is the share of pairs of cells with different labels that the map orders the same way, ties half. If the labels
have two values (distorted or not), it is the area under the ROC curve. If there are clean files, all metrics are also
computed for the difference of texture from the clean file.
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
from kvq_batch.media.local_files import clip_of_file
from kvq_batch.metrics.bootstrap import MetricValue, bootstrap_mean, bootstrap_metrics
from kvq_batch.metrics.ranks import Pairs, Ranking, Real, pearson, spearman
from kvq_batch.tables.table_files import write_csv_and_parquet

_LINE = re.compile(r"(?P<file>.+?)\s+(?P<cells>\(\s*\d+\s*,\s*\d+\s*\)\s*:.*)")
_CELL = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)\s*:\s*([^\s,()]+)")
_CLEAN = ".clean"


@dataclass(frozen=True, slots=True)
class RegionLabels:
    """One file and its cells: `cells` float64 [row, column]; `clean` is the undistorted file, if there is one."""

    path: Path
    cells: Real
    clean: Path | None = None


@dataclass(frozen=True, slots=True)
class RegionSet:
    """A labelled set; `name` is the name of its folder and label file."""

    name: str
    items: tuple[RegionLabels, ...]


def read_region_set(folder: Path, name: str | None = None) -> RegionSet:
    """Read the set below `folder`, or the one called `name` if there are several.

    Raises:
        SpecError: no set, or an invalid line, with its number.
    """
    label_file = _label_file(folder, name)
    files = folder / label_file.stem
    clean = _clean_files(label_file.with_suffix(f"{_CLEAN}.txt"), files)
    items: list[RegionLabels] = []
    seen: dict[str, int] = {}
    for number, line in _lines(label_file):
        where = f"{label_file}: line {number}"
        found = _LINE.fullmatch(line)
        if found is None:
            raise SpecError(f"{where} is not `<file> (0,0):<label>, (0,1):<label>, ...`: {line[:60]!r}")
        file = found["file"]
        if file in seen:
            raise SpecError(f"{where}: {file!r} is already in line {seen[file]}. Keep one.")
        seen[file] = number
        items.append(RegionLabels(_existing(files / file, where), _cells(found["cells"], where), clean.pop(file, None)))
    if not items:
        raise SpecError(f"{label_file} is empty. Write one line for each file of {files}.")
    if clean:
        raise SpecError(f"{label_file.stem}{_CLEAN}.txt: {next(iter(clean))!r} has no labels in {label_file.name}")
    return RegionSet(label_file.stem, tuple(items))


def _label_file(folder: Path, name: str | None) -> Path:
    """Return the list of labels that has a folder of files."""
    labels = folder / "labels"
    found = sorted(file for file in labels.glob("*.txt") if (folder / file.stem).is_dir())
    names = ", ".join(file.stem for file in found)
    if name is not None:
        found = [file for file in found if file.stem == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise SpecError(f"{folder} holds several sets, {names}. Choose one with --set.")
    expected = name or "<set>"
    raise SpecError(
        f"{folder} has no labels/{expected}.txt with a folder {expected} next to labels. Sets: {names or 'none'}."
    )


def _lines(file: Path) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"Cannot read {file}: {error}") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _clean_files(file: Path, files: Path) -> dict[str, Path]:
    """Return the clean file of each distorted one; empty if there is no list."""
    if not file.exists():
        return {}
    clean: dict[str, Path] = {}
    for number, line in _lines(file):
        distorted, comma, original = (part.strip() for part in line.partition(","))
        if not (comma and distorted and original):
            raise SpecError(f"{file}: line {number} is not `<file>, <clean file>`: {line[:60]!r}")
        if distorted in clean:
            raise SpecError(f"{file}: line {number}: {distorted!r} is listed twice. Keep one.")
        clean[distorted] = _existing(files / original, f"{file}: line {number}")
    return clean


def _existing(path: Path, where: str) -> Path:
    if not path.is_file():
        raise SpecError(f"{where}: no file {path}. Correct the name; it must match exactly.")
    return path


def _cells(text: str, where: str) -> Real:
    """Parse cells into float64 [row, column]; every cell of the grid must be there once."""
    values: dict[tuple[int, int], float] = {}
    for part in re.split(r"\s*,\s*(?=\()", text.rstrip(" ,")):
        found = _CELL.fullmatch(part)
        if found is None:
            raise SpecError(f"{where}: {part[:40]!r} is not `(row,column):label`")
        cell = int(found[1]), int(found[2])
        try:
            value = float(found[3])
        except ValueError as error:
            raise SpecError(f"{where}: cell {cell}: {found[3]!r} is not a number") from error
        if not np.isfinite(value):
            raise SpecError(f"{where}: cell {cell}: {found[3]} is not finite")
        if cell in values:
            raise SpecError(f"{where}: cell {cell} is listed twice")
        values[cell] = value
    num_rows, num_columns = (1 + max(cell[axis] for cell in values) for axis in (0, 1))
    if len(values) != num_rows * num_columns:
        grid = ((row, column) for row in range(num_rows) for column in range(num_columns))
        missing = next(cell for cell in grid if cell not in values)
        raise SpecError(f"{where}: cell {missing} of {num_rows} x {num_columns} is missing")
    return np.array([[values[row, column] for column in range(num_columns)] for row in range(num_rows)])


PROTOCOL_FRAMES = 16
"""Frames of a static clip, as published; fewer if the model takes fewer."""

METRICS = ("srcc", "plcc", "auc")
_REALS = tuple(f"{name}{end}" for name in METRICS for end in ("", "_low", "_high"))
COLUMNS = ("group", "texture", "cells_of", "files", "cells", *_REALS, "remarks")
ALL = "(all)"
ALONE, AGAINST_CLEAN = "alone", "against the clean file"

OnProgress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """Cells of one file, float64 [row, column]: labels, texture, and `change`, the difference from the clean file."""

    name: str
    labels: Real
    texture: Real
    change: Real | None


def num_still_frames(scorer: Scorer) -> int:
    """Return the number of frames of a static clip for this model."""
    return min(PROTOCOL_FRAMES, scorer.spec.pixel_request.sampling.num_frames or PROTOCOL_FRAMES)


def score_regions(
    scorer: Scorer, regions: RegionSet, on_progress: OnProgress = lambda num_done: None
) -> list[ScoredFile]:
    """Return the texture of every labelled cell. Calls `on_progress` with the number of files done.

    Raises:
        SpecError: a model without texture maps.
        ItemError: a file that cannot be read, or that the model cannot score.
    """
    if "texture" not in scorer.spec.maps:
        raise SpecError(f"Model {scorer.spec.card.model_id} has no texture map. Choose a model that has one.")
    scored = []
    for item in regions.items:
        texture = _texture(scorer, item, is_clean=False)
        change = None if item.clean is None else texture - _texture(scorer, item, is_clean=True)
        scored.append(ScoredFile(item.path.name, item.cells, texture, change))
        on_progress(len(scored))
    return scored


def _texture(scorer: Scorer, item: RegionLabels, is_clean: bool) -> Real:
    path = item.clean if is_clean and item.clean is not None else item.path
    clip = clip_of_file(path, scorer.spec.pixel_request, num_still_frames(scorer))
    (prediction,) = scorer.score([clip])
    if prediction.texture is None or not np.isfinite(prediction.texture).all():
        raise ScoreError("non_finite", f"{path}: the model returned no texture map, or NaN in it")
    rows, columns = item.cells.shape
    return avg_pool(prediction.texture.astype(np.float64).mean(axis=0), rows, columns)


def avg_pool(cells: Real, num_rows: int, num_columns: int) -> Real:
    """Average `cells` [row, column] over a grid of any size, weighted by overlapping area.

    Equals plain average pooling if the size of one grid divides that of the other.
    """
    pooled: Real = _overlaps(cells.shape[0], num_rows) @ cells @ _overlaps(cells.shape[1], num_columns).T
    return pooled


def _overlaps(num_in: int, num_out: int) -> Real:
    """Return the weight of each input in each output, [out, in]: the share of the output that it covers."""
    low, high = np.arange(num_in) / num_in, np.arange(1, num_in + 1) / num_in
    first, last = np.arange(num_out)[:, None] / num_out, np.arange(1, num_out + 1)[:, None] / num_out
    overlap = np.clip(np.minimum(high, last) - np.maximum(low, first), 0, None)
    shares: Real = overlap / overlap.sum(axis=1, keepdims=True)
    return shares


def groups_of(regions: RegionSet, pattern: str) -> list[str]:
    """Return the group of each file: the match of a regular expression in its name, or its first group if it has one.

    Raises:
        SpecError: an invalid expression, or a file without a match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SpecError(f"--by {pattern!r} is not a regular expression: {error}") from error
    groups = []
    for item in regions.items:
        found = expression.search(item.path.name)
        if found is None:
            raise SpecError(f"--by {pattern!r} does not match {item.path.name!r}. Extend it, such as '(blur|noise|$)'.")
        groups.append(found[1] if expression.groups else found[0])
    return groups


def write_regions(scored: Sequence[ScoredFile], rows: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write regions.csv and .parquet (`rows`), cells.csv and .parquet (one row per cell). Raises: SpecError."""
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
        for file in scored
        for (row, column), label in np.ndenumerate(file.labels)
    ]
    cell_kinds = {"file": pa.string(), "row": pa.int64(), "column": pa.int64()}
    cell_schema = pa.schema([*cell_kinds.items(), *((name, pa.float64()) for name in ("label", "texture", "change"))])
    tables = {"regions": pa.Table.from_pylist(list(rows), schema), "cells": pa.Table.from_pylist(cells, cell_schema)}
    return [path for name, table in tables.items() for path in write_csv_and_parquet(table, out / name)]


def region_rows(
    scored: Sequence[ScoredFile],
    groups: Sequence[str] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return a row of COLUMNS for each group (all first), alone and against the clean file, inter- and intra-sample.

    `groups` names the group of each file. The 95% intervals come from a bootstrap over whole files.
    """
    rows = []
    names = [ALL, *sorted(set(groups or ()))]
    for group in names:
        own = [file for i, file in enumerate(scored) if group == ALL or (groups or ())[i] == group]
        with_clean = [file for file in own if file.change is not None]
        for texture, files in ((ALONE, own), (AGAINST_CLEAN, with_clean)):
            if not files:
                continue
            maps = [file.texture if texture == ALONE or file.change is None else file.change for file in files]
            for pool, measure in (("inter-sample", _inter), ("intra-sample", _intra)):
                metrics = measure(maps, [file.labels for file in files], n_resamples, seed)
                facts = {"group": group, "texture": texture, "cells_of": pool, "files": len(files)}
                facts["cells"] = sum(file.labels.size for file in files)
                rows.append(facts | _columns(metrics))
    return rows


def _columns(metrics: Mapping[str, MetricValue]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name in METRICS:
        metric = metrics[name]
        row |= {name: metric.value, f"{name}_low": metric.low, f"{name}_high": metric.high}
    reasons = dict.fromkeys(metrics[name].reason for name in METRICS)
    row["remarks"] = "; ".join(reason for reason in reasons if reason)
    return row


def _inter(maps: Sequence[Real], labels: Sequence[Real], n_resamples: int, seed: int) -> dict[str, MetricValue]:
    """Return the metrics over all cells of all files."""
    x, y = (np.concatenate([cells.ravel() for cells in many]) for many in (maps, labels))
    file_of = np.repeat(np.arange(len(maps)), [cells.size for cells in maps])
    by_x, by_y, pairs = Ranking(x), Ranking(y), Pairs(x, y, file_of)

    def correlations(counts: Real) -> dict[str, Real]:
        weights = counts[:, file_of]
        return {"srcc": spearman(by_x, by_y, weights), "plcc": pearson(x, y, weights)}

    def auc(counts: Real) -> dict[str, Real]:
        return {"auc": pairs.concordance(counts)}

    found = bootstrap_metrics(correlations, len(maps), n_resamples, seed, unit="files")
    return found | bootstrap_metrics(auc, len(maps), n_resamples, seed, chunk=n_resamples, unit="files")


def _intra(maps: Sequence[Real], labels: Sequence[Real], n_resamples: int, seed: int) -> dict[str, MetricValue]:
    """Return the means over files of the metrics of each."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for cells, own in zip(maps, labels, strict=True):
        x, y = cells.ravel(), own.ravel()
        one = np.ones((1, x.size))
        found["srcc"].append(float(spearman(Ranking(x), Ranking(y), one)[0]))
        found["plcc"].append(float(pearson(x, y, one)[0]))
        found["auc"].append(float(Pairs(x, y, np.zeros(x.size, np.int64)).concordance(np.ones((1, 1)))[0]))
    return {name: bootstrap_mean(values, n_resamples, seed, "files") for name, values in found.items()}
