"""Row types have the columns and types of the table schemas."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import GenericAlias, NoneType, UnionType
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import pyarrow as pa
import pytest

from kvq_batch.tables.row_types import ROW_TYPES, RunModel
from kvq_batch.tables.schemas import TABLES, TableSchema

PYTHON_TYPES: dict[pa.DataType, type] = {
    pa.string(): str,
    pa.bool_(): bool,
    pa.int8(): int,
    pa.int32(): int,
    pa.int64(): int,
    pa.float32(): float,
    pa.float64(): float,
    pa.timestamp("us", tz="UTC"): datetime,
}


def python_type(arrow: pa.DataType) -> Any:
    if pa.types.is_map(arrow):
        return GenericAlias(Sequence, (GenericAlias(tuple, (str, python_type(arrow.item_type))),))
    if pa.types.is_struct(arrow):
        assert get_type_hints(RunModel) == {field.name: PYTHON_TYPES[field.type] for field in arrow}
        return RunModel
    if pa.types.is_list(arrow):
        return GenericAlias(Sequence, (python_type(arrow.value_type),))
    return PYTHON_TYPES[arrow]


def split_hint(hint: Any) -> tuple[Any, bool]:
    """Return the type without NotRequired and None, and whether the column may be null."""
    if get_origin(hint) is NotRequired:
        return split_hint(get_args(hint)[0])[0], True
    arguments = get_args(hint)
    if isinstance(hint, UnionType) or NoneType in arguments:
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return kind, True
    return hint, False


@pytest.mark.parametrize("schema", TABLES, ids=lambda schema: schema.name)
def test_row_type_matches_the_schema(schema: TableSchema) -> None:
    hints: Mapping[str, Any] = get_type_hints(ROW_TYPES[schema.name], include_extras=True)
    expected = {field.name: python_type(field.type) for field in schema.row_schema()}
    assert {name: split_hint(hint)[0] for name, hint in hints.items()} == expected


@pytest.mark.parametrize("schema", TABLES, ids=lambda schema: schema.name)
def test_key_columns_are_never_null(schema: TableSchema) -> None:
    hints = get_type_hints(ROW_TYPES[schema.name], include_extras=True)
    keys = {"video_id", *schema.sort_by, *schema.partition_by} & set(hints)
    assert not [name for name in keys if split_hint(hints[name])[1]]
