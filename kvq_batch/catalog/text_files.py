"""Reads rows of CSV and JSONL files. Arrow guesses the types; columns that are text elsewhere are read as text.

Arrow accepts more than a catalog can mean: bytes that are not UTF-8 become binary columns, and a header with another
delimiter becomes one column. Such files are either read as they were meant, or rejected with a sentence that names what
is wrong.
"""

import codecs
import csv
import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from kvq_batch.domain.column_types import TEXT, convert, fold_name, merge_types, storable_type
from kvq_batch.domain.errors import SpecError

KnownTypes = Mapping[str, pa.DataType]
"""Types of columns in the table, by their folded names (`fold_name`)."""

_BLOCK_BYTES = 16 * 2**20
_HEAD_BYTES = 2**20
_DELIMITERS = ",;\t|"
_SAVE = "save the file as UTF-8"


def read_csv(file: Any, name: str, known: KnownTypes) -> pa.Table:
    """Return the rows of a CSV file. The delimiter (, ; tab |) is the one that gives most known columns.

    Raises:
        SpecError: with `name`: the file is not text in UTF-8 or UTF-16.
        ArrowInvalid: a row does not have the columns of the header.
    """
    file, start = _text(file, name)
    header, delimiter = _header(file.read(_HEAD_BYTES), name, known)
    texts = [column for column in header if _is_text(known.get(fold_name(column)))]
    file.seek(start)
    table = _parse_csv(file, delimiter, texts)
    # What is stored as text is stored as written in the file.
    more = [field.name for field in table.schema if _becomes_text(field.type, known.get(fold_name(field.name)))]
    if more:
        file.seek(start)
        table = _parse_csv(file, delimiter, [*texts, *more])
    for field in table.schema:
        if pa.types.is_binary(field.type):
            row = next(i for i, value in enumerate(table[field.name].to_pylist(), 1) if not _is_utf8(value))
            raise SpecError(f"{name}: column {field.name!r} is not UTF-8 in row {row} (Latin-1?); {_SAVE}")
    return table


def _becomes_text(guessed: pa.DataType, known: pa.DataType | None) -> bool:
    """Return whether a column is stored as text, although its values look like something else."""
    if pa.types.is_string(guessed) or pa.types.is_binary(guessed):
        return False
    kinds = [storable_type(kind) or pa.null() for kind in (guessed, known or pa.null())]
    return bool(merge_types(*kinds) == TEXT)


def _parse_csv(file: Any, delimiter: str, texts: list[str]) -> pa.Table:
    return pyarrow.csv.read_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        # Keys of object stores may contain line breaks.
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        # Only an empty field is null: a film may have the title "NA".
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(texts, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )


def read_jsonl(file: Any, name: str, known: KnownTypes) -> pa.Table:
    """Return the rows of a file of JSON objects.

    Raises:
        SpecError: with `name`: the file is not text in UTF-8 or UTF-16, or does not begin with an object.
        ArrowInvalid: a value is not valid JSON, or has another type than the values before it.
    """
    file, start = _text(file, name)
    head = file.read(_HEAD_BYTES).lstrip()
    # Arrow crashes on a file of nulls.
    if head and not head.startswith(b"{"):
        raise SpecError(f"{name}: expected JSON objects, one per line, found {head[:1].decode(errors='replace')!r}")
    file.seek(start)
    table = _parse_json(file, None)
    # Arrow takes texts for times if all of them look like times. While it guesses the types of items, it drops nulls
    # at the start of lists. So it parses again, with types in place of guesses and of null types.
    meant = {field.name: _without_times(field.type, known.get(fold_name(field.name))) for field in table.schema}
    parsed = pa.schema([(name, _without_nulls(kind)) for name, kind in meant.items()])
    if parsed == table.schema and not any(map(_has_list, table.schema.types)):
        return table
    file.seek(start)
    table = _parse_json(file, parsed)
    return pa.table({name: convert(table[name], kind) for name, kind in meant.items()})


def _has_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or (pa.types.is_struct(kind) and any(_has_list(field.type) for field in kind))


def _parse_json(file: Any, schema: pa.Schema | None) -> pa.Table:
    return pyarrow.json.read_json(
        file,
        pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        pyarrow.json.ParseOptions(explicit_schema=schema, newlines_in_values=True),
    )


def _without_times(found: pa.DataType, known: pa.DataType | None) -> pa.DataType:
    """Return `found` with text in place of the times that are text in `known`."""
    types = pa.types
    if known is None:
        return found
    if types.is_timestamp(found) and types.is_string(known):
        return known
    if types.is_list(found) and types.is_list(known):
        return pa.list_(_without_times(found.value_type, known.value_type))
    if types.is_struct(found) and types.is_struct(known):
        theirs = {field.name: field.type for field in known}
        return pa.struct([(field.name, _without_times(field.type, theirs.get(field.name))) for field in found])
    return found


def _without_nulls(found: pa.DataType) -> pa.DataType:
    """Return `found` with text in place of the null types in lists and structs."""
    types = pa.types
    if types.is_list(found):
        return pa.list_(pa.string() if types.is_null(found.value_type) else _without_nulls(found.value_type))
    if types.is_struct(found):
        kinds = {field.name: field.type for field in found}
        return pa.struct(
            [(name, pa.string() if types.is_null(kind) else _without_nulls(kind)) for name, kind in kinds.items()]
        )
    return found


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and pa.types.is_string(kind)


def _text(file: Any, name: str) -> tuple[Any, int]:
    """Return `file`, or its text in UTF-8, positioned after a byte order mark, and that position."""
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if head.startswith(codecs.BOM_UTF8):
        file.seek(len(codecs.BOM_UTF8))
        return file, len(codecs.BOM_UTF8)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return io.BytesIO(file.read().decode("utf-16").encode()), 0
        except UnicodeError as error:
            raise SpecError(f"{name}: is not valid UTF-16: {error}; {_SAVE}") from error
    if b"\0" in head:
        raise SpecError(f"{name}: has NUL bytes, so it is not text in UTF-8; {_SAVE}")
    return file, 0


def _header(head: bytes, name: str, known: KnownTypes) -> tuple[list[str], str]:
    """Return the names in the header of a CSV file, and its delimiter."""

    def num_known(delimiter: str) -> int:
        return sum(fold_name(column) in known for column in headers[delimiter])

    text = head.decode(errors="surrogateescape")
    headers = {}
    for delimiter in _DELIMITERS:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            headers[delimiter] = next((row for row in rows if row), [])
        except csv.Error as error:
            raise SpecError(f"{name}: the header cannot be read: {error}") from error
    delimiter = max(_DELIMITERS, key=num_known)
    for number, column in enumerate(headers[delimiter], 1):
        if not _is_encodable(column):
            raise SpecError(f"{name}: the name of column {number} is not UTF-8 (Latin-1?); {_SAVE}")
    return headers[delimiter], delimiter


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _is_encodable(text: str) -> bool:
    try:
        return text.encode() is not None
    except UnicodeEncodeError:
        return False
