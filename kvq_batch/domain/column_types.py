"""Types of catalog columns: which type a table stores, how two types merge, and conversion without loss.

The type of a column that a user made may change from night to night: a CSV reader guesses it, and JSON objects gain
fields. Delta stores one type per column, so two types are merged into one that holds all values of both. If there is
none, the column is stored as text: scalars as Arrow writes them, lists, maps and structs as JSON.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

TEXT = pa.string()

ARROW_COLUMNS = ("__filename", "__fragment_index", "__batch_index", "__last_in_fragment")
"""Columns that Arrow adds to every dataset. Reading a dataset with a column of one of these names fails."""

_MAX_DIGITS = 38
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 19}
"""Decimal digits of signed integers, by their bits."""


class LossyConversionError(Exception):
    """Values of one type cannot be converted to another type without changing them."""


def fold_name(name: str) -> str:
    """Return `name` in the form in which DuckDB and Delta compare names: without case."""
    return name.lower()


def is_usable_name(name: str) -> bool:
    """Return whether Delta and DuckDB can hold a column or field of this name: not empty, and no NUL character."""
    return name != "" and "\0" not in name


def is_readable_column(name: str) -> bool:
    """Return whether a dataset can have a column of this name."""
    return is_usable_name(name) and name not in ARROW_COLUMNS


def same_type(one: pa.DataType, other: pa.DataType) -> bool:
    """Return whether two types are equal, ignoring the names that writers give to the items of lists and maps."""
    types = pa.types
    if types.is_list(one) and types.is_list(other):
        return same_type(one.value_type, other.value_type)
    if types.is_map(one) and types.is_map(other):
        return same_type(one.key_type, other.key_type) and same_type(one.item_type, other.item_type)
    if types.is_struct(one) and types.is_struct(other):
        return [f.name for f in one] == [f.name for f in other] and all(
            same_type(mine.type, theirs.type) for mine, theirs in zip(one, other, strict=True)
        )
    return bool(one.equals(other))


def storable_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type in which a Delta table stores values of type `kind`; None if no value decides the type yet.

    Null types have no counterpart: empty lists, and fields that are always null, are left out until they have a value.

    Raises:
        LossyConversionError: there is no such type.
    """
    types = pa.types
    if types.is_null(kind):
        return None
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return storable_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return storable_type(kind.storage_type) if _is_text(kind.storage_type) else TEXT
    if _is_list(kind):
        item = storable_type(kind.value_type)
        return None if item is None else pa.list_(item)
    if types.is_map(kind):
        key, item = storable_type(kind.key_type), storable_type(kind.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if types.is_struct(kind):
        return _storable_struct(kind)
    for matches, stored in _SCALARS:
        if matches(kind):
            return stored(kind)
    raise LossyConversionError(f"a Delta table cannot store {kind}")


def _storable_struct(kind: pa.StructType) -> pa.DataType | None:
    if not _are_usable_fields(kind):
        return TEXT
    fields = [(field.name, storable_type(field.type)) for field in kind]
    known = [(name, stored) for name, stored in fields if stored is not None]
    return pa.struct(known) if known else None


def _are_usable_fields(fields: Sequence[pa.Field]) -> bool:
    """Return whether a struct can have these fields: Parquet needs one, and names must be distinct without case."""
    names = [field.name for field in fields]
    return bool(names) and all(map(is_usable_name, names)) and len({fold_name(name) for name in names}) == len(names)


def _is_text(kind: pa.DataType) -> bool:
    return any(matches(kind) for matches in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    matching = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(matches(kind) for matches in matching)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    matching = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    return any(matches(kind) for matches in matching)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _signed(kind: pa.DataType) -> pa.DataType:
    return {8: pa.int16(), 16: pa.int32()}.get(kind.bit_width, pa.int64())


def _decimal(kind: pa.DataType) -> pa.DataType:
    is_plain = kind.precision <= _MAX_DIGITS and 0 <= kind.scale <= kind.precision
    return pa.decimal128(kind.precision, kind.scale) if is_plain else TEXT


_SCALARS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType], pa.DataType]], ...] = (
    (pa.types.is_boolean, lambda kind: kind),
    (pa.types.is_signed_integer, lambda kind: kind),
    (pa.types.is_unsigned_integer, _signed),
    (pa.types.is_float16, lambda kind: pa.float32()),
    (pa.types.is_floating, lambda kind: kind),
    (pa.types.is_decimal, _decimal),
    (_is_text, lambda kind: TEXT),
    (_is_bytes, lambda kind: pa.binary()),
    (pa.types.is_date, lambda kind: pa.date32()),
    (pa.types.is_timestamp, lambda kind: pa.timestamp("us", tz="UTC")),
    (pa.types.is_time, lambda kind: TEXT),
)
"""Stored type of each scalar type. Delta has no unsigned integers and no times of day; times are in UTC."""


