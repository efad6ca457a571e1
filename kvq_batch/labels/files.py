"""Label lists: read them, and find the video of each label by exact names.

    table         .csv, .parquet, .jsonl, .ndjson: columns for the video and the label; others are kept as text
    four fields   `file, -1, -1, mos` without a header, as the KVQ and FAST-VQA code reads (KVQ_SPEC section 5)

One bad row rejects the whole list, with file and line: a label that is silently left out, or assigned to the wrong
video, is worse than none. A label is matched to a video by the first of these rules that fits:

    1  the label's name is the video's id (or its key, if a catalog column is given)
    2  the file names are equal
    3  the file names without extension are equal
    4  the label's name is the id with '-' for every '/', as the lists of LSVQ write it

An ambiguous label is not matched, and similar names never are. (The published code silently takes the closest file
name, KVQ_SPEC section 5.)
"""

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.listing import VIDEO_EXTENSIONS
from kvq_batch.storage.objects import read_file
from kvq_batch.storage.options import StorageOptions, display_uri, translate_storage_errors
from kvq_batch.storage.redact import summarize_error

ID_COLUMNS = ("video_id", "file", "file_name", "filename", "name", "video", "video_name", "path", "uri", "flickr_id")
LABEL_COLUMNS = ("mos", "label", "mean_opinion_score", "vmaf", "score", "rating")
"""Default names of the two columns; the first one present is used."""

EXTENSIONS = ("csv", "txt", "parquet", "jsonl", "ndjson")
_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*"
_FOUR_FIELDS = re.compile(rf".+,{_NUMBER},{_NUMBER},{_NUMBER}")

