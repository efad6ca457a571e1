"""Whether the rows of all parts agree with each other: no identity twice, sums that add up, nothing without its score.

Set-wise in DuckDB over the parts that can be read, within its memory. Rows are found by a hash of their keys first, so
that ten million of them cost eight bytes each, and named by their keys only where something is wrong. This module
reads no store but through the datasets.

Whether every part that the log names is there, can be read, and holds what the log promises of it.

Footers are read in parallel, columns only with `deep`, one row group at a time. A promise that is too narrow loses
rows without a word, as readers leave such a part out; so it counts as much as a part that is gone. This module asks
no question about rows of different parts: that is `check_rows`.

The check of the tables as a whole: every part, then the rows of all of them.

Beside a run it is right too: tables are loaded so that what is told of (a run's outcome, a score) is loaded before
what it tells of (scores, clips), and a commit between the two only adds. This module mends nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.errors import FOREIGN_ERRORS, classify_error
from kvq_batch.storage.options import join, translate_storage_errors
from kvq_batch.storage.redact import summarize_error
from kvq_batch.tables.data_files import statistics
from kvq_batch.tables.database import connect, reading
from kvq_batch.tables.delta import LoggedFile, Tables
from kvq_batch.tables.schemas import RETRY_REQUESTED, TABLES
from kvq_batch.tables.vacuum import files_of

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


def check_data_files(tables: Tables, deep: bool = False) -> tuple[list[Finding], dict[str, list[LoggedFile]]]:
    """Findings about single parts, and the parts of each table that can be read.

    Raises: SpecError where the tables as a whole are out of reach.
    """
    findings: list[Finding] = []
    readable: dict[str, list[LoggedFile]] = {schema.name: [] for schema in TABLES}
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
    tables: Tables, name: str, part: LoggedFile, stored: dict[str, Any], deep: bool
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
        if isinstance(error, FOREIGN_ERRORS) and classify_error(error) in (
            "forbidden",
            "no_credentials",
            "unreachable",
        ):
            with translate_storage_errors(join(tables.uri, name)):
                raise
        return [Finding("error", "unreadable_part", name, part.path, summarize_error(error, 200))], False
    return found, not any(finding.kind == "wrong_type" for finding in found)


def _promises(name: str, part: LoggedFile, footer: Any) -> Iterator[Finding]:
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


def _types(name: str, part: LoggedFile, have: Any, wanted: Any) -> Iterator[Finding]:
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


def _not_in_the_log(name: str, parts: Sequence[LoggedFile], stored: dict[str, Any]) -> Iterator[Finding]:
    others = stored.keys() - {part.path for part in parts}
    if others:
        size = sum(stored[path][0] for path in others)
        message = f"{len(others)} file(s) of {size} bytes are no part of it: replaced, left over, or about to be added"
        yield Finding("info", "files_not_in_log", name, name, message + "; see `kvq-batch tables vacuum --full`")


EXAMPLES = 20
"""Rows of one kind that are named; of the others only the number is told."""

_IDENTITY = ("video_id", "content_id", "model_id", "fingerprint", "run_id")

_UNIQUE: Mapping[str, tuple[str, ...]] = {
    "scores": _IDENTITY,
    "clips": (*_IDENTITY, "clip_index"),
    "maps": (*_IDENTITY, "clip_index"),
    "catalog": ("video_id", "catalog", "commit_seq"),
    "labels": ("video_id", "label_id"),
}

# A failure may stand once for each try; what may stand once only is that a run gives a pair up.
_UNIQUE_FINAL = _IDENTITY

_TWICE = """
WITH hashed AS (SELECT hash({keys}) AS h FROM {table}), twice AS (FROM hashed GROUP BY h HAVING count(*) > 1)
SELECT video_id AS subject, count(*) || ' rows of ' || {told} AS message
FROM {table} WHERE hash({keys}) IN (SELECT h FROM twice)
GROUP BY {keys} HAVING count(*) > 1 ORDER BY subject
"""

_SCORED_AND_FAILED = """
WITH failed AS (SELECT DISTINCT hash(video_id, content_id, model_id, fingerprint, run_id) AS h FROM final_failures)
SELECT video_id AS subject, 'run ' || run_id || ' has both a score and a final failure of it by ' || model_id AS message
FROM scores WHERE hash(video_id, content_id, model_id, fingerprint, run_id) IN (SELECT h FROM failed) ORDER BY subject
"""

# A dying run leaves maps and clips of a batch without any of its scores, as those are committed last; with a score of
# the same commit the batch was whole, and a row without its own is none that a crash explains.
_WITHOUT_SCORE = """
SELECT t.video_id AS subject, 'commit ' || t.commit_seq || ' of run ' || t.run_id || ' has it by ' || t.model_id
    || ' and no score of it' AS message
