"""Decoding process: if it crashes, hangs or is killed, one task of one video fails.

`isolation` starts it as a bare interpreter. `multiprocessing` would import the parent's main module into it, which is
Ray itself in a Ray worker. Only the standard library is imported before the process is bound to its parent. Errors of
this package are sent to the parent. Any other exception ends the process with a traceback, which the parent reports as
a crash of the decoder.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1


def main(fd: int, parent_pid: int, memory_bytes: int, task_function: str) -> None:
    """Answer tasks on the socket `fd` until it closes, with the result of the function or an error of this package.

    If the function returns an iterator, the answers are its parts, each sent after the parent asked for it, and None.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One decoder process is one core's work; OpenBLAS would start a thread per core in each of them.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from kvq_batch.domain.errors import DecodeError, KvqBatchError

    module, _, name = task_function.partition(":")
    run = getattr(import_module(module), name)
    import_module("kvq_batch.media.pyav_reader")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ceiling = _address_space_bytes() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    connection = Connection(fd)
    connection.send(None)
    while True:
        try:
            task, scratch_file = connection.recv()
        except EOFError:
            return
        try:
            answer = run(task, scratch_file)
            if isinstance(answer, Iterator):
                for part in answer:
                    connection.send(part)
                    # One part is made ahead of the parent, which bounds the memory.
                    connection.recv()
                answer = None
        except EOFError:
            return
        except MemoryError:
            answer = DecodeError(
                "out_of_memory",
                f"Decoding takes more than {memory_bytes >> 20} MiB. Raise limits.max_memory_bytes to score it.",
                True,
            )
        except KvqBatchError as error:
            answer = error
        connection.send(answer)


def _address_space_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    sys.path[:0] = sys.argv[5:]
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
