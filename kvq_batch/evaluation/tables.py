"""Write a table as CSV and as Parquet, as every evaluation stores its results."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kvq_batch.domain.errors import SpecError


def write_table(table: pa.Table, stem: Path) -> list[Path]:
    """Write <stem>.csv and <stem>.parquet, create their folder, and return both paths. Raises: SpecError."""
    # Not `with_suffix`: a model id may hold dots.
    csv, parquet = (stem.parent / f"{stem.name}{suffix}" for suffix in (".csv", ".parquet"))
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.csv.write_csv(table, csv)
        pq.write_table(table, parquet, compression="zstd")
    except OSError as error:
        raise SpecError(f"Cannot write to {stem.parent}: {error}") from error
    return [csv, parquet]
