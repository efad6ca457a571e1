"""Random SQL for the sandbox: reads, writes, file access, and writes that are disguised as reads.

Statements come from a small grammar. A part of them is then mutated: comments, case, quotes, spliced tokens. The same
seed gives the same statements.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

VIEWS = ("scores", "scores_latest", "catalog", "models", "clips", "failures", "runs", "raw_scores", "raw_catalog")
COLUMNS = ("video_id", "model_id", "commit_seq", "run_id", "uri")
FILE_FUNCTIONS = (
    "read_text", "read_blob", "glob", "read_csv", "read_csv_auto", "sniff_csv", "read_json", "read_ndjson",
    "read_parquet", "parquet_scan", "parquet_metadata", "parquet_schema", "read_duckdb", "read_single_csv_file",
)  # fmt: skip
OTHER_FUNCTIONS = (
    "checkpoint()", "enable_logging()", "enable_profiling()", "duckdb_secrets()", "duckdb_settings()",
    "duckdb_logs()", "truncate_duckdb_logs()", "pandas_scan(1)", "duckdb_temporary_files()", "query_table('scores')",
    "json_execute_serialized_sql(json_serialize_sql('{select}'))", "query('{select}')",
    "enable_logging(storage='file', storage_path='{path}')",
    "enable_profiling(save_location='{path}')", "python_map_function(1)", "a_variable_of_the_program", "'{path}'",
)  # fmt: skip
STATEFUL = (
    "write_log('x')", "setseed(0.1)", "getenv('FUZZ_SECRET')", "getvariable('x')", "nextval('s')",
    "current_setting('temp_directory')",
)  # fmt: skip


class SqlGrammar:
    """Generates statements that name files in `folders` and the views of a session."""

    def __init__(self, seed: int, folders: tuple[Path, ...]) -> None:
        self._random = random.Random(seed)
        self._folders = folders

    def statements(self, num: int) -> Iterator[str]:
        for _ in range(num):
            text = self._statement()
            for _ in range(self._random.choice((0, 0, 1, 1, 2))):
                text = self._one_of(self._with_comment, self._with_case, self._spliced, self._with_quotes)(text)
            yield text

    def _statement(self) -> str:
        return self._one_of(
            self._select, self._select, self._writing_select, self._explain, self._explain, self._pivot, self._pivot,
            self._write, self._write, self._several, self._setting,
        )()  # fmt: skip

    def _one_of(self, *choices: Callable[..., str]) -> Callable[..., str]:
        return self._random.choice(choices)

    def _pick(self, *choices: str) -> str:
        return self._random.choice(choices)

    def _path(self) -> str:
        folder = self._random.choice(self._folders)
        new = f"new-{self._random.randrange(10**9)}"
        return f"{folder}/{self._pick('secret.csv', 'secret.csv', 'secret.parquet', '*.csv', '**', new)}"

    def _source(self, depth: int = 0) -> str:
        view = self._pick(*VIEWS)
        if depth < 3 and self._random.random() < 0.3:
            return self._pick(
                f"({self._select(depth + 1)})",
                f"({self._pivot(depth + 1)})",
                f"({self._writing_select(depth + 1)})",
                f"{view} a JOIN {self._source(depth + 1)} b ON true",
            )
        schema = self._pick("", "", "main.", "system.main.")
        file = f"{schema}{self._pick(*FILE_FUNCTIONS)}('{self._path()}')"
        other = self._fill(self._pick(*OTHER_FUNCTIONS))
        return self._pick(view, view, f"main.{view}", f"(DESCRIBE {view})", "range(3)", file, file, file, file, other)

    def _expression(self, depth: int = 0) -> str:
        column = self._pick(*COLUMNS)
        kinds = ["1", column, f"count({column})", f"'{self._path()}'", "[i + 1 FOR i IN [1, 2]]", "COLUMNS(*)"]
        kinds += [self._pick(*STATEFUL), f"{column} COLLATE de", f"CASE WHEN {column} IS NULL THEN 1 END"]
        if depth < 2:
            kinds += [f"(SELECT {self._expression(depth + 1)} FROM {self._source(2)} LIMIT 1)"]
        return self._random.choice(kinds)

    def _select(self, depth: int = 0) -> str:
        source, expression = self._source(depth), self._expression(depth)
        return self._random.choice((
            f"SELECT * FROM {source}",
            f"SELECT {expression} FROM {source}",
            f"FROM {source} SELECT {expression}",
            f"(SELECT {expression})",
            f"VALUES ({expression})",
            f"SELECT 1 UNION ALL SELECT {expression} FROM {source}",
            f"WITH w AS ({self._pick('SELECT 1', f'FROM {source}')}) SELECT * FROM w, {source}",
            f"WITH RECURSIVE w AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM w WHERE i < 3) SELECT {expression} FROM w",
            f"SELECT {expression} FROM {source} WHERE EXISTS (FROM {self._pick(*VIEWS)}) LIMIT 5",
            f"{self._pick('SUMMARIZE', 'DESCRIBE')} {self._pick(*VIEWS)}",
            "SHOW TABLES",
        ))  # fmt: skip

    def _writing_select(self, depth: int = 0) -> str:
        write, view = self._write_in_cte(), self._pick(*VIEWS)
        return self._random.choice((
            f"WITH w AS ({write}) SELECT * FROM w",
            f"WITH w AS MATERIALIZED ({write}) FROM {view}",
            f"SELECT (WITH w AS ({write}) SELECT 1)",
            f"SELECT * FROM {view} WHERE EXISTS (WITH w AS ({write}) FROM w)",
            f"WITH w AS ({write}) PIVOT {view} ON model_id USING count(*)",
            f"WITH a AS (WITH w AS ({write}) FROM w) FROM a",
        ))  # fmt: skip

    def _write_in_cte(self) -> str:
        view = self._pick(*VIEWS)
        return self._random.choice((
            f"COPY (SELECT 1 AS x) TO '{self._path()}'",
            f"COPY {view} TO '{self._path()}' (FORMAT parquet)",
            f"INSERT INTO {view} SELECT * FROM {view} RETURNING *",
            f"DELETE FROM {view} RETURNING *",
            f"UPDATE {view} SET run_id = 'forged' RETURNING *",
        ))  # fmt: skip

    def _pivot(self, depth: int = 0) -> str:
        source = self._source(max(depth, 2))
        values = self._pick("", "", " IN ('a', 'b')")
        return self._random.choice((
            f"PIVOT {source} ON {self._pick(*COLUMNS)}{values} USING count(*)",
            f"FROM (PIVOT {source} ON model_id{values} USING max(commit_seq))",
            f"WITH p AS (PIVOT {source} ON model_id{values} USING count(*) GROUP BY video_id) SELECT * FROM p",
            f"SELECT * FROM {source} PIVOT (count(*) FOR model_id IN ('a'))",
            f"UNPIVOT {source} ON {self._pick(*COLUMNS)}",
        ))  # fmt: skip

    def _explain(self) -> str:
        options = self._pick(
            "", "", "ANALYZE", "(ANALYZE)", "(ANALYZE, FORMAT json)", "/* /* */ SELECT 1 -- */ ANALYZE"
        )
        return f"EXPLAIN {options} {self._one_of(self._select, self._write, self._pivot, self._writing_select)()}"

    def _write(self) -> str:
        view, path = self._pick(*VIEWS), self._path()
        return self._random.choice((
            f"COPY {view} TO '{path}'",
            f"COPY (PIVOT {view} ON model_id USING count(*)) TO '{path}'",
            f"COPY {view} FROM '{path}'",
            f"EXPORT DATABASE '{path}'",
            f"IMPORT DATABASE '{path}'",
            f"ATTACH '{path}' AS other{self._random.randrange(99)}",
            f"CREATE {self._pick('', 'TEMP ', 'OR REPLACE ')}TABLE t AS SELECT 1 AS x",
            f"CREATE TABLE t AS PIVOT {view} ON model_id USING count(*)",
            f"CREATE OR REPLACE {self._pick('', 'TEMP ')}VIEW {view} AS SELECT 'forged' AS video_id",
            f"DROP VIEW {view}",
            f"ALTER VIEW {view} RENAME TO other",
            "CREATE MACRO count(x) AS 1",
            "CREATE TYPE mood AS ENUM ('ok')",
            "CREATE SEQUENCE s",
            self._write_in_cte(),
            f"MERGE INTO {view} USING {view} s ON true WHEN MATCHED THEN DELETE",
            f"COMMENT ON VIEW {view} IS 'forged'",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            self._pick("BEGIN", "COMMIT", "ROLLBACK", "CHECKPOINT", "VACUUM", "ANALYZE", "DETACH memory", "USE temp"),
        ))  # fmt: skip

    def _setting(self) -> str:
        return self._pick(
            "SET enable_external_access = true", "RESET lock_configuration", "SET VARIABLE x = 1", "PRAGMA version",
            "SET memory_limit = '100GB'", f"SET temp_directory = '{self._path()}'", "INSTALL httpfs", "LOAD json",
            "CALL pragma_version()", f"PRAGMA import_database('{self._path()}')", "PRAGMA enable_profiling",
        )  # fmt: skip

    def _several(self) -> str:
        parts = [self._one_of(self._select, self._write, self._explain, self._pivot)() for _ in range(2)]
        return self._pick("; ", ";;", " ; -- x\n").join(parts)

    def _fill(self, text: str) -> str:
        return text.replace("{path}", self._path()).replace("{select}", "SELECT 1")

    def _with_comment(self, text: str) -> str:
        words = text.split(" ")
        comment = self._pick("/* x */", "-- x\n", "/* /* */ */", "/* ( */", "/*\n;*/", "/* ' */")
        words.insert(self._random.randrange(len(words) + 1), comment)
        return " ".join(words)

    def _with_case(self, text: str) -> str:
        return self._pick(text.upper(), text.lower(), text.swapcase())

    def _with_quotes(self, text: str) -> str:
        name = self._pick(*VIEWS, *FILE_FUNCTIONS)
        return text.replace(name, f'"{name}"')

    def _spliced(self, text: str) -> str:
        words, others = text.split(" "), self._statement().split(" ")
        cut, other_cut = self._random.randrange(len(words) + 1), self._random.randrange(len(others) + 1)
        return " ".join([*words[:cut], *others[other_cut:]])
