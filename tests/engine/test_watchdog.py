"""The watchdog: the kernel kills a process without progress, however it hangs."""

import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator

import pyarrow as pa
import pytest

from kvq_batch.config.load import make_job
from kvq_batch.domain.errors import SpecError
from kvq_batch.engine.watchdog import watched

TIMEOUT_S = 2.0

HANG = {
    "the GIL is held": "ctypes.PyDLL(None).sleep(60)",
    "the process is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "it waits for a lock": "threading.Lock().acquire() and time.sleep(60)",
}


def run(code: str) -> tuple[int, str, float]:
    """Return exit code, stderr and seconds of a process with a watchdog of `TIMEOUT_S` that executes `code`."""
    setup = (
        "import ctypes, os, signal, threading, time\n"
        "from kvq_batch.engine.watchdog import Watchdog\n"
        f"watchdog = Watchdog({TIMEOUT_S})\n"
    )
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", setup + code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60
    )
    return process.returncode, process.stderr, time.monotonic() - started


@pytest.mark.parametrize("how", HANG)
def test_hung_process_is_killed(how: str) -> None:
    code, log, seconds = run(HANG[how])
    assert code == -signal.SIGKILL
    assert TIMEOUT_S < seconds < TIMEOUT_S + 10
    if how != "the process is stopped":
        # The traceback of the hung thread is in the log.
        assert 'File "<string>", line 4 in <module>' in log


def test_stopped_process_is_killed_at_rest() -> None:
    assert run(f"watchdog.rest()\n{HANG['the process is stopped']}")[0] == -signal.SIGKILL


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("watchdog.rest(); time.sleep(5)", id="at rest"),
        pytest.param("for _ in range(10): time.sleep(0.5); watchdog.work()", id="with progress"),
    ],
)
def test_process_with_progress_lives(code: str) -> None:
    code_, log, seconds = run(code)
    assert (code_, log) == (0, "")
    assert seconds > 2 * TIMEOUT_S


def test_child_does_not_inherit_timer() -> None:
    assert run("watchdog.rest()\nchild = os.fork()\nif not child: time.sleep(4); os._exit(7)\n"
               "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7")[0] == 0  # fmt: skip


class Splitter:
    def __init__(self, settings: object) -> None:
        assert settings == "settings"

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table | None]:
        for row in range(rows.num_rows):
            yield None
            yield pa.table({"x": [rows["x"][row].as_py()]})


def test_watched_worker_yields_tables_only() -> None:
    worker = watched(Splitter, 3600.0)
    assert worker.__name__ == "Splitter"
    outputs = worker("settings")(pa.table({"x": [1, 2, 3]}))
    first = next(outputs)
    assert first["x"].to_pylist() == [1]
    reference = weakref.ref(first)
    del first
    assert reference() is None
    assert [output["x"].to_pylist() for output in outputs] == [[2], [3]]


def test_worker_timeout_must_exceed_decode_timeout() -> None:
    values = {"name": "n", "tables": "t", "catalog": {"source": "v"}, "models": [{"name": "luma-sharpness"}]}
    with pytest.raises(SpecError, match=r"worker_timeout_s \(1800\) must be more than timeout_s \(3600\)"):
        make_job(values | {"limits": {"timeout_s": 3600}}, "test")
    assert make_job(values | {"limits": {"timeout_s": 3600, "worker_timeout_s": 7200}}, "test").limits.timeout_s == 3600
