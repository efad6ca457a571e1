"""Scratch directories for frames that pass between processes, and the cleanup of leftover ones.

An owner locks its directory while it runs. The kernel releases the lock when the owner ends in any way, so a directory
that can be locked has no owner. A process id is not enough: ids are reused, and containers that share /dev/shm have
separate ones.
"""

import fcntl
import mmap
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kvq_batch.domain.errors import FatalError, TransientError

_PREFIX = "kvq-batch-"


class ScratchDirectory:
    """A directory of this process under `root`, removed on exit, or by `sweep` after a crash."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Self:
        while True:
            try:
                self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=self._root))
                self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                if self._root.is_dir():
                    continue  # another process removed it before it was locked
                raise FatalError(f"The scratch folder {self._root} does not exist. Create it or set another.") from None
            except OSError as error:
                raise FatalError(
                    f"Cannot write to scratch folder {self._root}: {error.strerror}. Set another."
                ) from error
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self.path.exists():
                return self
            os.close(self._lock)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def scratch_directories(root: Path) -> set[Path]:
    """Return the scratch directories under `root`, in use or leftover."""
    return set(root.glob(f"{_PREFIX}[0-9]*-*"))


def sweep(root: Path) -> list[Path]:
    """Remove the scratch directories under `root` that no process owns, and return them."""
    removed = []
    for path in scratch_directories(root):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # removed meanwhile, or of another user
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
    """The location of an array in a scratch file: byte offset (a multiple of the page size), shape and dtype."""

    offset: int
    shape: tuple[int, ...]
    dtype: str = "uint8"

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class ScratchWriter:
    """Writes arrays into a new file, which another process maps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._end = 0
        self.extents: list[Extent] = []
        self.arrays: list[NDArray[Any]] = []

    def allocate(self, shape: tuple[int, ...], dtype: str = "uint8") -> NDArray[Any]:
        """Return a zeroed array of `shape`, not empty, at the end of the file.

        Raises:
            TransientError: there is no space. It is reserved first: a write to a full memory file system is a SIGBUS.
        """
        extent = Extent(self._end, shape, dtype)
        size = extent.num_bytes
        try:
            os.posix_fallocate(self._file, self._end, size)
        except OSError as error:
            raise TransientError(
                f"The scratch folder has no space for {size} bytes of frames ({error.strerror}). Use a larger one, "
                "or fewer decoders in the job."
            ) from error
        mapped = mmap.mmap(self._file, size, offset=self._end)
        array: NDArray[Any] = np.frombuffer(mapped, dtype).reshape(shape)
        self.extents.append(extent)
        self.arrays.append(array)
        self._end += -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        return array

    def position(self, array: NDArray[Any]) -> int:
        """Return the index of the extent of an array that `allocate` returned."""
        return next(i for i, known in enumerate(self.arrays) if known is array)

    def close(self) -> None:
        os.close(self._file)


def map_arrays(path: Path, extents: list[Extent]) -> list[NDArray[Any]]:
    """Map the arrays of a scratch file one by one: each frees its memory with its last reference.

    The file is unlinked at once, so only the maps keep its memory. Writing into an array changes this process's copy.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.unlink(path)
        return [_map_array(file, extent) for extent in extents]
    finally:
        os.close(file)


def _map_array(file: int, extent: Extent) -> NDArray[Any]:
    size = extent.num_bytes
    mapped = mmap.mmap(file, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=extent.offset)
    return np.frombuffer(mapped, extent.dtype).reshape(extent.shape)
