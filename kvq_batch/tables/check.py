"""Consistency check of the tables (`tables check`): data files against the log, then rows against each other.

Data files: footers are read in parallel, columns only with `deep`, one row group at a time. Bounds in the log that are
too narrow are errors like a missing file, because queries then skip rows silently.

Rows: compared in DuckDB over all readable files, within its memory limit. Keys are compared by hash first (8 bytes for
each of ten million rows) and read in full only for rows that are wrong.

The result is also correct while a run commits: the tables are loaded in such an order that what a row refers to (the
run's outcome, the score) is loaded before the rows that refer to it (scores, clips). Nothing is repaired.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from kvq_batch.domain.column_types import is_readable_column, same_type, storable_type
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.errors import classify_error, foreign_errors
from kvq_batch.storage.options import join, translate_storage_errors
from kvq_batch.storage.redact import summarize_error
from kvq_batch.tables.data_files import statistics
from kvq_batch.tables.database import connect, translate_read_errors
from kvq_batch.tables.delta import LoggedFile, Tables
from kvq_batch.tables.schemas import RETRY_REQUESTED, TABLES
from kvq_batch.tables.vacuum import list_files

Severity = Literal["error", "warning", "info"]

MAX_EXAMPLES = 20
"""Rows of one kind of finding that are listed. The others are only counted."""

_SEVERITIES = ("error", "warning", "info")
_LOAD_ORDER = ("runs", "scores", "failures", "clips", "maps", "features", "catalog", "models", "labels", "opinions")
_NUM_THREADS = 16
_OUT_OF_REACH = ("forbidden", "no_credentials", "unreachable")


@dataclass(frozen=True, slots=True)
class Finding:
    """One error, warning or note about the tables.

    `kind` is a stable name to group by. `subject` is the data file, video, run or table that it is about.
    """

    severity: Severity
    kind: str
    table: str
    subject: str
    message: str


def check_tables(tables: Tables, deep: bool = False) -> list[Finding]:
    """Return all findings, errors first. `deep` reads every column of every data file.

    Raises: SpecError if the tables as a whole are out of reach.
    """
    tables.refresh(*_LOAD_ORDER)
    findings, readable = check_data_files(tables, deep)
    findings += check_columns(tables)
    try:
        findings += check_rows(tables, readable)
    except SpecError:
        if deep:
            raise
        # A valid footer says nothing about the key columns. Only reading all of them shows which file is damaged.
        findings, readable = check_data_files(tables, deep=True)
        findings += check_columns(tables)
        findings += check_rows(tables, readable)
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))


# Columns


def check_columns(tables: Tables) -> list[Finding]:
    """Return findings about columns of user catalogs that earlier releases stored and nothing can read."""
    findings = []
    for field in tables.arrow_schema("catalog"):
        drop = f"remove it with `kvq-batch tables drop-column TABLES {shlex.quote(field.name)}`"
        if not is_readable_column(field.name):
            message = f"no query can read a column of the name {field.name!r}; {drop}"
            findings.append(Finding("error", "unusable_column", "catalog", field.name, message))
        elif not same_type(storable_type(field.type) or pa.null(), field.type):
            message = (
                f"column {field.name!r} is {field.type}, which no value fits; a run with values changes it, or {drop}"
            )
            findings.append(Finding("warning", "untyped_column", "catalog", field.name, message))
    return findings


# Data files


def check_data_files(tables: Tables, deep: bool = False) -> tuple[list[Finding], dict[str, list[LoggedFile]]]:
    """Return findings about single data files, and {table: readable data files}.

    Raises: SpecError if the tables as a whole are out of reach.
    """
    findings: list[Finding] = []
    readable: dict[str, list[LoggedFile]] = {schema.name: [] for schema in TABLES}
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for schema in tables.schemas:
            name, files = schema.name, tables.data_files(schema.name)
            stored = list_files(tables, name)
            checked = pool.map(
                lambda file, name=name, stored=stored: _check_file(tables, name, file, stored, deep), files
            )
            for file, (found, is_readable) in zip(files, checked, strict=True):
                findings += found
                if is_readable:
                    readable[name].append(file)
            findings += _files_not_in_log(name, files, stored)
            findings += _empty_log_entries(tables, name)
    return findings, readable


def _check_file(
    tables: Tables, name: str, file: LoggedFile, stored: Mapping[str, tuple[int, datetime]], deep: bool
) -> tuple[list[Finding], bool]:
    if file.path not in stored:
        return [
            Finding("error", "missing_file", name, file.path, "the log lists it, but the file does not exist")
        ], False
    size = stored[file.path][0]
    if size != file.size_bytes:
        message = f"the file has {size} bytes, the log says {file.size_bytes}"
        return [Finding("error", "wrong_size", name, file.path, message)], False
    try:
        with tables.open_data_file(name, file) as source:
            parquet = pq.ParquetFile(source)
            found = list(_check_footer(name, file, parquet.metadata))
            found += _check_types(name, file, parquet.schema_arrow, tables.arrow_schema(name))
            if deep:
                for group in range(parquet.num_row_groups):
                    parquet.read_row_group(group)
    except (pa.ArrowException, *foreign_errors()) as error:
        if isinstance(error, foreign_errors()) and classify_error(error) in _OUT_OF_REACH:
            with translate_storage_errors(join(tables.uri, name)):
                raise
        return [Finding("error", "unreadable_file", name, file.path, summarize_error(error, 200))], False
    return found, not any(finding.kind == "wrong_type" for finding in found)


def _check_footer(name: str, file: LoggedFile, footer: pq.FileMetaData) -> Iterator[Finding]:
    if file.num_rows != footer.num_rows:
        message = f"the file has {footer.num_rows} rows, the log says {file.num_rows}"
        yield Finding("error", "wrong_row_count", name, file.path, message)
    bounds = statistics(footer)
    for column in bounds["minValues"]:
        low, high = file.low.get(column), file.high.get(column)
        if low is None or high is None:
            message = f"the log has no bounds of {column}; every query reads this file"
            yield Finding("info", "no_bounds", name, file.path, message)
        elif low > bounds["minValues"][column] or high < bounds["maxValues"][column]:
            message = (
                f"{column} is from {bounds['minValues'][column]!r} to {bounds['maxValues'][column]!r}, the log says "
                f"{low!r} to {high!r}; queries skip rows"
            )
            yield Finding("error", "wrong_bounds", name, file.path, message)


def _check_types(name: str, file: LoggedFile, found: pa.Schema, expected: pa.Schema) -> Iterator[Finding]:
    for field in found:
        index = expected.get_field_index(field.name)
        if index >= 0 and not same_type(field.type, expected.field(index).type):
            message = f"column {field.name!r} is {field.type}, in the table it is {expected.field(index).type}"
            yield Finding("error", "wrong_type", name, file.path, message)


def _files_not_in_log(
    name: str, files: Sequence[LoggedFile], stored: Mapping[str, tuple[int, datetime]]
) -> Iterator[Finding]:
    others = stored.keys() - {file.path for file in files}
    if others:
        size = sum(stored[path][0] for path in others)
        message = (
            f"{len(others)} file(s) of {size} bytes are not in the log: replaced, left over, or about to be committed; "
            "see `kvq-batch tables vacuum --full`"
        )
        yield Finding("info", "files_not_in_log", name, name, message)


def _empty_log_entries(tables: Tables, name: str) -> Iterator[Finding]:
    """Yield the log entries without content, which delta-rs takes for commits that change nothing."""
    with translate_storage_errors(join(tables.uri, name)):
        file_system, root = tables.table_filesystem(name)
        entries = file_system.ls(f"{root}/_delta_log", detail=True)
    for entry in entries:
        if entry["name"].endswith(".json") and not entry["size"]:
            subject = f"_delta_log/{entry['name'].rsplit('/', 1)[-1]}"
            message = "the entry is empty, so what it committed is invisible; restore it from a backup"
            yield Finding("error", "empty_log_entry", name, subject, message)


# Rows. Each query returns the columns subject and message.

_IDENTITY = ("video_id", "content_id", "model_id", "fingerprint", "run_id")

_UNIQUE: Mapping[str, tuple[str, ...]] = {
    "scores": _IDENTITY,
    "clips": (*_IDENTITY, "clip_index"),
    "maps": (*_IDENTITY, "clip_index"),
    "features": _IDENTITY,
    "catalog": ("video_id", "catalog", "commit_seq"),
    "labels": ("video_id", "label_id"),
}

# There may be a failure for each attempt, but only one final failure of a task in a run.
_UNIQUE_FINAL = _IDENTITY

_DUPLICATES = """
WITH hashed AS (SELECT hash({keys}) AS h FROM {table}), repeated AS (FROM hashed GROUP BY h HAVING count(*) > 1)
SELECT video_id AS subject, count(*) || ' rows of ' || {shown} AS message
FROM {table} WHERE hash({keys}) IN (SELECT h FROM repeated)
GROUP BY {keys} HAVING count(*) > 1 ORDER BY subject
"""

_SCORED_AND_FAILED = """
WITH failed AS (SELECT DISTINCT hash(video_id, content_id, model_id, fingerprint, run_id) AS h FROM final_failures)
SELECT video_id AS subject, 'run ' || run_id || ' has both a score and a final failure by ' || model_id AS message
FROM scores WHERE hash(video_id, content_id, model_id, fingerprint, run_id) IN (SELECT h FROM failed) ORDER BY subject
"""

# A crashed run leaves maps and clips of a batch without any of its scores, because scores are committed last. If one
# score of a commit is there, the batch was complete, and a crash does not explain a row without its score.
_WITHOUT_SCORE = """
SELECT t.video_id AS subject, 'commit ' || t.commit_seq || ' of run ' || t.run_id || ' has this row by ' || t.model_id
    || ' but not its score' AS message
