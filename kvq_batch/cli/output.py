"""How commands hand over what they found: a table for people, JSON or CSV for pipes; data to stdout, words to stderr.

Commands build values and never print by themselves. This module decides no exit code.
"""

import csv
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

UNTRAINED_WARNING = (
    "UNTRAINED: the weights of {names} are random. Such scores exercise the pipeline; they say NOTHING of quality."
)

_logger = logging.getLogger(__name__)

# Characters that a folded cell keeps at least, and between two columns.
_LEAST, _GAP = 12, 2


class Format(StrEnum):
    """Formats that every command with data can write."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Output:
    """Write rows in one format to stdout, and log notes."""

    def __init__(self, format: Format = Format.TABLE) -> None:
        self.format = format

    def rows(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None, title: str = "") -> None:
        """Rows of equal keys; `columns` names them where there may be no row. JSON and CSV are written as they come."""
        if columns is None:
            rows = list(rows)
            columns = list(rows[0]) if rows else []
        match self.format:
            case Format.JSON:
                separator = "[\n "
                for row in rows:
                    sys.stdout.write(separator + _json(dict(row)))
                    separator = ",\n "
                sys.stdout.write("[]\n" if separator.startswith("[") else "\n]\n")
            case Format.CSV:
                writer = csv.writer(sys.stdout, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows([_exact(row[name]) for name in columns] for row in rows)
            case Format.TABLE:
                self._table(list(rows), columns, title)

    def record(self, record: Mapping[str, Any], title: str = "") -> None:
        """One thing: a JSON object, or a table of name and value."""
        if self.format is Format.JSON:
            sys.stdout.write(_json(dict(record), indent=1) + "\n")
        elif self.format is Format.CSV:
            self.rows([record])
        else:
            grid = Table(title=_title(title), title_justify="left", box=None, pad_edge=False, show_header=False)
            grid.add_column(style="bold")
            grid.add_column(overflow="fold")
            for name, value in record.items():
                grid.add_row(escape(name), escape(_shown(value)))
            self._print(grid)

    def note(self, text: str, style: str = "") -> None:
        """Log a message for the user; it is never part of the data."""
        _logger.info("%s", text, extra={"style": style})

    def text(self, text: str) -> None:
        """A piece of text as it is, to stdout: a log is data, too."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def aside(self, text: str) -> None:
        """A piece of text as it is, to stderr: the log of a job whose outcome is the data."""
        sys.stderr.write(text)
        sys.stderr.flush()

    def warn_untrained(self, names: Iterable[str]) -> None:
        """Say loudly that scores of these untrained models are no scores; nothing where there is none."""
        found = sorted(set(names))
        if found:
            _logger.warning(UNTRAINED_WARNING.format(names=", ".join(found)), extra={"style": "bold yellow"})

    def _table(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> None:
        table = Table(title=_title(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
        cells = {name: [_shown(row[name]) for row in rows] for name in names}
        widths = {name: max(map(len, (name, *cells[name]))) for name in names}
        if sys.stdout.isatty() and rows and _least(widths) > Console(file=sys.stdout).width:
            # More columns than the terminal has room for: each row as a list of its own.
            for number, row in enumerate(rows, 1):
                self.record(row, title=f"{title or 'row'} {number} of {len(rows)}")
            return
        # Numbers, ids and words stay whole while there is room; what folds are sentences.
        whole = _whole(widths, Console(file=sys.stdout).width)
        for name in names:
            values = [row[name] for row in rows]
            numeric = any(value is not None for value in values) and all(_is_number(value) for value in values)
            justify: Literal["right", "left"] = "right" if numeric else "left"
            table.add_column(escape(name), justify=justify, overflow="fold", no_wrap=name in whole)
        for number in range(len(rows)):
            table.add_row(*(escape(cells[name][number]) for name in names))
        self._print(table)
        if not rows:
            self._print("(no rows)")

    def _print(self, what: Any) -> None:
        # In a pipe nothing is folded: whoever reads it counts on lines.
        width = None if sys.stdout.isatty() else 10_000
        console = Console(file=sys.stdout, highlight=False, width=width)
        with console.capture() as captured:
            console.print(what, soft_wrap=width is not None)
        text = captured.get()
        if width is not None:
            text = "\n".join(line.rstrip() for line in text.split("\n"))
        sys.stdout.write(text)


def _whole(widths: Mapping[str, int], width: int) -> set[str]:
    """Columns that are not folded on a terminal of `width`: the narrowest, while the others keep `_LEAST` each."""
    whole: set[str] = set()
    room = width - _least(widths)
    for name in sorted(widths, key=lambda name: widths[name]):
        room -= max(0, widths[name] - _LEAST)
        if room < 0:
            break
        whole.add(name)
    return whole


def _least(widths: Mapping[str, int]) -> int:
    """Characters of a row at least, however its cells are folded."""
    return sum(min(width, _LEAST) + _GAP for width in widths.values()) - _GAP


def _title(text: str) -> str | None:
    return escape(text) or None


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float | Decimal) and not isinstance(value, bool))


def _shown(value: Any) -> str:
    """A cell for people: short numbers, times to the second."""
    match value:
        case float():
            return f"{value:.6g}"
        case datetime():
            return _iso(value, "seconds")
        case _:
            return _exact(value)


def _exact(value: Any) -> str:
    """A cell with every digit."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return repr(value)
        case Decimal():
            return format(value, "f")
        case datetime():
            return _iso(value)
        case bytes():
            return value.hex()
        case dict() | list() | tuple():
            return _json(value)
        case _:
            return str(value)


def _json(value: Any, indent: int | None = None) -> str:
    """JSON without NaN and infinity, which it has no words for: they become null."""
    try:
        return json.dumps(value, default=_jsonable, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), default=_jsonable, ensure_ascii=False, indent=indent, allow_nan=False)


def _jsonable(value: Any) -> Any:
    match value:
        case Decimal():
            # DuckDB's sums of integers are wider than any integer of Arrow and come as decimals.
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime():
            return _iso(value)
        case date():
            return value.isoformat()
        case bytes():
            return value.hex()
        case _:
            return str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return value


def _iso(value: datetime, timespec: str = "microseconds") -> str:
    moment = value.astimezone(UTC) if value.tzinfo else value
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")
