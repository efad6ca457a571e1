"""One table in the two forms that are kept of every evaluation. This module knows no column."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kvq_batch.domain.errors import SpecError


def write_table(table: pa.Table, stem: Path) -> list[Path]:
    """Writes <stem>.csv and <stem>.parquet, its folder too, and returns both. Raises: SpecError where that fails."""
    # Not `with_suffix`: a dot is part of a model's id.
    csv, parquet = (stem.parent / f"{stem.name}{suffix}" for suffix in (".csv", ".parquet"))
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.csv.write_csv(table, csv)
        pq.write_table(table, parquet, compression="zstd")
    except OSError as error:
        raise SpecError(f"{stem.parent} cannot be written: {error}") from error
    return [csv, parquet]
