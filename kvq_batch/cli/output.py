"""How commands hand over what they found: a table for people, JSON or CSV for pipes; data to stdout, words to stderr.

Commands build values and never print by themselves. This module decides no exit code.
"""

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

UNTRAINED_WARNING = (
    "The model is UNTRAINED: its weights are random. These scores exercise the pipeline; they say nothing of quality."
)


class Format(StrEnum):
    """Formats that every command with data can write."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class Output:
    """Writes rows in one format to stdout and notes to stderr."""

    def __init__(self, format: Format = Format.TABLE) -> None:
        self.format = format
        self._notes = Console(stderr=True, highlight=False, soft_wrap=True)

    def rows(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, title: str = "") -> None:
        """Rows of equal keys; `columns` names them where there may be no row."""
        names = list(columns if columns is not None else (rows[0] if rows else ()))
        match self.format:
            case Format.JSON:
                text = json.dumps([dict(row) for row in rows], default=_jsonable, ensure_ascii=False, indent=1)
                sys.stdout.write(_strict(text) + "\n")
            case Format.CSV:
                writer = csv.writer(sys.stdout)
                writer.writerow(names)
                writer.writerows([_exact(row[name]) for name in names] for row in rows)
            case Format.TABLE:
                self._table(rows, names, title)

    def record(self, record: Mapping[str, Any], title: str = "") -> None:
        """One thing: a JSON object, or a table of name and value."""
        if self.format is Format.JSON:
            sys.stdout.write(_strict(json.dumps(dict(record), default=_jsonable, ensure_ascii=False, indent=1)) + "\n")
        elif self.format is Format.CSV:
            self.rows([record])
        else:
            self._table([{"": name, "value": value} for name, value in record.items()], ["", "value"], title)

    def note(self, text: str, style: str = "") -> None:
        """A sentence for the person at the terminal; never part of the data."""
        self._notes.print(escape(text), style=style or None)

    def warn_untrained(self, origins: Sequence[str]) -> None:
        """Say loudly that scores of an untrained model are no scores, where there are any."""
        if "untrained" in origins:
            self.note(UNTRAINED_WARNING, style="bold yellow")

    def _table(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> None:
        width = None if sys.stdout.isatty() else 10_000
        table = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for name in names:
            numeric = bool(rows) and all(isinstance(row[name], int | float | None) for row in rows)
            table.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(_cell(row[name])) for name in names))
        Console(file=sys.stdout, highlight=False, width=width).print(table, soft_wrap=width is not None)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
        case datetime():
            return _iso(value)
        case dict() | list() | tuple():
            return json.dumps(value, default=_jsonable, ensure_ascii=False)
        case _:
            return str(value)


def _exact(value: Any) -> str:
    """As `_cell`, with every digit of a number."""
    return repr(value) if isinstance(value, float) else _cell(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime):
        return _iso(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _strict(text: str) -> str:
    """JSON has no NaN or infinity, though Python's writer makes them; they become null."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return json.dumps(_without_nan(json.loads(text)), ensure_ascii=False, indent=1)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return value


def _iso(value: datetime) -> str:
    moment = value.astimezone(UTC) if value.tzinfo else value
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
