"""Answer of a query: an Arrow table that notebooks show, and that converts to frames of pandas and polars."""

import html
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kvq_batch.domain.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_MAX_ROWS = 20
_MAX_CHARS = 120


class Answer:
    """The result of a query. `arrow()` is the table; other libraries read it by the Arrow C stream interface."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def column_names(self) -> list[str]:
        return list(self._table.column_names)

    @property
    def num_rows(self) -> int:
        return int(self._table.num_rows)

    def arrow(self) -> pa.Table:
        """Return the pyarrow Table, without a copy."""
        return self._table

    def df(self) -> "pd.DataFrame":
        """Return a pandas DataFrame. Raises: SpecError if pandas is not installed."""
        try:
            frame: pd.DataFrame = self._table.to_pandas()
        except ModuleNotFoundError as error:
            raise SpecError("pandas is not installed: pip install pandas.") from error
        return frame

    def pl(self) -> "pl.DataFrame":
        """Return a polars DataFrame. Raises: SpecError if polars is not installed."""
        try:
            import polars
        except ModuleNotFoundError as error:
            raise SpecError("polars is not installed: pip install polars.") from error
        return polars.DataFrame(self._table)

    def to_pylist(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries."""
        rows: list[dict[str, Any]] = self._table.to_pylist(maps_as_pydicts="lossy")
        return rows

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        """Return one column. Raises: KeyError if there is no such column."""
        return self._table[column]

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_pylist())

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"Answer({self.num_rows} rows: {', '.join(self.column_names)})"

    def _repr_html_(self) -> str:
        """Return the first rows as an HTML table. Ids and columns of others are escaped."""
        head = "".join(f"<th>{_escaped(name)}</th>" for name in self.column_names)
        rows = Answer(self._table.slice(0, _MAX_ROWS)).to_pylist()
        body = "".join(
            "<tr>" + "".join(f"<td>{_escaped(_text(value))}</td>" for value in row.values()) + "</tr>" for row in rows
        )
        more = f"<p>{_MAX_ROWS} of {self.num_rows:,} rows</p>" if self.num_rows > _MAX_ROWS else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.6g}"
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case _:
            text = str(value)
            return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…"


def _escaped(text: str) -> str:
    # Characters that reverse the order of text are shown as escapes; the others are harmless in HTML.
    visible = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    return html.escape(visible)
