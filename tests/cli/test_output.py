"""Data to stdout in three formats, words to stderr, nothing lost on the way."""

import csv
import io
import json
from datetime import UTC, datetime

import pytest

from kvq_batch.cli.output import UNTRAINED_WARNING, Format, Output

ROWS = [
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


def test_a_table_shows_brackets_as_they_are_and_is_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.TABLE).rows([{"id": "[red]x[/red]" + "y" * 300}])
    assert "[red]x[/red]" + "y" * 300 in capsys.readouterr().out


def test_no_rows_still_have_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Output(Format.CSV).rows([], ["a", "b"])
    assert capsys.readouterr().out.strip() == "a,b"
    Output(Format.JSON).rows([], ["a", "b"])
    assert json.loads(capsys.readouterr().out) == []


def test_words_go_to_stderr_and_untrained_is_said_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.note("hello [bold]")
    output.warn_untrained(["trained"])
    output.warn_untrained(["weightless", "untrained"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["hello [bold]", UNTRAINED_WARNING]
