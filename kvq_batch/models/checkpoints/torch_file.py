"""Safe reader of files that `torch.save` wrote: checks their checksums, then loads them without running code.

`torch.load` runs with `weights_only=True`. Its own error texts advise to switch that off, so they are never shown.
Objects of numpy, such as metrics that a training stored next to its weights, become `NumpyValue` placeholders: nothing
of numpy is built from the file.

A zip file has a checksum for each member, so a changed bit in the weights is found. The legacy format (torch before
1.6) has none, and neither has a zip file that was saved after `torch.serialization.set_crc32_options(False)`: there
only damage to the structure is found.
"""

import errno
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from kvq_batch.domain.errors import CheckpointError

_ZIP_MARK = b"PK\x03\x04"
_CHUNK_BYTES = 1 << 20
_DIRECTORY = 0x10
"""Attribute of a zip member: it is a directory."""
_ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, ValueError, LookupError, struct.error)
# What torch's unpickler raises for files that it cannot read, besides UnpicklingError. It has no error of its own.
_LOAD_ERRORS = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError, AssertionError,
    ArithmeticError, MemoryError, struct.error,
)  # fmt: skip
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


class NumpyValue:
    """Placeholder of a numpy object in a file: a scalar, an array or a type."""

    def __init__(self, *args: object) -> None:
        """Ignore the arguments that would build the object."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state that would fill the object."""


def _numpy_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the names under which numpy 1 and 2 pickle scalars, arrays and types, each as `NumpyValue`."""
    functions = ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    names = [f"numpy.{core}.{function}" for core in ("core", "_core") for function in functions]
    names += ["numpy.dtype", "numpy.ndarray", "numpy.bool_", "numpy.str_", "numpy.bytes_"]
    names += ["numpy.ma.core._mareconstruct", "numpy.ma.core.MaskedArray", "numpy.ma.MaskedArray"]
    names += sorted({f"numpy.{kind.__name__}" for kind in np.sctypeDict.values()})
    # numpy pickles an empty array with an empty bytes object.
    return [bytes, *((NumpyValue, name) for name in names)]


def read_torch_file(path: Path) -> object:
    """Return the content of a file that `torch.save` wrote, on the CPU.

    Raises:
        CheckpointError: a file that is missing, truncated, damaged, in another format, or that could run code.
    """
    try:
        # Opened once: given a path, torch chooses a format by its suffix. The checked bytes are those that are loaded.
        with path.open("rb") as file:
            _check_archive(path, file)
            file.seek(0)
            return _load(path, file)
    except OSError as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({error}). Check the path.") from error


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Compare all members of a zip file with their checksums; do nothing if the file is not a zip file."""
    has_mark = file.read(len(_ZIP_MARK)) == _ZIP_MARK
    try:
        if not zipfile.is_zipfile(file):
            if has_mark:
                raise zipfile.BadZipFile("no directory at the end")
            return
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if not has_mark or not all(map(_is_plain, members)):
                raise zipfile.BadZipFile("not written by torch.save")
            if any(member.CRC for member in members):
                for member in members:
                    _check_member(archive, member)
    except _ZIP_ERRORS as error:
        raise _damaged(path) from error
    except OSError as error:
        # A damaged offset makes zipfile seek to a negative position.
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(path) from error
    names = {member.filename.rpartition("/")[2] for member in members}
    if "data.pkl" not in names or "constants.pkl" in names:
        kind = "a TorchScript model" if "constants.pkl" in names else "a zip file without tensors"
        raise CheckpointError(f"{path}: {kind}, not a checkpoint. Save the state_dict of the model with torch.save.")


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: the checkpoint is truncated or damaged: a checksum or a size does not match. Download it again."
    )


def _is_plain(member: zipfile.ZipInfo) -> bool:
    """Return whether torch and zipfile read the same bytes of a member.

    zipfile reads at most `compress_size` bytes, torch `file_size`; torch reads nothing of a directory.
    """
    is_stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
    return is_stored and not member.external_attr & _DIRECTORY


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Read a member to its end, where zipfile compares its checksum."""
    with archive.open(member) as data:
        while data.read(_CHUNK_BYTES):
            pass


def _load(path: Path, file: BinaryIO) -> object:
    try:
        with torch.serialization.safe_globals(_numpy_globals()), warnings.catch_warnings():
            # torch warns about its own storage classes when it loads old files.
            warnings.simplefilter("ignore")
            content: object = torch.load(file, map_location="cpu", weights_only=True)
            return content
    except pickle.UnpicklingError as error:
        name = _GLOBAL.search(str(error))
        if name is None:
            raise _unreadable(path) from error
        raise CheckpointError(
            f"{path}: rejected, because loading it could run code (it loads {name[1]}). Use weights from a source that "
            "you trust, saved as a state_dict or as safetensors."
        ) from error
    except _LOAD_ERRORS as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: the file is truncated or damaged, or was not written by torch.save. Download it again."
    )
