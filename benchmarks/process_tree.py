"""Core-seconds and memory of a process and all its descendants, read from /proc.

A process belongs to the tree after the first sample that finds its parent in the tree, and stays in it when the parent
ends. The time that a process spends between the last sample and its end is missed. Needs no cgroup and no privileges.
"""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

# Reading the page tables of a dozen large processes takes 0.1 s and blocks them: spend at most a twentieth of the time.
_PAUSE_FACTOR = 20

Key = tuple[int, int]
"""Process id and start time, because an id may be reused."""


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    spent_s: float
    is_zombie: bool


class ProcessTree:
    """A process and its descendants, as of the last `sample`."""

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._spent: dict[Key, float] = {}
        self._alive: list[Key] = []
        self._next_memory_s = 0.0
        self.peak_bytes = 0

    def sample(self) -> None:
        """Update the processes of the tree, and their memory if the last reading is old enough."""
        listed = _listed()
        known = {pid for pid, start in self._spent if (pid, start) in listed} | {self._root}
        size = 0
        while size != len(known):
            size = len(known)
            known |= {pid for (pid, _), process in listed.items() if process.parent in known}
        of_tree = {key: process for key, process in listed.items() if key[0] in known}
        self._spent |= {key: process.spent_s for key, process in of_tree.items()}
        self._alive = [key for key, process in of_tree.items() if not process.is_zombie]
        if time.monotonic() >= self._next_memory_s:
            started = time.monotonic()
            self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(pid) for pid, _ in self._alive))
            self._next_memory_s = time.monotonic() + _PAUSE_FACTOR * (time.monotonic() - started)

    @property
    def pids(self) -> list[int]:
        """Return the ids of the processes that are alive."""
        return [pid for pid, _ in self._alive]

    @property
    def core_seconds(self) -> float:
        """Return user and system time of all processes of the tree, with those that have ended."""
        return sum(self._spent.values())

    def kill(self) -> None:
        """Kill all processes of the tree, with those that start meanwhile."""
        while True:
            self.sample()
            if not self._alive:
                return
            for pid, _ in self._alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def machine_core_seconds() -> float:
    """Return the core-seconds of all processes of this machine since it started."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system = file.readline().split()[1:4]
    return (int(user) + int(nice) + int(system)) * _TICK_S


def _listed() -> dict[Key, _Process]:
    """Return every process of this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name is in brackets and may contain anything; state, parent and the numbers follow it.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            spent_s = (int(fields[11]) + int(fields[12])) * _TICK_S
            found[int(folder.name), int(fields[19])] = _Process(int(fields[1]), spent_s, fields[0] == "Z")
    return found


def _pss_bytes(pid: int) -> int:
    """Return the proportional set size: each shared page is divided among the processes that map it."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
