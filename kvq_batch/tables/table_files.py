"""Tables as files for other programs: Parquet, CSV or JSONL, by the ending of the name.

It writes what it is given, locally or to a store, and knows nothing of what the rows mean.
"""

from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import StorageOptions, display_uri, filesystem, translate_storage_errors

_EXTENSIONS = ("parquet", "csv", "jsonl", "ndjson")


def check_extension(out: str) -> str:
    """The ending of `out`, one that we write. Raises SpecError for another."""
    extension = out.rpartition(".")[2].lower()
    if extension not in _EXTENSIONS:
        raise SpecError(f"{display_uri(out)}: a file is written as .parquet, .csv or .jsonl; name it so")
    return extension


def write_table(table: pa.Table, out: str, options: StorageOptions | None = None) -> None:
    """Writes `table` as .parquet, .csv, .jsonl or .ndjson.

    Raises: SpecError for another name, or a place out of reach.
    """
    extension = check_extension(out)
    with translate_storage_errors(out):
        file_system, path = filesystem(out, options or StorageOptions())
        file_system.makedirs(file_system._parent(path), exist_ok=True)
        with file_system.open(path, "wb") as file:
            if extension == "parquet":
                pq.write_table(table, file, compression="zstd")
            elif extension == "csv":
                pyarrow.csv.write_csv(_for_csv(display_uri(out), table), file)
            else:
                _write_jsonl(table, file)


def _for_csv(name: str, table: pa.Table) -> pa.Table:
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    if nested:
        raise SpecError(f"{name}: CSV cannot hold the lists of column {nested[0]!r}; write .parquet or .jsonl")
    return table


def _write_jsonl(table: pa.Table, file: Any) -> None:
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        for batch in table.to_batches(max_chunksize=50_000):
            connection.register("rows", pa.table(batch))
            lines = connection.execute("SELECT to_json(rows)::VARCHAR FROM rows").fetchall()
            file.write("".join(f"{line}\n" for (line,) in lines).encode())