# Position of a row in its file, for messages, and its fields by column.
_Rows = Iterator[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Scale:
    """The lowest and the highest label that a study allows."""

    low: float
    high: float

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse text such as "0..100".

        Raises:
            SpecError: the text is not two numbers, the lower one first.
        """
        try:
            low, high = (float(end) for end in text.split(".."))
        except ValueError as error:
            raise SpecError(
                f"Invalid scale {text!r}: expected the lowest and the highest label, such as 0..100 or 1..5"
            ) from error
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise SpecError(
                f"Invalid scale {text!r}: the lowest label must be below the highest, and both must be finite"
            )
        return cls(low, high)

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of one data set: names of the videos as listed, values, and all columns as text.

    `summary` is one sentence for messages: how many labels, from which columns. `columns` holds all columns of a table
    by name; a missing value is None.
    """

    dataset: str
    names: tuple[str, ...]
    values: NDArray[np.float64]
    columns: Mapping[str, Sequence[str | None]]
    summary: str

    def column(self, name: str) -> Sequence[str | None] | None:
        """Return the column `name`, ignoring case; None if there is none."""
        return next((values for known, values in self.columns.items() if known.casefold() == name.casefold()), None)


def read_labels(
    source: str,
    options: StorageOptions | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    scale: Scale | None = None,
) -> Labels:
    """Return all labels of the list at `source`.

    Raises:
        SpecError: the list cannot be read, is empty or has an unknown format; a row has no video or no label; a label
            is not a finite number or is outside `scale`; a video is listed twice. The message names the line.
    """
    shown = display_uri(source)
    extension = source.rpartition("/")[2].rpartition(".")[2].lower()
    if extension not in EXTENSIONS:
        raise SpecError(
            f"{shown}: unknown extension; a list of labels ends in {', '.join(f'.{name}' for name in EXTENSIONS)}"
        )
    content = _content(source, options or StorageOptions())
    lines = [] if extension == "parquet" else _text(shown, content).splitlines()
    if extension in ("csv", "txt") and lines and _FOUR_FIELDS.fullmatch(lines[0]):
        if id_column or label_column:
            raise SpecError(f"{shown}: a list of four fields has no column names; remove the column options")
        id_column, label_column = "file", "mos"
        rows, form = _four_fields(shown, lines), "four fields a line (file, -1, -1, mos)"
    elif extension == "txt":
        raise SpecError(f"{shown}: line 1 is not `file, -1, -1, mos`; use the extension .csv for a table with a header")
    else:
        columns, rows = _table(shown, extension, content, lines)
        id_column = _chosen(shown, columns, id_column, ID_COLUMNS, "--id-column")
        label_column = _chosen(shown, columns, label_column, LABEL_COLUMNS, "--mos-column")
        form = f"videos by column {id_column!r}, labels by column {label_column!r}"
    return _checked(source, rows, id_column, label_column, scale, form)


def dataset_name(source: str) -> str:
    """Return the name of the file, or of its folder if the file is just called labels, mos or scores."""
    *folders, file = [part for part in re.split(r"[/\\]", display_uri(source)) if part]
    stem = file.rpartition(".")[0] or file
    return folders[-1] if folders and stem in ("labels", "mos", "scores") else stem


def _content(source: str, options: StorageOptions) -> bytes:
    with translate_storage_errors(source):
        return read_file(source, options)


def _text(shown: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SpecError(f"{shown}: line {line} is not UTF-8; store the list as UTF-8") from error


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
            raise SpecError(f"{shown}: cannot be read as Parquet: {summarize_error(error, 200)}") from error
        return table.column_names, ((f"row {n}", row) for n, row in enumerate(table.to_pylist(), 1))
    if extension == "csv":
        reader = csv.reader(io.StringIO("\n".join(lines)))
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header):
            raise SpecError(f"{shown}: duplicate column name in {', '.join(header)}; rename one")
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
            raise SpecError(f"{shown}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise SpecError(f"{shown}: line {number} is not a JSON object; write one object per line")
        yield f"line {number}", row


def _chosen(shown: str, columns: Sequence[str], asked: str | None, known: Sequence[str], option: str) -> str:
    """Return the column of the file that is `asked` for, or the first of the `known` names."""
    for wanted in known if asked is None else (asked,):
        for column in columns:
            if column.casefold() == wanted.casefold():
                return column
    there = ", ".join(columns) or "none"
    sought = repr(asked) if asked is not None else f"called {', '.join(known)}"
    raise SpecError(f"{shown}: no column {sought}; set it with {option}. Columns: {there}")


def _checked(source: str, rows: _Rows, id_column: str, label_column: str, scale: Scale | None, form: str) -> Labels:
    shown = display_uri(source)
    names: list[str] = []
    values: list[float] = []
    positions: dict[str, str] = {}
    columns: dict[str, list[str | None]] = {}
    for position, row in rows:
        name = "" if row.get(id_column) is None else str(row[id_column]).strip()
        if not name:
            raise SpecError(f"{shown}: {position} has no video name; add it or remove the row")
        if name in positions:
            raise SpecError(f"{shown}: {name!r} is listed twice, at {positions[name]} and {position}; keep one of them")
        for column, value in row.items():
            columns.setdefault(column, [None] * len(names)).append(None if value is None else str(value))
        positions[name] = position
        names.append(name)
        values.append(_value(f"{shown}: {position} ({name!r})", row.get(label_column), scale))
        for column in columns.keys() - row.keys():
            columns[column].append(None)
    if not names:
        raise SpecError(f"{shown}: the list is empty")
    return Labels(dataset_name(source), tuple(names), np.array(values), columns, f"{len(names)} labels; {form}")


def _value(where: str, value: Any, scale: Scale | None) -> float:
    if value is None:
        raise SpecError(f"{where} has no label; add it or remove the row")
    try:
        label = float(value)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{where}: {value!r} is not a number") from error
    if not math.isfinite(label):
        raise SpecError(f"{where}: {value} is not a finite number; remove the row")
    if scale is not None and not scale.low <= label <= scale.high:
        raise SpecError(f"{where}: {label:g} is outside the scale {scale}; correct the scale or the label")
    return label


RULES = ("video id", "file name", "file name without extension", "id with '-' for '/'")


@dataclass(frozen=True, slots=True)
class NamedVideo:
    """A video of the catalog with all names that a label may use."""

    video_id: str
    uri: str
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """Result of `match_labels`.

    `video_of` is the video id of each label, or None. `by_rule` counts matches by rule. `unmatched` holds
    (label, reason). `num_unlabelled` videos have no label; `unlabelled` holds the first of them.
    """

    video_of: tuple[str | None, ...]
    by_rule: dict[str, int]
    unmatched: tuple[tuple[str, str], ...]
    num_unlabelled: int
    unlabelled: tuple[str, ...]


def match_labels(names: Sequence[str], videos: Sequence[NamedVideo], by_key: bool = False, shown: int = 5) -> Matching:
    """Return the video of each label; with `by_key`, match the videos' keys only."""
    video_of: list[str | None] = [None] * len(names)
    reasons: dict[int, str] = {}
    taken: set[str] = set()
    by_rule: dict[str, int] = {}
    if by_key:
        rules: list[tuple[str, Callable[[str], str], Callable[[NamedVideo], str | None]]] = [
            ("key", lambda name: name, lambda video: video.key)
        ]
    else:
        rules = list(zip(RULES, _OF_LABEL, _OF_VIDEO, strict=True))
    for rule, of_label, of_video in rules:
        open_indices = [index for index, video_id in enumerate(video_of) if video_id is None]
        if not open_indices:
            break
        of_labels = Counter(map(of_label, names))
        by_name: dict[str, list[str]] = {}
        for video in videos:
            name = of_video(video)
            if name is not None:
                by_name.setdefault(name, []).append(video.video_id)
        for index in open_indices:
            name = of_label(names[index])
            found = by_name.get(name, [])
            if len(found) > 1:
                reasons.setdefault(
                    index, f"{len(found)} videos have this {rule}, such as {found[0]!r} and {found[1]!r}"
                )
            elif found and of_labels[name] > 1:
                reasons.setdefault(index, f"{of_labels[name]} labels have this {rule}")
            elif found and found[0] in taken:
                reasons.setdefault(index, f"video {found[0]!r} already has another label")
            elif found:
                video_of[index] = found[0]
                taken.add(found[0])
                by_rule[rule] = by_rule.get(rule, 0) + 1
    unmatched = tuple(
        (name, reasons.get(index, "no such video"))
        for index, (name, video_id) in enumerate(zip(names, video_of, strict=True))
        if video_id is None
    )
    unlabelled = [video.video_id for video in videos if video.video_id not in taken]
    return Matching(tuple(video_of), by_rule, unmatched, len(unlabelled), tuple(unlabelled[:shown]))


def _file(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _stem(path: str) -> str:
    """Return the file name without the extension of a video; other dots belong to the name."""
    stem, dot, extension = _file(path).rpartition(".")
    return stem if dot and extension.lower() in VIDEO_EXTENSIONS else _file(path)


# In the order of RULES.
_OF_LABEL: tuple[Callable[[str], str], ...] = (str, _file, _stem, str)
_OF_VIDEO: tuple[Callable[[NamedVideo], str | None], ...] = (
    lambda video: video.video_id,
    lambda video: _file(video.uri),
    lambda video: _stem(video.uri),
    lambda video: video.video_id.replace("/", "-"),
)
