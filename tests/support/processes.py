"""Processes of a test: start one, find and name its descendants, check later whether they are still alive."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process with text pipes and kill it at the end of the block.

    The block of a plain Popen waits for the end of the process, without end if a check in it failed before that.
    """
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Process:
    """A process, identified by pid and start time, because pids are reused."""

    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.pid}:{self.started}"

    @classmethod
    def parse(cls, text: str) -> "Process":
        pid, _, started = text.partition(":")
        return cls(int(pid), started)

    @property
    def is_alive(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found[1] == self.started and found[2] not in "ZX"

    @property
    def title(self) -> str:
        """Its command line; empty after its end."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""


def named(pid: int, word: str) -> list[Process]:
    """Return the descendants of `pid` whose command line contains `word`."""
    return [process for process in below(pid) if word in process.title]


def below(pid: int) -> list[Process]:
    """Return all living descendants of `pid`."""
    parents: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        found = _stat(int(entry.name)) if entry.name.isdigit() else None
        if found is not None and found[2] not in "ZX":
            parents.setdefault(found[0], []).append(Process(int(entry.name), found[1]))
    descendants, pending = [], [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        descendants += children
        pending += [child.pid for child in children]
    return descendants


def _stat(pid: int) -> tuple[int, str, str] | None:
    """Return parent, start time in ticks, and state."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), fields[19], fields[0]
