"""Generated catalog files for property tests: names, types and values that change from night to night."""

import ast
import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from kvq_batch.catalog.reader import CATALOG_COLUMNS
from kvq_batch.domain.column_types import ARROW_COLUMNS
from kvq_batch.tables.schemas import CATALOG

PACKAGE = Path(__file__).parents[2] / "kvq_batch"
VIDEOS = ("v0", "v1", "v2", "v3")
FORMATS = ("parquet", "jsonl", "csv")

Column = list[Any]


@dataclass(frozen=True)
class CatalogFile:
    """A catalog as values by column and video, and the format of its file. In CSV all values are texts."""

    format: str
    videos: tuple[str, ...]
    columns: Mapping[str, Column]

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return {video: {column: value}}."""
        return {
            video: {name: values[index] for name, values in self.columns.items()}
            for index, video in enumerate(self.videos)
        }

    def write(self, path: Path) -> Path:
        """Write the file below the folder `path`, and return its address."""
        count = len(self.videos)
        own = {
            "video_id": list(self.videos),
            "uri": [f"s3://bucket/{video}.mp4" for video in self.videos],
            "content_id": [f"crc:{video}" for video in self.videos],
        }
        columns = {**own, **self.columns}
        out = path / f"catalog.{self.format}"
        if self.format == "parquet":
            arrays = [pa.array(values) for values in columns.values()]
            pq.write_table(pa.Table.from_arrays(arrays, names=list(columns)), out)
        elif self.format == "jsonl":
            rows = [{name: values[index] for name, values in columns.items()} for index in range(count)]
            out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            text = io.StringIO(newline="")
            writer = csv.writer(text)
            writer.writerow(columns)
            writer.writerows(zip(*([value or "" for value in values] for values in columns.values()), strict=True))
            out.write_bytes(text.getvalue().encode())
        return out

    def is_rejected_by_name(self) -> bool:
        """Return whether a name cannot be stored, so that `plan` may reject the catalog."""
        reserved = {name.lower() for name in (*CATALOG.names, "first_run_id", "last_run_id", *ARROW_COLUMNS)}
        folded = [name.lower() for name in self.columns]
        stored = {f"catalog_{name}" if name in reserved else name for name in folded}
        return any(name == "" or "\0" in name for name in self.columns) or len(stored) < len(folded)

    def is_rejected_as_text(self) -> bool:
        """Return whether a CSV file has NUL bytes, which no text has."""
        return self.format == "csv" and any("\0" in text for values in self.columns.values() for text in values if text)


@cache
def names_in_sql() -> tuple[str, ...]:
    """Return every word in every text that our code below `tables`, `catalog` and `planning` may use as SQL."""
    words: set[str] = set()
    for folder in ("tables", "catalog", "planning"):
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
                if re.search(r"\b(SELECT|FROM|WHERE|JOIN)\b|^[a-z_0-9]+$", text):
                    words.update(re.findall(r"[A-Za-z_][A-Za-z_0-9]*", text))
    own = {name.lower() for name in CATALOG_COLUMNS}
    return tuple(sorted(word for word in words if word.lower() not in own))


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_ODD_TEXTS = st.sampled_from(
    ["", "007", "NA", "null", "true", "2026-01-01", "2026-01-01 10:00:00", "nan", "1", "[]", "{}"]
)


def names() -> st.SearchStrategy[str]:
    """Return names of columns: any text, the empty one, and every word of our own SQL."""
    own = {name.lower() for name in CATALOG_COLUMNS}
    arrow = st.sampled_from(ARROW_COLUMNS)
    anything = st.one_of(
        st.sampled_from(names_in_sql()), _TEXTS, arrow, st.sampled_from(["a", "A", "b", "a.b", "ß", " "])
    )
    return anything.filter(lambda name: name.lower() not in own)


def _kinds(file_format: str) -> st.SearchStrategy[Any]:
    """Return kinds of values: the name of a scalar kind, ["list", kind], or {field: kind}."""
    scalars = ["int", "float", "bool", "text", "odd", "void"] + ["bytes", "date"] * (file_format == "parquet")
    fields = st.one_of(st.sampled_from(["a", "b", "A", "c", "video_id"]), _TEXTS)
    return st.recursive(
        st.sampled_from(scalars),
        lambda inner: st.one_of(
            # Parquet files cannot hold a struct without fields.
            inner.map(lambda kind: ["list", kind]),
            st.dictionaries(fields, inner, min_size=int(file_format == "parquet"), max_size=3),
        ),
        max_leaves=4,
    )  # fmt: skip


def _values(kind: Any, file_format: str) -> st.SearchStrategy[Any]:
    if isinstance(kind, list):
        return st.none() | st.lists(_values(kind[1], file_format), max_size=2)
    if isinstance(kind, dict):
        fields = {name: _values(inner, file_format) for name, inner in kind.items()}
        return st.none() | st.fixed_dictionaries(fields)
    scalars: dict[str, st.SearchStrategy[Any]] = {
        "int": st.one_of(st.integers(-3, 300), st.integers(-(2**63), 2**63 - 1)),
        "float": st.floats(allow_nan=file_format == "parquet", allow_infinity=file_format == "parquet"),
        "bool": st.booleans(),
        "text": _TEXTS,
        "odd": _ODD_TEXTS,
        "void": st.none(),
        "bytes": st.binary(max_size=3),
        "date": st.dates(date(1900, 1, 1), date(2100, 1, 1)),
    }
    return st.none() | scalars[kind]


@st.composite
def columns(draw: st.DrawFn, file_format: str, count: int) -> Column:
    """Return the values of one column for `count` videos."""
    if file_format == "csv":
        kind = draw(st.sampled_from(["int", "float", "bool", "text", "odd", "date", "time"]))
        return [draw(_csv_values_of(kind)) for _ in range(count)]
    kind = draw(_kinds(file_format))
    return [draw(_values(kind, file_format)) for _ in range(count)]


def _csv_values_of(kind: str) -> st.SearchStrategy[Any]:
    texts: dict[str, st.SearchStrategy[str]] = {
        "int": st.integers(-(2**63), 2**63 - 1).map(str),
        "float": st.floats(allow_nan=False, allow_infinity=False).map(repr),
        "bool": st.sampled_from(["true", "false"]),
        "text": _TEXTS,
        "odd": _ODD_TEXTS,
        "date": st.dates(date(1900, 1, 1), date(2100, 1, 1)).map(str),
        "time": st.times().map(lambda time: f"{time:%H:%M:%S}"),
    }
    return st.none() | texts[kind].map(lambda text: text or None)


@st.composite
def catalog_files(draw: st.DrawFn, column_names: Sequence[str] | None = None) -> CatalogFile:
    """Return a catalog of up to four videos, with the given or with generated names of columns."""
    file_format = draw(st.sampled_from(FORMATS))
    videos = draw(st.lists(st.sampled_from(VIDEOS), min_size=1, unique=True).map(tuple))
    if column_names is None:
        column_names = draw(st.lists(names(), min_size=1, max_size=3, unique=True))
    return CatalogFile(file_format, videos, {name: draw(columns(file_format, len(videos))) for name in column_names})


def is_same(expected: Any, found: Any) -> bool:
    """Return whether a view shows the value `expected`, whatever type holds it.

    What has no value (null, an empty list, a struct of nulls) has no type either, so it may be shown as null.
    """
    if isinstance(expected, str) and isinstance(found, str):
        return expected == found
    if isinstance(found, str):
        return is_same_text(expected, found)
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(is_same(expected.get(name), found.get(name)) for name in {*expected, *found})
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(is_same, expected, found))
    if is_void(expected):
        return is_void(found)
    if isinstance(expected, str) and found is not None:
        return _is_guessed(expected, found)
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, float) and math.isnan(expected):
        return isinstance(found, float) and math.isnan(found)
    return bool(expected == found)


def is_void(value: Any) -> bool:
    """Return whether a value is null, or a list or struct of nothing else."""
    if isinstance(value, dict):
        return all(map(is_void, value.values()))
    return value is None or (isinstance(value, list) and all(map(is_void, value)))


def is_same_text(expected: Any, text: str) -> bool:
    """Return whether `text` is how a text column holds `expected`, which is not a text."""
    if isinstance(expected, dict | list):
        return is_same(expected, json.loads(text))
    if isinstance(expected, bool):
        return text == str(expected).lower()
    if isinstance(expected, float):
        return is_same(expected, float(text))
    if isinstance(expected, bytes):
        return text == expected.decode(errors="backslashreplace")
    return text == str(expected)


def _is_guessed(text: str, found: Any) -> bool:
    """Return whether a reader that guesses types may take `text` for `found`."""
    if isinstance(found, bool):
        return text.strip().lower() in (("true", "1") if found else ("false", "0"))
    if isinstance(found, int):
        # Decimal, not int: a column of integers takes the guessed number 0.0 as 0.
        return Decimal(text) == found
    if isinstance(found, float):
        return is_same(float(text), found)
    if isinstance(found, datetime):
        return datetime.fromisoformat(text).replace(tzinfo=UTC) == found
    return isinstance(found, date) and date.fromisoformat(text) == found
