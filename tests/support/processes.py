"""Which processes stand below another, which of them are what, and which are still there later."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one of the same number by when it was born."""

    pid: int
    born: str

    def __str__(self) -> str:
        return f"{self.pid}:{self.born}"

    @classmethod
    def parse(cls, text: str) -> "Process":
        pid, _, born = text.partition(":")
        return cls(int(pid), born)

    @property
    def is_alive(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found[1] == self.born and found[2] not in "ZX"

    @property
    def title(self) -> str:
        """Its command line, empty once it is gone."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""


def named(pid: int, word: str) -> list[Process]:
    """Those below `pid` whose command line holds `word`."""
    return [process for process in below(pid) if word in process.title]


def below(pid: int) -> list[Process]:
    """Every living process below `pid`, at any depth."""
    parents: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        found = _stat(int(entry.name)) if entry.name.isdigit() else None
        if found is not None and found[2] not in "ZX":
            parents.setdefault(found[0], []).append(Process(int(entry.name), found[1]))
    found_below, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found_below += children
        waiting += [child.pid for child in children]
    return found_below


def _stat(pid: int) -> tuple[int, str, str] | None:
    """Parent, time of birth in ticks, and state."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), fields[19], fields[0]