FROM (SELECT video_id, model_id, commit_seq, run_id, hash(video_id, model_id, commit_seq) AS h FROM {table}) t
WHERE t.commit_seq IN (SELECT DISTINCT commit_seq FROM scores)
    AND t.h NOT IN (SELECT hash(video_id, model_id, commit_seq) FROM scores)
ORDER BY subject
"""

_INVISIBLE = """
SELECT run_id AS subject, CASE WHEN run_id IN (SELECT run_id FROM run_states WHERE state = 'running')
    THEN 'of a running or a crashed run: ' ELSE 'of a crashed run: ' END
    || count(*) || ' rows that no view shows (commit ' || commit_seq || ')' AS message
FROM {table} WHERE commit_seq NOT IN (SELECT DISTINCT commit_seq FROM scores)
GROUP BY run_id, commit_seq ORDER BY commit_seq
"""

_CLIP_COUNT = """
WITH counted AS (SELECT hash(video_id, model_id, commit_seq) AS h, count(*) AS num FROM {table} GROUP BY ALL)
SELECT s.video_id AS subject, 'found ' || coalesce(c.num, 0) || ' {table} of ' || s.model_id || ' (commit '
    || s.commit_seq || '), the score is of ' || s.num_clips || ' clips' AS message
FROM scores s {join} JOIN counted c ON c.h = hash(s.video_id, s.model_id, s.commit_seq)
WHERE coalesce(c.num, 0) <> s.num_clips ORDER BY subject
"""

_RUN_STATES = """
CREATE TEMP TABLE run_states AS
SELECT * FROM runs QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY commit_seq DESC) = 1
"""

_RUN_SUMS = """
SELECT run_id AS subject, num_planned || ' planned; ' || num_scored || ' scored, ' || num_failed || ' failed and '
    || num_remaining || ' remaining are ' || (num_scored + num_failed + num_remaining) AS message
