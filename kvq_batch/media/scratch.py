"""Directories on a memory file system through which frames pass between processes, and the removal of forgotten ones.

An owner holds a lock on its directory for as long as it lives; the kernel lets go of it however the owner dies, so a
directory that can be locked is nobody's. (A process id says less: ids are reused, and containers that share /dev/shm
number theirs apart.) It does not choose a place: where frames go is the job's word.
"""

import fcntl
import mmap
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import FatalError, TransientError

_PREFIX = "kvq-batch-"


class ScratchDirectory:
    """A directory of this process under `root`, removed on exit, and by `sweep` if the process dies before."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Self:
        while True:
            try:
                self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=self._root))
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                if self._root.is_dir():
                    continue  # swept between its making and its locking
                raise FatalError(f"scratch folder {self._root} does not exist; make it or name another") from None
            except OSError as error:
                raise FatalError(f"scratch folder {self._root} cannot be written: {error.strerror}") from error
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self.path.exists():
                return self
            os.close(self._lock)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def scratch_directories(root: Path) -> set[Path]:
    """The scratch directories under `root`, of the living and of the dead."""
    return set(root.glob(f"{_PREFIX}[0-9]*-*"))


def sweep(root: Path) -> list[Path]:
    """Removes the scratch directories under `root` whose owners are dead, and returns them."""
    removed = []
    for path in scratch_directories(root):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # gone meanwhile, or another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
        finally:
            os.close(lock)
    return removed


@dataclass(frozen=True, slots=True)
class Extent:
    """Where an array is in a scratch file: byte offset (a multiple of the page size) and shape, uint8."""

    offset: int
    shape: tuple[int, ...]


class ScratchWriter:
    """Arrays in a new file, written by one process to be mapped by another."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._end = 0
        self.extents: list[Extent] = []
        self.arrays: list[NDArray[np.uint8]] = []

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A zeroed uint8 array of `shape` at the end of the file.

        Raises:
            TransientError: there is no room; taken before writing, as a full memory file system answers a write with
                SIGBUS.
        """
        size = int(np.prod(shape))
        try:
            os.posix_fallocate(self._file, self._end, size)
        except OSError as error:
            raise TransientError(
                f"no room for {size} bytes of frames in the scratch folder ({error.strerror}); give it more room, "
                "or the job fewer decoders"
            ) from error
        mapped = mmap.mmap(self._file, size, offset=self._end)
        array: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8).reshape(shape)
        self.extents.append(Extent(self._end, shape))
        self.arrays.append(array)
        self._end += -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        return array

    def position(self, array: NDArray[np.uint8]) -> int:
        """The number of an array that `allocate` gave, the index of its extent."""
        return next(i for i, known in enumerate(self.arrays) if known is array)

    def close(self) -> None:
        os.close(self._file)


def map_arrays(path: Path, extents: list[Extent]) -> list[NDArray[np.uint8]]:
    """The arrays of a scratch file, mapped one by one: each frees its memory when the last reference to it goes.

    The file is unlinked at once, so that only the maps keep it. Writing into an array changes this process's copy.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.unlink(path)
        return [_map_array(file, extent) for extent in extents]
    finally:
        os.close(file)


def _map_array(file: int, extent: Extent) -> NDArray[np.uint8]:
    size = int(np.prod(extent.shape))
    mapped = mmap.mmap(file, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=extent.offset)
    return np.frombuffer(mapped, np.uint8).reshape(extent.shape)