FROM (SELECT video_id, model_id, commit_seq, run_id, hash(video_id, model_id, commit_seq) AS h FROM {table}) t
WHERE t.commit_seq IN (SELECT DISTINCT commit_seq FROM scores)
    AND t.h NOT IN (SELECT hash(video_id, model_id, commit_seq) FROM scores)
ORDER BY subject
"""

_INVISIBLE = """
SELECT run_id AS subject, CASE WHEN run_id IN (SELECT run_id FROM run_states WHERE state = 'running')
    THEN 'of a run at work, or left by a dying one: ' ELSE 'left by a dying run: ' END
    || count(*) || ' rows, invisible (commit ' || commit_seq || ')' AS message
FROM {table} WHERE commit_seq NOT IN (SELECT DISTINCT commit_seq FROM scores)
GROUP BY run_id, commit_seq ORDER BY commit_seq
"""

_CLIP_COUNT = """
WITH counted AS (SELECT hash(video_id, model_id, commit_seq) AS h, count(*) AS num FROM {table} GROUP BY ALL)
SELECT s.video_id AS subject, coalesce(c.num, 0) || ' {table} of ' || s.model_id || ' are there (commit '
    || s.commit_seq || '), its score is of ' || s.num_clips || ' clips' AS message
FROM scores s {join} JOIN counted c ON c.h = hash(s.video_id, s.model_id, s.commit_seq)
WHERE coalesce(c.num, 0) <> s.num_clips ORDER BY subject
"""

_NEWEST_RUNS = """
CREATE TEMP TABLE run_states AS
SELECT * FROM runs QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY commit_seq DESC) = 1
"""

_RUN_SUMS = """
SELECT run_id AS subject, num_planned || ' were planned; ' || num_scored || ' scored, ' || num_failed || ' failed and '
    || num_remaining || ' not reached are ' || (num_scored + num_failed + num_remaining) AS message
FROM run_states WHERE state <> 'running' AND num_planned <> num_scored + num_failed + num_remaining ORDER BY subject
"""

_RUN_ROWS = """
WITH counted AS (SELECT run_id, count(*) AS num FROM {table} GROUP BY ALL)
SELECT r.run_id AS subject, 'the run says {column} = ' || r.{column} || ', and ' || coalesce(c.num, 0) || ' rows are '
    || 'there' AS message
FROM run_states r LEFT JOIN counted c USING (run_id)
WHERE r.state <> 'running' AND r.{column} <> coalesce(c.num, 0) ORDER BY subject
"""

_UNKNOWN_RUN = """
SELECT run_id AS subject, count(*) || ' rows are of a run that `runs` does not know' AS message
FROM {table} WHERE run_id NOT IN (SELECT run_id FROM run_states) GROUP BY ALL ORDER BY subject
"""

_AHEAD = """
SELECT run_id AS subject, count(*) || ' rows have a commit_seq that the log never gave out ({last} is its last)'
    AS message
