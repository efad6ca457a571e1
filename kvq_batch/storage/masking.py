"""Masks secrets in rows before they are stored: the one function that the rows of all tables and exported files pass.

The writer of the tables calls it. The catalog calls it for ids and further columns too, because a video must have the
same id in the plan and in the tables, and for addresses when it looks for changes: a new signature is not a change.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvq_batch.storage.options import display_uri, is_local, is_s3
from kvq_batch.storage.redact import DataMask

_ADDRESSES = ("uri", "rendition_uri")
_MESSAGES = ("message",)


def mask_rows(table: pa.Table, keep: tuple[str, ...] = ()) -> pa.Table:
    """Return `table` with the secrets in all its texts masked, also in nested ones; the columns `keep` are unchanged.

    A text that is an address loses its user information and its signature. Binary columns are not searched.
    """
    mask = DataMask.of_this_process()
    for index, name in enumerate(table.column_names):
        if name not in keep and _has_text(table.schema.field(index).type):
            column = table.column(index)
            masked = _mask_column(column, name, mask)
            if masked is not column:
                table = table.set_column(index, table.schema.field(index), masked)
    return table


def _has_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _has_text(kind.value_type)
    return (
        types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        or any(_has_text(kind.field(index).type) for index in range(kind.num_fields))
    )  # fmt: skip


def _mask_column(column: pa.ChunkedArray, name: str, mask: DataMask) -> pa.ChunkedArray:
    """Return the column with its secrets masked; the same object if it has none."""
    if not pa.types.is_string(column.type):
        values = column.to_pylist()
        masked = [_mask_value(value, name, mask) for value in values]
        return column if masked == values else pa.chunked_array([pa.array(masked, column.type)])
    if name in _MESSAGES:
        return pa.chunked_array([pa.array([_mask_value(text, name, mask) for text in column.to_pylist()], column.type)])
    # Few rows have a secret, and only those are processed in Python: first their signatures, then what is left.
    unsigned = _replace(column, mask.pattern, lambda text: _without_signature(text, name))
    return column if unsigned is column else _replace(unsigned, mask.pattern, lambda text: _mask_text(text, name, mask))


def _replace(column: pa.ChunkedArray, pattern: str, replacement: Callable[[str], str]) -> pa.ChunkedArray:
    found = pc.fill_null(pc.match_substring_regex(column, pattern=pattern), False)
    if not pc.any(found).as_py():
        return column
    values = pa.array([replacement(text) for text in pc.filter(column, found).to_pylist()], pa.string())
    return pa.chunked_array([pc.replace_with_mask(column.combine_chunks(), found.combine_chunks(), values)])


def _mask_value(value: Any, name: str, mask: DataMask) -> Any:
    if isinstance(value, str):
        return _mask_text(_without_signature(value, name), name, mask)
    if isinstance(value, dict):
        return {key: _mask_value(item, key, mask) for key, item in value.items()}
    if isinstance(value, list):
        return [_mask_value(item, name, mask) for item in value]
    if isinstance(value, tuple):
        return tuple(_mask_value(item, name, mask) for item in value)
    return value


def _without_signature(text: str, name: str) -> str:
    is_address = name in _ADDRESSES or not any(map(str.isspace, text))
    return display_uri(text) if is_address else text


def _mask_text(text: str, name: str, mask: DataMask) -> str:
    if name in _MESSAGES:
        return mask.message(text)
    # '?' and '@' are ordinary characters in keys of S3 and in paths, and an address must stay usable.
    if is_s3(text) or (name in _ADDRESSES and is_local(text)):
        return mask.values(text)
    return mask.text(text)