def merge_types(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the smallest storable type that can hold values of both types; text if there is no other.

    Structs get the fields of both, those of `one` first. Whether a conversion loses no value depends on the values.
    """
    types = pa.types
    if types.is_null(one) or types.is_null(other):
        return other if types.is_null(one) else one
    if same_type(one, other):
        return one
    if types.is_integer(one) and types.is_integer(other):
        return max(one, other, key=lambda kind: kind.bit_width)
    if _is_number(one) and _is_number(other):
        return pa.float64()
    if any(map(types.is_decimal, (one, other))):
        return _merge_decimals(one, other)
    if all(types.is_date32(kind) or types.is_timestamp(kind) for kind in (one, other)):
        return pa.timestamp("us", tz="UTC")
    if types.is_list(one) and types.is_list(other):
        return pa.list_(merge_types(one.value_type, other.value_type))
    if types.is_map(one) and types.is_map(other):
        return pa.map_(merge_types(one.key_type, other.key_type), merge_types(one.item_type, other.item_type))
    if types.is_struct(one) and types.is_struct(other):
        return _merge_structs(one, other)
    return TEXT


def _merge_decimals(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    sizes = []
    for kind in (one, other):
        if pa.types.is_decimal(kind):
            sizes.append((kind.precision - kind.scale, kind.scale))
        elif pa.types.is_integer(kind):
            sizes.append((_DIGITS[kind.bit_width], 0))
        else:
            return TEXT
    scale = max(size[1] for size in sizes)
    digits = max(size[0] for size in sizes) + scale
    return pa.decimal128(digits, scale) if digits <= _MAX_DIGITS else TEXT


def _merge_structs(one: pa.StructType, other: pa.StructType) -> pa.DataType:
    theirs = {field.name: field.type for field in other}
    fields = [pa.field(f.name, merge_types(f.type, theirs.pop(f.name, pa.null()))) for f in one]
    fields += [pa.field(name, kind) for name, kind in theirs.items()]
    return pa.struct(fields) if _are_usable_fields(fields) else TEXT


def convert(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return `values` as `kind`, a storable type. Fields of structs that `values` lacks are null.

    Raises:
        LossyConversionError: a value does not fit into `kind`.
    """
    try:
        return pa.chunked_array([_convert(chunk, kind) for chunk in values.chunks], kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OverflowError) as error:
        raise LossyConversionError(str(error)) from error


def _convert(array: pa.Array, kind: pa.DataType) -> pa.Array:
    found, types = array.type, pa.types
    if array.null_count == len(array):
        return pa.nulls(len(array), kind)
    if found == kind:
        return array
    if types.is_dictionary(found):
        return _convert(array.dictionary_decode(), kind)
    if types.is_run_end_encoded(found):
        return _convert(pc.run_end_decode(array), kind)
    if types.is_string(kind):
        return _to_text(array)
    if _is_list(found) and types.is_list(kind):
        return _convert_list(array, kind)
    if types.is_map(found) and types.is_map(kind):
        return _convert_map(array, kind)
    if types.is_struct(found) and types.is_struct(kind):
        return _convert_struct(array, kind)
    if not _can_cast(found, kind):
        raise LossyConversionError(f"{found} does not fit into {kind}")
    return array.cast(kind)


def _can_cast(found: pa.DataType, kind: pa.DataType) -> bool:
    """Return whether Arrow casts `found` to `kind` without changing a value, or raises ArrowInvalid."""
    types = pa.types
    if types.is_floating(found) and types.is_floating(kind):
        return bool(found.bit_width <= kind.bit_width)
    return (
        (_is_number(found) and _is_number(kind))
        or (types.is_integer(found) and types.is_decimal(kind))
        or (types.is_decimal(found) and types.is_decimal(kind))
        or (_is_bytes(found) and types.is_binary(kind))
        or (types.is_date(found) and (types.is_date32(kind) or types.is_timestamp(kind)))
        or (types.is_timestamp(found) and types.is_timestamp(kind))
    )


def _convert_list(array: pa.Array, kind: pa.DataType) -> pa.Array:
    items = _convert(array.flatten(), kind.value_type)
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    ends = pc.cumulative_sum(lengths).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    return pa.ListArray.from_arrays(offsets, items, type=kind, mask=array.is_null())


def _convert_map(array: pa.Array, kind: pa.DataType) -> pa.Array:
    # A copy: the children of a slice are those of the whole array.
    array = array.take(pa.array(range(len(array)), pa.int64()))
    keys, items = _convert(array.keys, kind.key_type), _convert(array.items, kind.item_type)
    return pa.MapArray.from_arrays(array.offsets, keys, items, type=kind, mask=array.is_null())


def _convert_struct(array: pa.Array, kind: pa.DataType) -> pa.Array:
    children = dict(zip([field.name for field in array.type], array.flatten(), strict=True))
    columns = [
        _convert(children.pop(field.name), field.type) if field.name in children else pa.nulls(len(array), field.type)
        for field in kind
    ]
    lost = [name for name, child in children.items() if storable_type(child.type) is not None]
    if lost:
        raise LossyConversionError(f"{kind} has no field {lost[0]!r}")
    return pa.StructArray.from_arrays(columns, fields=list(kind), mask=array.is_null())


def _to_text(array: pa.Array) -> pa.Array:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        if _is_text(kind.storage_type):
            return array.storage.cast(TEXT)
        return pa.array([None if value is None else str(value) for value in array.to_pylist()], TEXT)
    if _is_bytes(kind):
        return pa.array([None if value is None else _decode(value) for value in array.to_pylist()], TEXT)
    if pa.types.is_nested(kind):
        return pa.array([None if value is None else _to_json(value, kind) for value in array.to_pylist()], TEXT)
    return array.cast(TEXT)


def _to_json(value: Any, kind: pa.DataType) -> str:
    return json.dumps(_json_value(value, kind), ensure_ascii=False)


def _json_value(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, dict):
        return {field.name: _json_value(value[field.name], field.type) for field in kind}
    if isinstance(value, list) and pa.types.is_map(kind):
        return {str(key): _json_value(item, kind.item_type) for key, item in value}
    if isinstance(value, list):
        return [_json_value(item, kind.value_type) for item in value]
    if isinstance(value, bytes):
        return _decode(value)
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _decode(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
