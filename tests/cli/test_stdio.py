"""Standard streams: escaped control characters, encodings, closed readers and full disks, through the real command."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvq_batch.cli.stdio import escape_controls, escape_json
from tests.support.scored import make_scored

ROOT = Path(__file__).parents[2]
ENDLESS = "SELECT count(*) FROM range(1000000000000)"
CONTROLS = "\x1b[31mred\x1b[0m \x07\x08\r\x7f \x9b2J \u202eexe.4pm\u202c \u2066x\u2069 \u2028"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_scored(tmp_path_factory.mktemp("scored")).tables


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", "kvq_batch.cli", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **options)


def run(*arguments: str, **options: Any) -> tuple[int, bytes, str]:
    process = start(*arguments, **{"stdout": subprocess.PIPE, **options})
    out, err = process.communicate(timeout=120)
    return process.returncode, out or b"", err.decode()


def literal(text: str) -> str:
    return " || ".join(f"chr({ord(character)})" for character in text)


@pytest.mark.parametrize("text", ["plain", "ü Ω 漢字 👩‍👩‍👧", "tab\tand\nline", "می‌خواهم"])
def test_ordinary_text_is_not_escaped(text: str) -> None:
    assert escape_controls(text) == text
    assert escape_json(json.dumps(text, ensure_ascii=False)) == json.dumps(text, ensure_ascii=False)


def test_every_control_character_is_escaped() -> None:
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x061C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    ):
        if chr(code) not in "\t\n":
            shown = escape_controls(chr(code))
            assert (shown.isprintable(), shown[0], eval(f"'{shown}'")) == (True, "\\", chr(code))
    assert escape_controls(os.fsdecode(b"caf\xe9")) == r"caf\udce9"


def test_table_escapes_control_characters_and_data_is_exact(tables: str) -> None:
    sql = f'SELECT {literal(CONTROLS)} AS "{CONTROLS}", [{literal(CONTROLS)}] AS list'
    code, out, _ = run("query", tables, sql)
    assert code == 0
    assert out.decode().count(escape_controls(CONTROLS)) == 2
    assert escape_controls(out.decode()) == out.decode()
    _, out, _ = run("query", tables, sql, "-o", "json")
    assert json.loads(out) == [{CONTROLS: CONTROLS, "list": [CONTROLS]}]
    assert escape_controls(out.decode()) == out.decode()
    _, out, _ = run("query", tables, sql, "-o", "csv")
    header, row = csv.reader(io.StringIO(out.decode(), newline=""))
    assert (header[0], row[0], json.loads(row[1])) == (CONTROLS, CONTROLS, [CONTROLS])


def test_messages_escape_control_characters(tables: str) -> None:
    for arguments in (["query", tables, f"SELECT '{CONTROLS}' + x"], ["status", f"/nowhere/{CONTROLS}"]):
        code, _, err = run(*arguments)
        assert code == 2
        assert escape_controls(err) == err


def test_ascii_stdout_shows_escapes(tables: str) -> None:
    sql = "SELECT 'ü Ω 👍' AS text"
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    assert r"\xfc \u03a9 \U0001f44d" in run("query", tables, sql, env=environment)[1].decode("ascii")
    _, out, _ = run("query", tables, sql, "-o", "json", env=environment)
    assert json.loads(out.decode("ascii")) == [{"text": "ü Ω 👍"}]
    code, _, err = run("query", tables, sql, "-o", "csv", env=environment)
    assert (code, "set PYTHONIOENCODING=utf-8" in err) == (2, True)


@pytest.mark.parametrize("output", ["table", "json", "csv"])
def test_exited_reader_ends_the_command_quietly(tables: str, output: str) -> None:
    sql = "SELECT i FROM range(200000) t(i)"
    with start("query", tables, sql, "-o", output, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("command", [[], ["maps"]])
def test_exited_reader_ends_the_help_quietly(command: list[str]) -> None:
    with start(*command, "--help", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    # rich, which writes the help, exits with 1.
    assert process.returncode in (1, 141)


@pytest.mark.parametrize(
    "arguments",
    [["query", "{tables}", "SELECT 1"], ["status", "{tables}", "-o", "json"], ["--help"], ["maps", "--help"]],
)
def test_full_disk_is_one_sentence(tables: str, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        code, _, err = run(*(word.format(tables=tables) for word in arguments), stdout=full)
    assert (code, err) == (1, "error: Cannot write the output: No space left on device.\n")


def test_closed_stdout_discards_the_output(tables: str) -> None:
    command = f"exec {sys.executable} -m kvq_batch.cli query {tables} 'SELECT 1' >&-"
    result = subprocess.run(["sh", "-c", command], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (0, b"")


def test_ctrl_c_stops_a_query(tables: str) -> None:
    with start("query", tables, ENDLESS, stdout=subprocess.PIPE) as process:
        time.sleep(6)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"interrupted\n")


def test_messages_survive_a_lost_terminal(tables: str) -> None:
    """The exit code is that of the command: a message that nobody can read changes nothing."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kvq_batch.cli", "query", tables, "SELECT * FROM nothing"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert process.wait(timeout=60) == 2


def test_query_limits_are_options(tables: str) -> None:
    code, _, err = run("query", tables, ENDLESS, "--timeout", "0.5")
    assert (code, "time limit of 0.5 s" in err) == (2, True)
    code, _, err = run("query", tables, "SELECT list(i) FROM range(100000000) t(i)", "--memory-limit", "50MB")
    assert (code, "the limit of 50MB" in err) == (2, True)
    assert run("query", tables, "SELECT 1", "--memory-limit", "lots")[0] == 2


def test_query_that_cannot_stop_ends_the_process(tables: str) -> None:
    sql = "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))"
    started = time.monotonic()
    code, _, err = run("query", tables, sql, "--timeout", "0.5")
    assert (code, "did not stop at its time limit" in err) == (2, True)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("endpoint", ["localhost:9000", "s3.example.com", "s3://bucket", "http://", ""])
def test_endpoint_without_scheme_is_rejected(endpoint: str) -> None:
    code, _, err = run("status", "s3://bucket/tables", "--endpoint-url", endpoint)
    assert code == 2
    assert err.startswith(f"error: Invalid endpoint '{endpoint}'")
