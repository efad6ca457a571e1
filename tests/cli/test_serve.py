"""`kvq-batch serve` as a user starts and stops it."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvq_batch.cli.app import app
from tests.support.finished_run import fill
from tests.support.processes import started

ROOT = Path(__file__).parents[2]


def test_port_in_use_is_explained(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", str(port)])
    assert result.exit_code == 2
    assert re.search(f"Cannot listen on 127.0.0.1:{port}: .*[Cc]hoose another --port", result.output.replace("\n", " "))


def test_missing_tables_are_explained(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "nothing"), "--port", "0"])
    assert result.exit_code == 2
    assert "there are no tables here" in result.output.replace("\n", " ")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_page_is_served_until_it_is_stopped(tmp_path: Path, sign: signal.Signals) -> None:
    fill(str(tmp_path / "tables"))
    command = [sys.executable, str(ROOT / "cli.py"), "serve", "tables", "--port", "0"]
    with started(command, cwd=tmp_path, stderr=subprocess.PIPE, env={**os.environ}) as process:
        assert process.stderr is not None
        assert select.select([process.stderr], [], [], 60)[0]
        line = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line
        deadline = time.monotonic() + 60
        with urllib.request.urlopen(f"{address[0]}videos?model=kvq-tiny", timeout=deadline - time.monotonic()) as page:
            assert b"3 videos" in page.read()
        process.send_signal(sign)
        rest = process.stderr.read()
        assert "Traceback" not in rest
        assert process.wait(60) == (0 if sign == signal.SIGINT else -signal.SIGTERM)
