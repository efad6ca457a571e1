"""The server of the tests leaves nothing behind, even where the process that started it is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.s3 import serve

STARTER = """
import sys
sys.path[:] = eval(sys.argv[1])
from tests.support.s3 import serve
with serve() as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


def test_it_ends_with_its_block() -> None:
    environment = dict(os.environ)
    with serve() as server:
        assert is_running(server.pid)
    assert not is_running(server.pid)
    assert dict(os.environ) == environment


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, repr([os.getcwd(), *sys.path])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert is_running(pid)
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie that waits for whoever adopted it."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
