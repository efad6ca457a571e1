"""Tables of other systems below a folder of Parquet files: Delta tables are read, other formats are recognized.

In such a table a log decides which data files count. Without it, rows that were overwritten or deleted come back.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaProtocolError

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import StorageOptions, absolute, delta_options, display_uri, translate_storage_errors

_LOGS = {
    "Delta": re.compile(r"(.*/)?_delta_log/"),
    "Iceberg": re.compile(r"(.*/)?metadata/[^/]*\.metadata\.json$"),
    "Hudi": re.compile(r"(.*/)?\.hoodie/"),
    "Spark Structured Streaming": re.compile(r"(.*/)?_spark_metadata/"),
}
_LOG_MARKS = r"(?:^|/)(?:_delta_log|\.hoodie|_spark_metadata)/|(?:^|/)metadata/[^/]*\.metadata\.json$"


def find_lake_tables(relative: pa.ChunkedArray) -> dict[str, str]:
    """Return {folder: format} of the tables among the paths below a folder. A folder ends with a slash or is empty."""
    found: dict[str, str] = {}
    for path in relative.filter(pc.match_substring_regex(relative, _LOG_MARKS)).to_pylist():
        for table_format, log in _LOGS.items():
            if match := log.match(path):
                found.setdefault(match[1] or "", table_format)
    return found


def read_delta_table(uri: str, options: StorageOptions) -> pa.Table:
    """Return the current rows of the Delta table at `uri`.

    Raises:
        SpecError: the table is out of reach, or has features that cannot be read.
    """
    uri = absolute(uri)
    with translate_storage_errors(uri):
        try:
            table = DeltaTable(uri, storage_options=delta_options(uri, options) or None)
            return table.to_pyarrow_table()
        except DeltaProtocolError as error:
            raise SpecError(
                f"{display_uri(uri)}: this Delta table has features that cannot be read ({error}); export its current "
                "rows to a Parquet file"
            ) from error
