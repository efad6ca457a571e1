"""The S3 server of the tests ends with the process that started it, even if that is killed."""

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


def test_server_ends_with_its_block() -> None:
    environment = dict(os.environ)
    with serve() as server:
        assert is_running(server.pid)
    assert not is_running(server.pid)
    assert dict(os.environ) == environment


def test_server_ends_with_its_parent_process(tmp_path: Path) -> None:
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
    """Return whether the process exists and is not a zombie."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
