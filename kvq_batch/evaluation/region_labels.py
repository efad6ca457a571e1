"""Read labels of the cells of pictures in the LPVQ format (KVQ_SPEC section 7), with a grid of any size.

    <folder>/labels/<set>.txt         <file> (0,0):3.5, (0,1):2, ... one line per file, (row,column) from the top left
    <folder>/<set>/<file>             the files, stills or videos
    <folder>/labels/<set>.clean.txt   optional: <file>, <clean file>: the clean original of each

A higher label is a better cell; each set has its own scale. An incomplete line is rejected with its number.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvq_batch.domain.errors import SpecError
from kvq_batch.metrics.ranks import Real

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
