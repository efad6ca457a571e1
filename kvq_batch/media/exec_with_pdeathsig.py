"""Starts a program that the kernel kills when its parent ends.

Otherwise a program that hangs outlives a parent that was killed. A bare interpreter runs this file (17 ms), because
`preexec_fn` is unsafe in a process with threads, such as a Ray worker. It imports only the standard library.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    """Replace this process by `command`, which ends with the process `parent_pid`."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
