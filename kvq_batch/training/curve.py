"""Learning curves as CSV files that grow by a row a step, and that a resumed training cuts back to where it goes on.

Every row is written out before a state is stored, so that no state is ahead of its curve. Pictures are drawn elsewhere.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kvq_batch.domain.errors import FatalError
from kvq_batch.training.state import replace_file


class Curve:
    """One CSV file; its first column is `step`. Use it as a context manager."""

    def __init__(self, path: Path, columns: Sequence[str], last_step: int) -> None:
        self._path = path
        self._columns = ["step", *columns]
        rows = [row for row in _rows(path) if int(row["step"]) <= last_step] if path.exists() else []
        replace_file(path, lambda file: _write(file, self._columns, rows))

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise FatalError(f"{self._path} cannot be written: {error}") from error
        self._writer = csv.DictWriter(self._file, self._columns, lineterminator="\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def add(self, row: Mapping[str, float]) -> None:
        self._writer.writerow({name: row.get(name, "") for name in self._columns})

    def flush(self) -> None:
        self._file.flush()


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve; a last line that was cut off by a crash is left out."""
    return [{name: float(value) for name, value in row.items() if value} for row in _rows(path)]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