FROM {table} WHERE commit_seq > {last} GROUP BY ALL ORDER BY subject
"""

_STILL_RUNNING = """
SELECT run_id AS subject, 'it is at work, or its driver died; the next run of job ' || job || ' goes on' AS message
FROM run_states WHERE state = 'running' ORDER BY subject
"""


def check_rows(tables: Tables, readable: Mapping[str, Sequence[LoggedFile]]) -> list[Finding]:
    """Findings about rows of the `readable` parts of each table. Raises: SpecError where they cannot be read."""
    findings: list[Finding] = []
    last = tables.last_commit_seq()
    with connect() as connection, reading(tables.uri):
        for schema in TABLES:
            connection.register(schema.name, tables.dataset(schema.name, readable[schema.name]))
        connection.execute("CREATE TEMP VIEW final_failures AS SELECT * FROM failures WHERE final")
        # Who asks for another try is no run.
        connection.execute(f"CREATE TEMP VIEW tries AS SELECT * FROM failures WHERE error <> '{RETRY_REQUESTED}'")
        connection.execute("CREATE TEMP VIEW results AS SELECT run_id FROM scores UNION ALL SELECT run_id FROM labels")
        connection.execute(_NEWEST_RUNS)
        for severity, kind, table, query in _questions(last):
            findings += _findings(connection, severity, kind, table, query)
    return findings


def _questions(last: int) -> Iterator[tuple[Severity, str, str, str]]:
    for table, keys in _UNIQUE.items():
        yield "error", "twice", table, _twice(table, keys)
    yield "error", "twice", "failures", _twice("final_failures", _UNIQUE_FINAL)
    yield "error", "scored_and_failed", "scores", _SCORED_AND_FAILED
    for table in ("clips", "maps"):
        yield "error", "without_score", table, _WITHOUT_SCORE.format(table=table)
        yield "info", "invisible", table, _INVISIBLE.format(table=table)
    yield "error", "clip_count", "clips", _CLIP_COUNT.format(table="clips", join="LEFT")
    # A handcrafted model has no maps; where there is one, there is one for each clip.
    yield "error", "clip_count", "maps", _CLIP_COUNT.format(table="maps", join="")
    yield "error", "run_sums", "runs", _RUN_SUMS
    yield "error", "run_scored", "scores", _RUN_ROWS.format(table="results", column="num_scored")
    yield "error", "run_failed", "failures", _RUN_ROWS.format(table="final_failures", column="num_failed")
    for table in ("scores", "labels"):
        yield "warning", "unknown_run", table, _UNKNOWN_RUN.format(table=table)
    yield "warning", "unknown_run", "failures", _UNKNOWN_RUN.format(table="tries")
    for schema in TABLES:
        yield "error", "ahead_of_log", schema.name, _AHEAD.format(table=schema.name, last=last)
    yield "info", "running", "runs", _STILL_RUNNING


def _twice(table: str, keys: Sequence[str]) -> str:
    told = " || ', ' || ".join(f"'{key} ' || {key}" for key in keys if key != "video_id")
    return _TWICE.format(table=table, keys=", ".join(keys), told=told)


def _findings(
    connection: duckdb.DuckDBPyConnection, severity: Severity, kind: str, table: str, query: str
) -> Iterator[Finding]:
    rows = connection.execute(f"SELECT *, count(*) OVER () AS num FROM ({query}) LIMIT {EXAMPLES}").fetchall()
    for subject, message, _ in rows:
        yield Finding(severity, kind, table, str(subject), message)
    if rows and rows[0][2] > EXAMPLES:
        yield Finding(severity, kind, table, "...", f"and {rows[0][2] - EXAMPLES} more")


_LOADED_IN_ORDER = ("runs", "scores", "failures", "clips", "maps", "catalog", "models", "labels", "opinions")

_SEVERITIES = ("error", "warning", "info")


def check_tables(tables: Tables, deep: bool = False) -> list[Finding]:
    """Everything that is wrong or worth knowing, errors first; `deep` reads every column of every part.

    Raises: SpecError where the tables as a whole are out of reach.
    """
    tables.refresh(*_LOADED_IN_ORDER)
    findings, readable = check_data_files(tables, deep)
    try:
        findings += check_rows(tables, readable)
    except SpecError:
        if deep:
            raise
        # A whole footer says nothing of the keys behind it; which part it is, only reading all of them tells.
        findings, readable = check_data_files(tables, deep=True)
        findings += check_rows(tables, readable)
    return sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))
