"""The watchdog of a worker: the kernel kills the process if it makes no progress for too long.

A worker may hang where no time limit of Python reaches it: in native code that holds the GIL, in a GPU driver, on a
network file system, or because it was stopped (SIGSTOP). So the limit is a POSIX timer whose signal is SIGKILL: no
thread of the process needs to run. Ray starts the process again and retries its block, as after any crash.

Ray Data's own detection of hanging tasks only logs a warning (2.60).
"""

import ctypes
import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

import pyarrow as pa

from kvq_batch.domain.errors import DeviceLostError
from kvq_batch.storage.redact import redact

_LOG = logging.getLogger(__name__)

# <time.h>, <bits/types/sigevent_t.h> of glibc and musl on Linux.
_CLOCK_MONOTONIC = 1
_SIGEV_SIGNAL = 0
_SIGEV_BYTES = 64

_STDERR = 2

DUMP_S = 1.0
"""Seconds between the traceback in the log and the end of the process."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class _Sigevent(ctypes.Structure):
    _fields_ = (
        ("sigev_value", ctypes.c_void_p),
        ("sigev_signo", ctypes.c_int),
        ("sigev_notify", ctypes.c_int),
        ("_padding", ctypes.c_char * (_SIGEV_BYTES - ctypes.sizeof(ctypes.c_void_p) - 2 * ctypes.sizeof(ctypes.c_int))),
    )


class Watchdog:
    """Kills this process `timeout_s` seconds after the last `work`, and logs where each thread was.

    While the worker is at `rest`, a thread restarts the timer, so that only a process that is stopped is killed. The
    timer ends with the process; children do not inherit it.

    Raises:
        OSError: the kernel gives no timer.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "timer_create"):
            # glibc before 2.34.
            self._libc = ctypes.CDLL("librt.so.1", use_errno=True)
        self._timer = ctypes.c_void_p()
        event = _Sigevent(sigev_signo=signal.SIGKILL, sigev_notify=_SIGEV_SIGNAL)
        self._check(self._libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)))
        self._is_resting = False
        self._lock = threading.Lock()
        self.work()
        threading.Thread(target=self._keep_alive, name="watchdog", daemon=True).start()

    def work(self) -> None:
        """Start the next step of the work: the process is killed unless `work` or `rest` is called in time."""
        with self._lock:
            self._is_resting = False
            self._restart()

    def rest(self) -> None:
        """Note that the worker waits for work, or for room in its output, however long that takes."""
        with self._lock:
            self._is_resting = True
            self._restart()

    def _keep_alive(self) -> None:
        while True:
            time.sleep(self._timeout_s / 4)
            with self._lock:
                if self._is_resting:
                    self._restart()

    def _restart(self) -> None:
        faulthandler.dump_traceback_later(max(self._timeout_s - DUMP_S, self._timeout_s / 2), file=_STDERR)
        seconds, fraction = divmod(self._timeout_s, 1)
        value = _Itimerspec(_Timespec(0, 0), _Timespec(int(seconds), int(fraction * 1e9)))
        self._check(self._libc.timer_settime(self._timer, 0, ctypes.byref(value), None))

    def _check(self, result: int) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot set a timer of the kernel: {os.strerror(number)}")


def watched(worker: type, timeout_s: float) -> type:
    """Return a class that works like `worker` and is killed if one step of it takes longer than `timeout_s`.

    It also ends its process when it raises DeviceLostError. A step is the construction of the worker, or what it does
    between two values that it yields. It may yield None for progress without a table. The class keeps the name of
    `worker`, which is how Ray names its processes.
    """
    return type(worker.__name__, (_WatchedWorker,), {"worker": worker, "timeout_s": timeout_s})


class _WatchedWorker:
    worker: ClassVar[type]
    timeout_s: ClassVar[float]

    def __init__(self, settings: object) -> None:
        self._watchdog = Watchdog(self.timeout_s)
        self._worker: Any = self.worker(settings)
        self._watchdog.rest()

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        self._watchdog.work()
        try:
            output = self._worker(rows)
            steps = iter((output,)) if isinstance(output, pa.Table) else output
            del output
            # A one-element list instead of a variable: nothing here keeps the frames of a yielded table alive.
            while step := [*islice(steps, 1)]:
                if step[0] is not None:
                    self._watchdog.rest()
                    yield step.pop()
                self._watchdog.work()
        except DeviceLostError as error:
            # Ray starts the process again and retries the block once, as after a crash; then the driver takes over.
            _LOG.critical("ending this worker: %s", redact(str(error)))
            os._exit(1)
        finally:
            self._watchdog.rest()
