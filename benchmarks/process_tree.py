"""What a process and everything that it started have cost: core-seconds and memory, read from /proc.

A process belongs to the tree from the first look that finds its parent in it, and stays there when the parent ends. Of
a process that ends and is waited for, what it spent since the last look is missed. It needs no cgroup and no rights,
and starts nothing.
"""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

# Reading the page tables of a dozen large processes takes 0.1 s, in which they wait: at most a twentieth of the time.
_REST_AFTER_MEMORY = 20

Key = tuple[int, int]
"""Process id and time of start, as an id may be given out again."""


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    spent_s: float
    is_zombie: bool


class ProcessTree:
    """A process and its descendants; what is asked for is as of the last `look`."""

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._spent: dict[Key, float] = {}
        self._alive: list[Key] = []
        self._memory_due = 0.0
        self.peak_bytes = 0

    def look(self) -> None:
        """Takes note of every process of the tree, and of its memory when that is due."""
        listed = _listed()
        known = {pid for pid, start in self._spent if (pid, start) in listed} | {self._root}
        size = 0
        while size != len(known):
            size = len(known)
            known |= {pid for (pid, _), process in listed.items() if process.parent in known}
        of_tree = {key: process for key, process in listed.items() if key[0] in known}
        self._spent |= {key: process.spent_s for key, process in of_tree.items()}
        self._alive = [key for key, process in of_tree.items() if not process.is_zombie]
        if time.monotonic() >= self._memory_due:
            started = time.monotonic()
            self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(pid) for pid, _ in self._alive))
            self._memory_due = time.monotonic() + _REST_AFTER_MEMORY * (time.monotonic() - started)

    @property
    def pids(self) -> list[int]:
        """Those of the tree that are alive."""
        return [pid for pid, _ in self._alive]

    @property
    def core_seconds(self) -> float:
        """User and system time of all processes of the tree, those that have ended included."""
        return sum(self._spent.values())

    def kill(self) -> None:
        """Ends whatever is left of the tree; a process that comes up meanwhile is ended, too."""
        while True:
            self.look()
            if not self._alive:
                return
            for pid, _ in self._alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def machine_core_seconds() -> float:
    """What all processes of this machine have spent since it is up."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system = file.readline().split()[1:4]
    return (int(user) + int(nice) + int(system)) * _TICK_S


def _listed() -> dict[Key, _Process]:
    """Every process of this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name stands in brackets and may hold anything; state, parent and the numbers come after it.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            spent_s = (int(fields[11]) + int(fields[12])) * _TICK_S
            found[int(folder.name), int(fields[19])] = _Process(int(fields[1]), spent_s, fields[0] == "Z")
    return found


def _pss_bytes(pid: int) -> int:
    """Memory of a process, each page that several map shared out among them."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
