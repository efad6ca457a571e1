"""Lists of labels, in the forms in which data sets come: tables with a header, JSON lines, and the four-field list.

    table         .csv, .parquet, .jsonl, .ndjson: a column names the video, one holds the label, the others may group
    four fields   `file, -1, -1, mos` without a header, as the KVQ and FAST-VQA code reads (KVQ_SPEC section 5)

A list that is wrong anywhere is refused with file and line: a label that is silently left out, or belongs to another
video, is worse than none. This module finds no video; `label_matching` does.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import StorageOptions, display_uri, filesystem, translate_storage_errors
from kvq_batch.storage.redact import summarize_error

ID_COLUMNS = ("video_id", "file", "file_name", "filename", "name", "video", "video_name", "path", "uri", "flickr_id")
LABEL_COLUMNS = ("mos", "label", "mean_opinion_score", "vmaf", "score", "rating")
"""Names that are taken for the two columns where none is named, the first that is there."""

EXTENSIONS = ("csv", "txt", "parquet", "jsonl", "ndjson")
_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*"
_FOUR_FIELDS = re.compile(rf".+,{_NUMBER},{_NUMBER},{_NUMBER}")

# Place of a row in its file, for people, and its fields by column.
_Rows = Iterator[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Scale:
    """The lowest and the highest label that a study allows."""

    low: float
    high: float

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Reads "0..100". Raises: SpecError."""
        try:
            low, high = (float(end) for end in text.split(".."))
        except ValueError as error:
            raise SpecError(f"scale {text!r}: write the lowest and the highest label, as 0..100 or 1..5") from error
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SpecError(f"scale {text!r}: the lowest label must be below the highest, both finite")
        return cls(low, high)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True, slots=True)
class Labels:
    """One data set: its videos as the list names them, the label of each, and further columns as text.

    `summary` says how the list was read. `columns` holds all columns of a table by name, null where a row has none.
    """

    dataset: str
    names: tuple[str, ...]
    values: NDArray[np.float64]
    columns: Mapping[str, Sequence[str | None]]
    summary: str

    def column(self, name: str) -> Sequence[str | None] | None:
        """The further column of that name, whatever its case; None where there is none."""
        return next((values for known, values in self.columns.items() if known.casefold() == name.casefold()), None)


def read_labels(
    source: str,
    options: StorageOptions | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    scale: Scale | None = None,
) -> Labels:
    """All labels of the list at `source`.

    Raises:
        SpecError: a list that is out of reach, empty or of no known form, a row without video or label, a label that
            is no finite number or outside `scale`, a video that stands twice. The line is named.
    """
    shown = display_uri(source)
    extension = source.rpartition("/")[2].rpartition(".")[2].lower()
    if extension not in EXTENSIONS:
        raise SpecError(f"{shown}: a list of labels ends in {', '.join(f'.{name}' for name in EXTENSIONS)}; rename it")
    content = _content(source, options or StorageOptions())
    lines = [] if extension == "parquet" else _text(shown, content).splitlines()
    if extension in ("csv", "txt") and lines and _FOUR_FIELDS.fullmatch(lines[0]):
        if id_column or label_column:
            raise SpecError(f"{shown}: a list of four fields has no column names; leave the columns out")
        id_column, label_column = "file", "mos"
        rows, form = _four_fields(shown, lines), "four fields a line (file, -1, -1, mos)"
    elif extension == "txt":
        raise SpecError(f"{shown}: line 1 is not `file, -1, -1, mos`; name a table with a header .csv")
    else:
        columns, rows = _table(shown, extension, content, lines)
        id_column = _chosen(shown, columns, id_column, ID_COLUMNS, "--id-column")
        label_column = _chosen(shown, columns, label_column, LABEL_COLUMNS, "--mos-column")
        form = f"videos by column {id_column!r}, labels by column {label_column!r}"
    return _checked(source, rows, id_column, label_column, scale, form)


def dataset_name(source: str) -> str:
    """What a data set is called: its file's name, or its folder's where the file is just called labels."""
    *folders, file = [part for part in re.split(r"[/\\]", display_uri(source)) if part]
    stem = file.rpartition(".")[0] or file
    return folders[-1] if folders and stem in ("labels", "mos", "scores") else stem


