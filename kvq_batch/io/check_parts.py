"""Whether every part that the log names is there, can be read, and holds what the log promises of it.

Footers are read in parallel, columns only with `deep`, one row group at a time. A promise that is too narrow loses
rows without a word, as readers leave such a part out; so it counts as much as a part that is gone. This module asks
no question about rows of different parts: that is `check_rows`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from kvq_batch.io.parts import statistics
from kvq_batch.io.redact import summary
from kvq_batch.io.schemas import TABLES
from kvq_batch.io.storage import join, refusing
from kvq_batch.io.tables import LoggedPart, Tables
from kvq_batch.io.trouble import FOREIGN_ERRORS, trouble
from kvq_batch.io.vacuum import files_of

Severity = Literal["error", "warning", "info"]

_THREADS = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be (error), that somebody should look at (warning), or good to know (info).

    `kind` is a stable name to group by; `subject` the part, video, run or commit that it is about.
    """

    severity: Severity
    kind: str
    table: str
    subject: str
    message: str


def check_parts(tables: Tables, deep: bool = False) -> tuple[list[Finding], dict[str, list[LoggedPart]]]:
    """Findings about single parts, and the parts of each table that can be read.

    Raises: SpecError where the tables as a whole are out of reach.
    """
    findings: list[Finding] = []
    readable: dict[str, list[LoggedPart]] = {schema.name: [] for schema in TABLES}
    with ThreadPoolExecutor(_THREADS) as pool:
        for schema in tables.schemas:
            name, parts = schema.name, tables.parts(schema.name)
            stored = files_of(tables, name)
            checked = pool.map(lambda part, name=name, stored=stored: _check(tables, name, part, stored, deep), parts)
            for part, (found, is_readable) in zip(parts, checked, strict=True):
                findings += found
                if is_readable:
                    readable[name].append(part)
            findings += _not_in_the_log(name, parts, stored)
    return findings, readable


def _check(
    tables: Tables, name: str, part: LoggedPart, stored: dict[str, Any], deep: bool
) -> tuple[list[Finding], bool]:
    if part.path not in stored:
        return [Finding("error", "missing_part", name, part.path, "the log names it, and there is no such file")], False
    size = stored[part.path][0]
    if size != part.size_bytes:
        message = f"{size} bytes are there, the log says {part.size_bytes}"
        return [Finding("error", "wrong_size", name, part.path, message)], False
    try:
        with tables.open_part(name, part) as source:
            file = pq.ParquetFile(source)
            found = list(_promises(name, part, file.metadata))
            found += _types(name, part, file.schema_arrow, tables.arrow_schema(name))
            if deep:
                for group in range(file.num_row_groups):
                    file.read_row_group(group)
    except (pa.ArrowException, *FOREIGN_ERRORS) as error:
        if isinstance(error, FOREIGN_ERRORS) and trouble(error) in ("forbidden", "no_credentials", "unreachable"):
            with refusing(join(tables.uri, name)):
                raise
        return [Finding("error", "unreadable_part", name, part.path, summary(error, 200))], False
    return found, not any(finding.kind == "wrong_type" for finding in found)


def _promises(name: str, part: LoggedPart, footer: Any) -> Iterator[Finding]:
    if part.num_rows != footer.num_rows:
        message = f"{footer.num_rows} rows are in it, the log says {part.num_rows}"
        yield Finding("error", "wrong_row_count", name, part.path, message)
    bounds = statistics(footer)
    for column in bounds["minValues"]:
        low, high = part.low.get(column), part.high.get(column)
        if low is None or high is None:
            yield Finding("info", "no_bounds", name, part.path, f"the log has no bounds of {column}; reads are slower")
        elif low > bounds["minValues"][column] or high < bounds["maxValues"][column]:
            message = (
                f"{column} goes from {bounds['minValues'][column]!r} to {bounds['maxValues'][column]!r}, the log says "
                f"{low!r} to {high!r}: questions leave rows out"
            )
            yield Finding("error", "wrong_bounds", name, part.path, message)


def _types(name: str, part: LoggedPart, have: Any, wanted: Any) -> Iterator[Finding]:
    for field in have:
        index = wanted.get_field_index(field.name)
        if index >= 0 and not _is_same_type(field.type, wanted.field(index).type):
            message = f"column {field.name!r} is {field.type}, the table's is {wanted.field(index).type}"
            yield Finding("error", "wrong_type", name, part.path, message)


def _is_same_type(one: Any, other: Any) -> bool:
    """Equal but for the names that writers give to the items of lists and maps."""
    if pa.types.is_list(one) and pa.types.is_list(other):
        return _is_same_type(one.value_type, other.value_type)
    if pa.types.is_map(one) and pa.types.is_map(other):
        return _is_same_type(one.key_type, other.key_type) and _is_same_type(one.item_type, other.item_type)
    return bool(one.equals(other))


def _not_in_the_log(name: str, parts: Sequence[LoggedPart], stored: dict[str, Any]) -> Iterator[Finding]:
    others = stored.keys() - {part.path for part in parts}
    if others:
        size = sum(stored[path][0] for path in others)
        message = f"{len(others)} file(s) of {size} bytes are no part of it: replaced, left over, or about to be added"
        yield Finding("info", "files_not_in_log", name, name, message + "; see `kvq-batch tables vacuum --full`")
