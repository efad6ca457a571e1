"""Ray's own words, kept apart from ours: what it prints and what its C++ side writes go to the logger `kvq_batch.ray`.

stdout belongs to data, and stderr to the progress of the run or to one JSON object a line. Ray's notices of dying
workers are worth keeping, for who asks; what the deaths cost is in the ledger. This module silences nothing of ours.
"""

import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

LOGGER = logging.getLogger("kvq_batch.ray")

STDERR = 2


@contextmanager
def rays_words_to_log() -> Iterator[None]:
    """Inside, `print` and the file descriptor of stderr end in the log; `sys.stderr` stays where it was."""
    with redirect_stdout(_ToLog()), _native_stderr_to_log():
        yield


class _ToLog(io.TextIOBase):
    def write(self, text: str) -> int:
        if text.strip():
            LOGGER.info(text.rstrip())
        return len(text)


@contextmanager
def _native_stderr_to_log() -> Iterator[None]:
    sys.stderr.flush()
    original = os.dup(STDERR)
    read_end, write_end = os.pipe()
    os.dup2(write_end, STDERR)
    os.close(write_end)
    reader = threading.Thread(target=_drain, args=(read_end,), name="ray-stderr", daemon=True)
    reader.start()
    outside, inside = sys.stderr, os.fdopen(os.dup(original), "w", buffering=1, errors="backslashreplace")
    sys.stderr = inside
    try:
        yield
    finally:
        sys.stderr = outside
        inside.close()
        os.dup2(original, STDERR)
        os.close(original)


def _drain(read_end: int) -> None:
    # Processes that Ray started may hold the other end for a moment longer than we do; the thread outlives that.
    with os.fdopen(read_end, errors="replace") as lines:
        for line in lines:
            if line.strip():
                LOGGER.info(line.rstrip())