def _content(source: str, options: StorageOptions) -> bytes:
    with translate_storage_errors(source):
        file_system, path = filesystem(source, options)
        with file_system.open(path, "rb") as file:
            content: bytes = file.read()
    return content


def _text(shown: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SpecError(f"{shown}: line {line} is no UTF-8; store the list as UTF-8") from error


def _four_fields(shown: str, lines: Sequence[str]) -> _Rows:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not _FOUR_FIELDS.fullmatch(line):
            raise SpecError(f"{shown}: line {number} is not `file, -1, -1, mos`: {line[:80]!r}")
        # File names may hold commas, numbers do not.
        file, _, _, mos = line.rsplit(",", 3)
        yield f"line {number}", {"file": file.strip(), "mos": mos}


def _table(shown: str, extension: str, content: bytes, lines: Sequence[str]) -> tuple[Sequence[str], _Rows]:
    if extension == "parquet":
        try:
            table = pq.read_table(io.BytesIO(content))
        except pa.ArrowException as error:
            raise SpecError(f"{shown}: no readable Parquet file: {summarize_error(error, 200)}") from error
        return table.column_names, ((f"row {n}", row) for n, row in enumerate(table.to_pylist(), 1))
    if extension == "csv":
        reader = csv.reader(io.StringIO("\n".join(lines)))
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header):
            raise SpecError(f"{shown}: a column name stands twice in {', '.join(header)}; rename one")
        return header, _csv_rows(shown, header, reader)
    rows = list(_json_rows(shown, lines))
    return list(dict.fromkeys(name for _, row in rows for name in row)), iter(rows)


def _csv_rows(shown: str, header: Sequence[str], reader: Any) -> _Rows:
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(header):
            raise SpecError(f"{shown}: line {reader.line_num} has {len(fields)} fields, the header {len(header)}")
        yield f"line {reader.line_num}", {name: value or None for name, value in zip(header, fields, strict=True)}


def _json_rows(shown: str, lines: Sequence[str]) -> _Rows:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SpecError(f"{shown}: line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise SpecError(f"{shown}: line {number} is no JSON object; write one object a line")
        yield f"line {number}", row


def _chosen(shown: str, columns: Sequence[str], asked: str | None, known: Sequence[str], option: str) -> str:
    """The column of the file that is meant."""
    for wanted in known if asked is None else (asked,):
        for column in columns:
            if column.casefold() == wanted.casefold():
                return column
    there = ", ".join(columns) or "none"
    sought = repr(asked) if asked is not None else f"called {', '.join(known)}"
    raise SpecError(f"{shown}: no column {sought}; name it with {option}. There are: {there}")


def _checked(source: str, rows: _Rows, id_column: str, label_column: str, scale: Scale | None, form: str) -> Labels:
    shown = display_uri(source)
    names: list[str] = []
    values: list[float] = []
    places: dict[str, str] = {}
    columns: dict[str, list[str | None]] = {}
    for place, row in rows:
        name = "" if row.get(id_column) is None else str(row[id_column]).strip()
        if not name:
            raise SpecError(f"{shown}: {place} names no video; fill it in or leave the row out")
        if name in places:
            raise SpecError(f"{shown}: {name!r} stands twice, at {places[name]} and {place}; keep one label of it")
        for column, value in row.items():
            columns.setdefault(column, [None] * len(names)).append(None if value is None else str(value))
        places[name] = place
        names.append(name)
        values.append(_value(f"{shown}: {place} ({name!r})", row.get(label_column), scale))
        for column in columns.keys() - row.keys():
            columns[column].append(None)
    if not names:
        raise SpecError(f"{shown}: the list has no label")
    return Labels(dataset_name(source), tuple(names), np.array(values), columns, f"{len(names)} labels; {form}")


def _value(where: str, value: Any, scale: Scale | None) -> float:
    if value is None:
        raise SpecError(f"{where} has no label; fill it in or leave the row out")
    try:
        label = float(value)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{where}: {value!r} is no number") from error
    if not math.isfinite(label):
        raise SpecError(f"{where}: {value} is no finite number; leave the row out")
    if scale is not None and not scale.low <= label <= scale.high:
        raise SpecError(f"{where}: {label:g} is outside the scale {scale}; correct the scale or the label")
    return label