FROM run_states WHERE state <> 'running' AND num_planned <> num_scored + num_failed + num_remaining ORDER BY subject
"""

_RUN_ROWS = """
WITH counted AS (SELECT run_id, count(*) AS num FROM {table} GROUP BY ALL)
SELECT r.run_id AS subject, 'the run has {column} = ' || r.{column} || ', but ' || coalesce(c.num, 0) || ' rows exist'
    AS message
FROM run_states r LEFT JOIN counted c USING (run_id)
WHERE r.state <> 'running' AND r.{column} <> coalesce(c.num, 0) ORDER BY subject
"""

_UNKNOWN_RUN = """
SELECT run_id AS subject, count(*) || ' rows are of a run that is not in `runs`' AS message
FROM {table} WHERE run_id NOT IN (SELECT run_id FROM run_states) GROUP BY ALL ORDER BY subject
"""

_AHEAD = """
SELECT run_id AS subject, count(*) || ' rows have a commit_seq after the last one in the log ({last})' AS message
FROM {table} WHERE commit_seq > {last} GROUP BY ALL ORDER BY subject
"""

_STILL_RUNNING = """
SELECT run_id AS subject, 'running, or its driver crashed; the next run of job ' || job || ' resumes it' AS message
FROM run_states WHERE state = 'running' ORDER BY subject
"""


def check_rows(tables: Tables, readable: Mapping[str, Sequence[LoggedFile]]) -> list[Finding]:
    """Return findings about the rows of `readable` data files. Raises: SpecError if they cannot be read."""
    findings: list[Finding] = []
    last = tables.last_commit_seq()
    with connect() as connection, translate_read_errors(tables.uri):
        for schema in TABLES:
            connection.register(schema.name, tables.dataset(schema.name, readable[schema.name]))
        connection.execute("CREATE TEMP VIEW final_failures AS SELECT * FROM failures WHERE final")
        # Retry requests are not made by runs.
        connection.execute(f"CREATE TEMP VIEW attempts AS SELECT * FROM failures WHERE error <> '{RETRY_REQUESTED}'")
        connection.execute("CREATE TEMP VIEW results AS SELECT run_id FROM scores UNION ALL SELECT run_id FROM labels")
        connection.execute(_RUN_STATES)
        for severity, kind, table, query in _row_queries(last):
            findings += _run_query(connection, severity, kind, table, query)
    return findings


def _row_queries(last: int) -> Iterator[tuple[Severity, str, str, str]]:
    """Yield severity, kind, table and SQL of each check."""
    for table, keys in _UNIQUE.items():
        yield "error", "duplicate", table, _duplicates(table, keys)
    yield "error", "duplicate", "failures", _duplicates("final_failures", _UNIQUE_FINAL)
    yield "error", "scored_and_failed", "scores", _SCORED_AND_FAILED
    for table in ("clips", "maps", "features"):
        yield "error", "without_score", table, _WITHOUT_SCORE.format(table=table)
        yield "info", "invisible", table, _INVISIBLE.format(table=table)
    yield "error", "clip_count", "clips", _CLIP_COUNT.format(table="clips", join="LEFT")
    # Handcrafted models have no maps. If a score has one map, it has one for each clip.
    yield "error", "clip_count", "maps", _CLIP_COUNT.format(table="maps", join="")
    yield "error", "run_sums", "runs", _RUN_SUMS
    yield "error", "run_scored", "scores", _RUN_ROWS.format(table="results", column="num_scored")
    yield "error", "run_failed", "failures", _RUN_ROWS.format(table="final_failures", column="num_failed")
    for table in ("scores", "labels"):
        yield "warning", "unknown_run", table, _UNKNOWN_RUN.format(table=table)
    yield "warning", "unknown_run", "failures", _UNKNOWN_RUN.format(table="attempts")
    for schema in TABLES:
        yield "error", "ahead_of_log", schema.name, _AHEAD.format(table=schema.name, last=last)
    yield "info", "running", "runs", _STILL_RUNNING


def _duplicates(table: str, keys: Sequence[str]) -> str:
    shown = " || ', ' || ".join(f"'{key} ' || {key}" for key in keys if key != "video_id")
    return _DUPLICATES.format(table=table, keys=", ".join(keys), shown=shown)


def _run_query(
    connection: duckdb.DuckDBPyConnection, severity: Severity, kind: str, table: str, query: str
) -> Iterator[Finding]:
    rows = connection.execute(f"SELECT *, count(*) OVER () AS num FROM ({query}) LIMIT {MAX_EXAMPLES}").fetchall()
    for subject, message, _ in rows:
        yield Finding(severity, kind, table, str(subject), message)
    if rows and rows[0][2] > MAX_EXAMPLES:
        yield Finding(severity, kind, table, "...", f"and {rows[0][2] - MAX_EXAMPLES} more")
