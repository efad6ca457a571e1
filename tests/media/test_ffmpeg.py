"""ffmpeg as a child process: filters, errors, time limit, and its end with the parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvq_batch.domain.errors import FatalError, LabelError
from kvq_batch.media import exec_with_pdeathsig
from kvq_batch.media.ffmpeg import executable, ffmpeg_version, require_filter, run_ffmpeg

# Reads its own endless noise at its native rate.
ENDLESS = ["-re", "-f", "lavfi", "-i", "testsrc=size=64x64:rate=1", "-f", "null", "-"]


def test_ffmpeg_has_the_filter_of_labels() -> None:
    require_filter("libvmaf")
    assert ffmpeg_version()
    with pytest.raises(FatalError, match="no filter nonsense"):
        require_filter("nonsense")


def test_error_of_ffmpeg_is_reported() -> None:
    with pytest.raises(LabelError) as caught:
        run_ffmpeg(["-f", "rawvideo", "-i", "-", "-f", "null", "-"], b"x")
    assert caught.value.code == "ffmpeg_failed"
    assert len(caught.value.message) > 20


def test_ffmpeg_that_hangs_is_killed() -> None:
    with pytest.raises(LabelError, match="killed after 1 s") as caught:
        run_ffmpeg(ENDLESS, timeout_s=1)
    assert (caught.value.code, caught.value.permanent) == ("ffmpeg_timeout", False)


def test_ffmpeg_ends_with_its_parent() -> None:
    program = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-I', '-S', {exec_with_pdeathsig.__file__!r}, str(os.getpid()),"
        f" {executable()!r}, '-loglevel', 'error', *{ENDLESS!r}], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        while Path(f"/proc/{child}/exe").resolve() != Path(executable()).resolve():
            time.sleep(0.02)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
