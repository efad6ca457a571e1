"""Whether the rows of all parts agree with each other: no identity twice, sums that add up, nothing without its score.

Set-wise in DuckDB over the parts that can be read, within its memory. Rows are found by a hash of their keys first, so
that ten million of them cost eight bytes each, and named by their keys only where something is wrong. This module
reads no store but through the datasets.
"""

from collections.abc import Iterator, Mapping, Sequence

import duckdb

from kvq_batch.io.check_parts import Finding, Severity
from kvq_batch.io.database import connect, reading
from kvq_batch.io.schemas import RETRY_REQUESTED, TABLES
from kvq_batch.io.tables import LoggedPart, Tables

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
    || num_not_reached || ' not reached are ' || (num_scored + num_failed + num_not_reached) AS message
FROM run_states WHERE state <> 'running' AND num_planned <> num_scored + num_failed + num_not_reached ORDER BY subject
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


def check_rows(tables: Tables, readable: Mapping[str, Sequence[LoggedPart]]) -> list[Finding]:
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
    # A weightless model has no maps; where there is one, there is one for each clip.
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
