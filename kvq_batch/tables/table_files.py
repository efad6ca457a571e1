"""Export of Arrow tables as Parquet, CSV or JSONL files, to a local path or a store."""

import io
from pathlib import Path
from typing import BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.objects import put_file
from kvq_batch.storage.options import StorageOptions, display_uri, is_local, local_path, translate_storage_errors

_EXTENSIONS = ("parquet", "csv", "jsonl", "ndjson")


def check_extension(out: str) -> str:
    """Return the extension of `out`. Raises: SpecError if it is not one that `write_table` writes."""
    extension = out.rpartition(".")[2].lower()
    if extension not in _EXTENSIONS:
        raise SpecError(f"Invalid file name {display_uri(out)}: expected a name that ends in .parquet, .csv or .jsonl.")
    return extension


def write_table(table: pa.Table, out: str, options: StorageOptions | None = None) -> None:
    """Write `table` to a .parquet, .csv, .jsonl or .ndjson file; missing folders are created.

    A remote file is built in memory first, so that failed requests can be repeated.

    Raises: SpecError for another extension, for lists in CSV, or if the address cannot be written.
    """
    extension = check_extension(out)
    if extension == "csv":
        _check_no_lists(display_uri(out), table)
    with translate_storage_errors(out):
        if is_local(out):
            path = local_path(out)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                _write(table, extension, file)
        else:
            content = io.BytesIO()
            _write(table, extension, content)
            put_file(out, content.getvalue(), options or StorageOptions())


def write_csv_and_parquet(table: pa.Table, stem: Path) -> list[Path]:
    """Write <stem>.csv and <stem>.parquet to a local folder, which is created. Return both paths.

    Raises: SpecError if they cannot be written.
    """
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"Cannot write to {stem.parent}: {error}") from error
    # Not `with_suffix`: a stem may be a model id, which contains dots.
    paths = [stem.parent / f"{stem.name}.{extension}" for extension in ("csv", "parquet")]
    for path in paths:
        write_table(table, str(path))
    return paths


def _check_no_lists(name: str, table: pa.Table) -> None:
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    if nested:
        raise SpecError(f"{name}: CSV cannot hold the lists of column {nested[0]!r}. Write .parquet or .jsonl.")


def _write(table: pa.Table, extension: str, file: BinaryIO) -> None:
    if extension == "parquet":
        pq.write_table(table, file, compression="zstd")
    elif extension == "csv":
        pyarrow.csv.write_csv(table, file)
    else:
        _write_jsonl(table, file)


def _write_jsonl(table: pa.Table, file: BinaryIO) -> None:
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        for batch in table.to_batches(max_chunksize=50_000):
            connection.register("rows", pa.table(batch))
            lines = connection.execute("SELECT to_json(rows)::VARCHAR FROM rows").fetchall()
            file.write("".join(f"{line}\n" for (line,) in lines).encode())
