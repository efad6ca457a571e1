"""The views as a script of SQL that DuckDB runs without this package, over the same data files.

Delta tables are data files and a log. The script lists the data files of the version that is loaded, because plain
DuckDB reads no log without an extension. So it shows the tables as they are now: print it again after a run.
"""

from collections.abc import Iterator

from kvq_batch.analysis.questions import quote_identifier, quote_literal
from kvq_batch.storage.options import display_uri, is_local, join, local_path
from kvq_batch.tables.delta import LoggedFile
from kvq_batch.tables.schemas import TABLES, TableSchema
from kvq_batch.tables.session import Session
from kvq_batch.tables.views import RAW_PREFIX, VIEWS


def print_views(session: Session) -> str:
    """Return statements that create all views of the session in DuckDB."""
    statements = [
        "-- Views of kvq-batch over the data files of one version of the tables. Print them again after a run, a\n"
        "-- compaction or a vacuum. For addresses s3://, first:  INSTALL httpfs; LOAD httpfs;  and CREATE SECRET.\n"
        "SET TimeZone = 'UTC'"
    ]
    statements += [_raw_view(session, schema) for schema in TABLES]
    statements += [f'CREATE OR REPLACE VIEW "{name}" AS\n{query.strip()}' for name, query in VIEWS.items()]
    return ";\n\n".join(statements) + ";\n"


def _raw_view(session: Session, schema: TableSchema) -> str:
    """Return the statement for the rows of one Delta table, with all its columns, also those that no file has."""
    name = f"{RAW_PREFIX}{schema.name}"
    described = session.sql(f"DESCRIBE {name}").to_pylist()
    columns = [(quote_identifier(row["column_name"]), row["column_type"]) for row in described]
    empty = ", ".join(f"NULL::{kind} AS {column}" for column, kind in columns)
    parts = [f"SELECT {empty} WHERE false", *_partitions(session, schema)]
    union = "\nUNION ALL BY NAME\n".join(parts)
    return f"CREATE OR REPLACE VIEW {name} AS\nSELECT {', '.join(c for c, _ in columns)} FROM (\n{union}\n)"


def _partitions(session: Session, schema: TableSchema) -> Iterator[str]:
    """Yield one SELECT for the data files of each partition, whose values are not in the files."""
    tables = session.tables
    partitions: dict[tuple[str, ...], list[LoggedFile]] = {}
    for file in tables.data_files(schema.name):
        partitions.setdefault(tuple(file.partition[key] for key in schema.partition_by), []).append(file)
    for values, files in sorted(partitions.items()):
        added = "".join(
            f", {quote_literal(value)} AS {quote_identifier(key)}"
            for key, value in zip(schema.partition_by, values, strict=True)
        )
        paths = ",\n    ".join(quote_literal(_address(tables.uri, schema.name, file.path)) for file in files)
        yield f"SELECT *{added} FROM read_parquet([\n    {paths}\n], union_by_name = true, hive_partitioning = false)"


def _address(uri: str, table: str, path: str) -> str:
    address = join(join(uri, table), path)
    return local_path(address).as_posix() if is_local(address) else display_uri(address)
