"""Data goes to stdout in five formats, messages go to the log."""

import csv
import io
import json
import logging
import os
import pty
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvq_batch.cli.output import UNTRAINED_WARNING, Format, Output
from kvq_batch.domain.errors import SpecError

ROOT = Path(__file__).parents[2]

ROWS: list[dict[str, Any]] = [
    {"id": "a[b]", "score": 1.25, "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "ok": True, "note": None},
    {"id": "ü,\n", "score": float("nan"), "at": None, "ok": False, "note": {"x": 1.5}},
]


def test_json_is_strict_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.JSON).rows(ROWS)
    rows = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert rows[0] == {"id": "a[b]", "score": 1.25, "at": "2026-01-02T03:04:05.000000Z", "ok": True, "note": None}
    assert rows[1]["score"] is None
    assert rows[1]["id"] == "ü,\n"


def test_csv_quotes_and_keeps_precision(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.CSV).rows([{"id": "ü,\n", "score": 0.1234567890123, "n": None}])
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows == [["id", "score", "n"], ["ü,\n", "0.1234567890123", ""]]


def test_wide_integers_dates_and_nested_values(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"sum": Decimal(10**20), "price": Decimal("1.50"), "day": date(2026, 1, 2), "list": [Decimal(7), 0.5]}
    Output(Format.JSON).rows([row])
    assert json.loads(capsys.readouterr().out) == [{"sum": 10**20, "price": 1.5, "day": "2026-01-02", "list": [7, 0.5]}]
    Output(Format.CSV).rows([row])
    assert capsys.readouterr().out.splitlines()[1] == '100000000000000000000,1.50,2026-01-02,"[7, 0.5]"'


def test_table_keeps_brackets_and_long_cells(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.TABLE).rows([{"id": "[red]x[/red]" + "y" * 300}], title="t[/x]")
    out = capsys.readouterr().out
    assert "[red]x[/red]" + "y" * 300 in out
    assert "t[/x]" in out


def test_table_aligns_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.TABLE).rows([{"n": Decimal(1000), "x": "a"}, {"n": None, "x": "bb"}, {"n": 7, "x": None}])
    assert capsys.readouterr().out.splitlines() == ["   n  x", "1000  a", "      bb", "   7"]


def test_empty_tables_have_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.CSV).rows([], ["a", "b"])
    assert capsys.readouterr().out.strip() == "a,b"
    Output(Format.JSON).rows([], ["a", "b"])
    assert json.loads(capsys.readouterr().out) == []
    Output(Format.TABLE).rows([], ["a", "b"])
    assert capsys.readouterr().out.splitlines() == ["a  b", "(no rows)"]


def test_parquet_keeps_types(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    table = pa.table({"id": ["a", None], "n": pa.array([1, 2], pa.int32()), "at": pa.array([0, 1], pa.timestamp("us"))})
    Output(Format.PARQUET).answer(table)
    assert pq.read_table(io.BytesIO(capsysbinary.readouterr().out)).equals(table)
    Output(Format.PARQUET).rows([{"x": 0.1}, {"x": None}])
    assert pq.read_table(io.BytesIO(capsysbinary.readouterr().out)).to_pydict() == {"x": [0.1, None]}
    with pytest.raises(SpecError, match="Column 'x' cannot be written as Parquet"):
        Output(Format.PARQUET).rows([{"x": 1}, {"x": "a"}])


def test_markdown_shows_no_markup_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [{"id": "<script>a|b\n[x](y)`*_c_", "n": 1}, {"id": "a_b.mp4", "n": None}]
    Output(Format.MARKDOWN).rows(rows, title="t")
    assert capsys.readouterr().out.splitlines() == [
        "**t**",
        "",
        "| id | n |",
        "| --- | ---: |",
        r"| &lt;script&gt;a\|b<br>\[x\](y)\`\*\_c\_ | 1 |",
        "| a_b.mp4 |  |",
    ]
    Output(Format.MARKDOWN).record({"a": 1.5})
    assert capsys.readouterr().out.splitlines() == ["| name | value |", "| --- | ---: |", "| a | 1.5 |"]


def test_record_is_one_object_or_row(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.JSON).record({"a": 1, "b": [{"c": float("inf")}]})
    assert json.loads(capsys.readouterr().out) == {"a": 1, "b": [{"c": None}]}
    Output(Format.CSV).record({"a": 1, "b": "x"})
    assert capsys.readouterr().out == "a,b\n1,x\n"
    Output(Format.TABLE).record({"first": 1, "b": 0.123456789})
    assert capsys.readouterr().out.splitlines() == ["first  1", "b      0.123457"]


def test_notes_and_warnings_go_to_the_log(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    output = Output()
    with caplog.at_level(logging.INFO):
        output.note("100% [bold]")
        output.warn_untrained([])
        output.warn_untrained(["b@1", "a@1", "b@1"])
    assert capsys.readouterr().out == ""
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "100% [bold]"),
        ("WARNING", UNTRAINED_WARNING.format(names="a@1, b@1")),
    ]


def test_terminal_folds_sentences_but_not_ids() -> None:
    code = (
        "from kvq_batch.cli.output import Output\n"
        "row = {'id': 'i' * 24, 'n': 1, 'message': 'word ' * 30, 'code': 'c' * 12}\n"
        "Output().rows([row])\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment, check=True, cwd=ROOT)
    os.close(theirs)
    lines = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    assert "i" * 24 + "  1  word word" in lines[1]
    assert lines[1].rstrip().endswith("c" * 12)
    assert max(map(len, lines[1:])) <= 80
