"""Writers of a training set: files in a new folder, local or remote, and tar shards for WebDataset.

A tar shard holds whole samples. The members of a sample are adjacent and named KEY.EXTENSION. Times and owners are
zero, so the same samples give the same bytes.
"""

import io
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.storage.errors import FOREIGN_ERRORS, explain_error, known_errors
from kvq_batch.storage.objects import put_file
from kvq_batch.storage.options import StorageOptions, absolute, display_uri, filesystem, join, translate_storage_errors

SHARD_BYTES = 256 << 20
"""Size at which a tar shard is closed. One shard is held in memory."""


class SetFolder:
    """A new folder for one training set.

    Raises:
        SpecError: the folder is not empty or cannot be reached.
        FatalError: a file cannot be written.
    """

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self.uri = absolute(uri)
        self._options = options
        with translate_storage_errors(self.uri), known_errors():
            file_system, root = filesystem(self.uri, options)
            if file_system.exists(root) and file_system.find(root):
                raise SpecError(
                    f"{display_uri(self.uri)} is not empty; choose a new folder, so that two sets are not mixed"
                )

    def write(self, name: str, content: bytes) -> str:
        """Write the file `name`, which may contain folders, and return its address."""
        uri = join(self.uri, name)
        try:
            put_file(uri, content, self._options)
        except FOREIGN_ERRORS as error:
            raise FatalError(f"{display_uri(uri)} cannot be written: {explain_error(error, uri)}") from error
        return uri


class TarShards:
    """Writer that collects the samples of one split into tar files `SPLIT-000000.tar`, ... below a folder."""

    def __init__(self, folder: SetFolder, split: str, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._split = split
        self._shard_bytes = shard_bytes
        self.num_shards = 0
        self._start()

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a sample, given its members by extension. WebDataset ends a key at the first dot, so a key has none."""
        if "." in key:
            raise ValueError(f"the key of a sample must not contain a dot, got {key!r}")
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))
        self._num_samples += 1
        if self._buffer.tell() >= self._shard_bytes:
            self.close()
            self._start()

    def close(self) -> None:
        """Write the last shard unless it is empty."""
        self._tar.close()
        if self._num_samples:
            self._folder.write(f"{self._split}-{self.num_shards:06d}.tar", self._buffer.getvalue())
            self.num_shards += 1

    def _start(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._num_samples = 0


def npy(array: Any) -> bytes:
    """Return the bytes of a .npy file that holds `array`."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
