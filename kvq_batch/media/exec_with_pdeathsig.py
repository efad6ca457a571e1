"""The first thing that a foreign program's process runs: it ties itself to its parent, then becomes the program.

A program that hangs would outlive a parent that is killed; the kernel ends this one with it. It is run as a file by a
bare interpreter (17 ms), because `preexec_fn` is unsafe in a process with threads, and a Ray worker is one. It imports
nothing of ours.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    """Becomes `command`, which dies with the process `parent_pid`."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
