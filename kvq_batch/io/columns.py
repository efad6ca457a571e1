"""What a table is declared with: columns with their types and meaning, and the few that every table has.

Delta has no unsigned integers, times are microseconds in UTC, and every row carries the run and the commit that wrote
it. This module declares no table.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

TEXT, REAL, FLAG = pa.string(), pa.float64(), pa.bool_()
INT, LONG = pa.int32(), pa.int64()
TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its Arrow type, and one line that says what stands in it, with the unit."""

    name: str
    type: Any
    comment: str


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One Delta table: its columns, what it is partitioned by, and the order of rows within a part."""

    name: str
    columns: tuple[Column, ...]
    sort_by: tuple[str, ...]
    partition_by: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def arrow(self) -> Any:
        """pa.Schema with the comments as field metadata."""
        return pa.schema([pa.field(c.name, c.type, metadata={"comment": c.comment}) for c in self.columns])

    def row_columns(self) -> Any:
        """pa.Schema of the rows that a caller hands to the writer: all but `run_id` and `commit_seq`."""
        return pa.schema([pa.field(c.name, c.type) for c in self.columns if c.name not in ("run_id", "commit_seq")])


RUN_ID = Column("run_id", TEXT, "run that wrote this row")
COMMIT_SEQ = Column("commit_seq", LONG, "place of this row in the order of all commits, rising")
