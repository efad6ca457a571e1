"""Columns of a user's catalog as the table `catalog` stores them: names, types and values.

Names that this project, Delta, DuckDB or Arrow uses itself get the prefix `catalog_`. Types are merged with those of
the table (`domain/column_types.py`). `plan` calls this, so what a run cannot store is rejected before it starts.
"""

from collections.abc import Collection

import pyarrow as pa

from kvq_batch.catalog.reader import CATALOG_COLUMNS
from kvq_batch.domain.column_types import (
    ARROW_COLUMNS,
    TEXT,
    LossyConversionError,
    convert,
    fold_name,
    is_usable_name,
    merge_types,
    storable_type,
)
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.redact import summarize_error
from kvq_batch.tables.schemas import CATALOG, CATALOG_PREFIX

DERIVED_COLUMNS = ("first_run_id", "last_run_id")
"""Columns that the view `catalog` adds."""

_RESERVED = frozenset((*CATALOG.names, *DERIVED_COLUMNS, *ARROW_COLUMNS))


def stored_columns(catalog: pa.Table, known: pa.Schema) -> dict[str, pa.ChunkedArray]:
    """Return the user's columns of `catalog` by their names in the table `catalog`, whose schema is `known`.

    A column has the type in `known` if that can hold its values, otherwise a type that can hold those of both. A new
    column without any value that decides its type is left out.

    Raises:
        SpecError: a column that cannot be stored, or two columns with one name in the table.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    sources: dict[str, str] = {fold_name(name): name for name in CATALOG.names}
    for name in catalog.column_names:
        if name in CATALOG_COLUMNS:
            continue
        if not is_usable_name(name):
            raise SpecError(
                f"catalog column {name!r}: a name needs a character, and none of them may be NUL; rename it"
            )
        stored = stored_name(name, known.names)
        other = sources.setdefault(fold_name(stored), name)
        if other != name:
            raise SpecError(
                f"catalog column {name!r} is not unique: {other!r} is stored as {stored!r}, too; rename one"
            )
        index = known.get_field_index(stored)
        try:
            column = _stored_values(catalog.column(name), known.field(index).type if index >= 0 else None)
        except LossyConversionError as error:
            raise SpecError(
                f"catalog column {name!r} ({catalog.column(name).type}) cannot be stored: "
                f"{summarize_error(error, 200)}; cast it or remove it"
            ) from error
        if column is not None:
            columns[stored] = column
    return columns


def stored_name(name: str, known: Collection[str]) -> str:
    """Return the name of a user's column in the table, which has the columns `known`. Names have no case."""
    reserved = {fold_name(column) for column in _RESERVED}
    stored = f"{CATALOG_PREFIX}{name}" if fold_name(name) in reserved else name
    return next((other for other in known if fold_name(other) == fold_name(stored)), stored)


def known_types(known: pa.Schema) -> dict[str, pa.DataType]:
    """Return the types of the user's columns in the table `catalog` by their names in the catalog (`fold_name`)."""
    types = {fold_name(field.name): field.type for field in known if field.name not in CATALOG.names}
    unprefixed = {name.removeprefix(CATALOG_PREFIX): kind for name, kind in types.items()}
    reserved = {name: kind for name, kind in unprefixed.items() if name in map(fold_name, _RESERVED)}
    return {**types, **reserved}


def _stored_values(values: pa.ChunkedArray, known: pa.DataType | None) -> pa.ChunkedArray | None:
    """Return the values in the type of the table, or in a wider one; None if nothing decides the type yet."""
    own = storable_type(values.type)
    base = None if known is None else storable_type(known)
    if own is None or base is None:
        candidates = [kind for kind in (own, base) if kind is not None]
    else:
        candidates = [base, merge_types(base, own)]
    if not candidates:
        return None
    for kind in candidates:
        try:
            return convert(values, kind)
        except LossyConversionError:
            continue
    return convert(values, TEXT)
