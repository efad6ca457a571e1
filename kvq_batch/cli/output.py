"""Output of commands: data to stdout as a table, JSON, CSV, Parquet or Markdown; messages to the log.

Commands build values and never print.
"""

import csv
import io
import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvq_batch.cli.stdio import (
    binary_stdout,
    escape_controls,
    escape_json,
    escape_log,
    flush_stdout,
    write_data,
    write_text,
)
from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

UNTRAINED_WARNING = (
    "UNTRAINED: the weights of {names} are random. Such scores exercise the pipeline; they do NOT measure quality."
)

_logger = logging.getLogger(__name__)

# Minimum width of a folded cell, and the gap between two columns, in characters.
_MIN_WIDTH, _GAP = 12, 2

_BATCH_ROWS = 10_000

# An underscore within a word is not markup, and ids are full of them.
_MARKUP = re.compile(r"[\\`*\[\]|~]|\b_|_\b")


class Format(StrEnum):
    """Formats of data on stdout."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    MARKDOWN = "markdown"


class Output:
    """Write rows in one format to stdout, and log notes."""

    def __init__(self, format: Format = Format.TABLE) -> None:
        self.format = format

    def rows(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None, title: str = "") -> None:
        """Write rows of equal keys; `columns` is needed if there may be no row. JSON and CSV are streamed."""
        if columns is None:
            rows = list(rows)
            columns = list(rows[0]) if rows else []
        match self.format:
            case Format.JSON:
                separator = "[\n "
                for row in rows:
                    write_data(separator + _json(dict(row)))
                    separator = ",\n "
                write_data("[]\n" if separator.startswith("[") else "\n]\n")
            case Format.CSV:
                writer = csv.writer(_DataWriter(), lineterminator="\r\n")
                writer.writerow(columns)
                writer.writerows([_full(row[name]) for name in columns] for row in rows)
            case Format.PARQUET:
                _write_parquet(_to_arrow(list(rows), columns))
            case Format.MARKDOWN:
                write_text(_markdown(list(rows), columns, title))
            case Format.TABLE:
                self._table(list(rows), columns, title)

    def answer(self, answer: "pa.Table") -> None:
        """Write an Arrow table. Parquet keeps its types; the other formats are written row by row."""
        if self.format is Format.PARQUET:
            _write_parquet(answer)
        else:
            self.rows(_iter_rows(answer), answer.column_names)

    def record(self, record: Mapping[str, Any], title: str = "") -> None:
        """Write one record: a JSON object, or a table of name and value."""
        if self.format is Format.JSON:
            write_data(_json(dict(record), indent=1) + "\n")
        elif self.format in (Format.CSV, Format.PARQUET):
            self.rows([record])
        elif self.format is Format.MARKDOWN:
            self.rows([{"name": name, "value": value} for name, value in record.items()], title=title)
        else:
            grid = Table(title=_title(title), title_justify="left", box=None, pad_edge=False, show_header=False)
            grid.add_column(style="bold")
            grid.add_column(overflow="fold")
            for name, value in record.items():
                grid.add_row(escape(escape_controls(name)), escape(_short(value)))
            self._print(grid)

    def note(self, text: str, style: str = "") -> None:
        """Log a message for the user; it is never part of the data."""
        _logger.info("%s", text, extra={"style": style})

    def warn(self, text: str) -> None:
        """Log a warning for the user."""
        _logger.warning("%s", text)

    def text(self, text: str) -> None:
        """Write the log of a job to stdout: unchanged, or without control characters on a terminal."""
        write_text(escape_log(text) if sys.stdout.isatty() else text)
        flush_stdout()

    def aside(self, text: str) -> None:
        """Write the log of a job to stderr, if its outcome is the data on stdout; otherwise as `text`."""
        sys.stderr.write(escape_log(text) if sys.stderr.isatty() else text)
        sys.stderr.flush()

    def warn_untrained(self, names: Iterable[str]) -> None:
        """Warn that scores of these untrained models do not measure quality; log nothing if there are none."""
        found = sorted(set(names))
        if found:
            _logger.warning(UNTRAINED_WARNING.format(names=", ".join(found)), extra={"style": "bold yellow"})

    def _table(self, rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> None:
        table = Table(title=_title(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
        cells = {name: [_short(row[name]) for row in rows] for name in names}
        widths = {name: max(map(len, (name, *cells[name]))) for name in names}
        if sys.stdout.isatty() and rows and _min_row_width(widths) > Console(file=sys.stdout).width:
            # The columns do not fit the terminal: print each row as a list of name and value.
            for number, row in enumerate(rows, 1):
                self.record(row, title=f"{title or 'row'} {number} of {len(rows)}")
            return
        # The narrowest columns (numbers, ids, words) are not folded while there is room; sentences are.
        unfolded = _unfolded(widths, Console(file=sys.stdout).width)
        for name in names:
            values = [row[name] for row in rows]
            numeric = any(value is not None for value in values) and all(_is_number(value) for value in values)
            justify: Literal["right", "left"] = "right" if numeric else "left"
            table.add_column(escape(escape_controls(name)), justify=justify, overflow="fold", no_wrap=name in unfolded)
        for number in range(len(rows)):
            table.add_row(*(escape(cells[name][number]) for name in names))
        self._print(table)
        if not rows:
            self._print("(no rows)")

    def _print(self, what: Any) -> None:
        # In a pipe nothing is folded: other programs read it line by line.
        is_terminal = sys.stdout.isatty()
        width = Console(file=sys.stdout).width if is_terminal else 10_000
        rendered = io.StringIO()
        console = Console(file=rendered, highlight=False, width=width, force_terminal=is_terminal)
        console.print(what, soft_wrap=not is_terminal)
        text = rendered.getvalue()
        if not is_terminal:
            text = "\n".join(line.rstrip() for line in text.split("\n"))
        write_text(text)


class _DataWriter:
    """The file that `csv.writer` writes lines to: stdout, with Unix line ends."""

    def write(self, line: str) -> None:
        # With a line end without \r, the writer would not quote a value that contains \r.
        write_data(line.removesuffix("\r\n") + "\n")


def _iter_rows(answer: "pa.Table") -> Iterator[dict[str, Any]]:
    # Batch by batch: an export of millions of rows is never held in memory as Python objects.
    for batch in answer.to_batches(max_chunksize=_BATCH_ROWS):
        yield from batch.to_pylist(maps_as_pydicts="lossy")


def _to_arrow(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> "pa.Table":
    """Return rows as an Arrow table. Raises: SpecError if the values of a column have no common type."""
    import pyarrow as pa

    arrays = {}
    for name in columns:
        try:
            arrays[name] = pa.array([row[name] for row in rows])
        except pa.ArrowException as error:
            raise SpecError(
                f"Column {name!r} cannot be written as Parquet, because its values have no common type: "
                "use --output json."
            ) from error
    return pa.table(arrays)


def _write_parquet(answer: "pa.Table") -> None:
    """Write a Parquet file to stdout. Raises: SpecError if stdout is a terminal."""
    import pyarrow.parquet as pq

    with binary_stdout("Parquet") as stdout:
        pq.write_table(answer, stdout, compression="zstd")


def _markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str) -> str:
    """Return a table in the Markdown of GitHub. Text of others is escaped: it shows no markup, link target or HTML."""
    # A title with a line break before it follows another table.
    heading = [*[""] * title.startswith("\n"), f"**{_markdown_cell(title.strip())}**", ""] if title.strip() else []
    rules = ["---:" if rows and all(_is_number(row[name]) for row in rows) else "---" for name in columns]
    lines = [
        [_markdown_cell(name) for name in columns],
        rules,
        *([_markdown_cell(_short(row[name])) for name in columns] for row in rows),
    ]
    return "\n".join([*heading, *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def _markdown_cell(text: str) -> str:
    escaped = escape_controls(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(lambda found: "\\" + found.group(), escaped).replace("\n", "<br>")


def _unfolded(widths: Mapping[str, int], width: int) -> set[str]:
    """Return the columns that are not folded on a terminal of `width`: the narrowest ones."""
    unfolded: set[str] = set()
    room = width - _min_row_width(widths)
    for name in sorted(widths, key=lambda name: widths[name]):
        room -= max(0, widths[name] - _MIN_WIDTH)
        if room < 0:
            break
        unfolded.add(name)
    return unfolded


def _min_row_width(widths: Mapping[str, int]) -> int:
    """Return the minimum width of a row with folded cells."""
    return sum(min(width, _MIN_WIDTH) + _GAP for width in widths.values()) - _GAP


def _title(text: str) -> str | None:
    return escape(escape_controls(text)) or None


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float | Decimal) and not isinstance(value, bool))


def _short(value: Any) -> str:
    """Return a cell of a table: numbers with 6 digits, times to the second, control characters escaped."""
    match value:
        case float():
            return f"{value:.6g}"
        case datetime():
            return _iso(value, "seconds")
        case _:
            return escape_controls(_full(value))


def _full(value: Any) -> str:
    """Return a cell with every digit."""
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
    """Return JSON. NaN and infinity become null: JSON has no value for them."""
    try:
        text = json.dumps(value, default=_jsonable, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(value), default=_jsonable, ensure_ascii=False, indent=indent, allow_nan=False)
    return escape_json(text)


def _jsonable(value: Any) -> Any:
    match value:
        case Decimal():
            # DuckDB sums integers to HUGEINT, which Arrow represents as a decimal.
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
