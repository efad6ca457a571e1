"""Files of a training set below one folder, local or remote, and tar shards in the form that WebDataset reads.

TarShards hold whole samples, members of one sample side by side and named KEY.EXTENSION; times and owners are zero, so
that the same samples give the same bytes. This module knows no table and no pixel.
"""

import io
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.storage.errors import FOREIGN_ERRORS, explain_error
from kvq_batch.storage.objects import put_file
from kvq_batch.storage.options import StorageOptions, absolute, display_uri, filesystem, join, translate_storage_errors

SHARD_BYTES = 256 << 20
"""Size at which a shard is closed; one is held in memory."""


class SetFolder:
    """A new folder for one training set.

    Raises: SpecError where it holds something already, or is out of reach; FatalError where writing fails.
    """

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self.uri = absolute(uri)
        self._options = options
        file_system, root = filesystem(self.uri, options)
        with translate_storage_errors(self.uri):
            if file_system.exists(root) and file_system.find(root):
                raise SpecError(f"{display_uri(self.uri)} is not empty; name a new folder, so that no two sets mix")

    def write(self, name: str, content: bytes) -> str:
        """The address of the file `name` (it may lie in a folder below), once it stands there."""
        uri = join(self.uri, name)
        try:
            put_file(uri, content, self._options)
        except FOREIGN_ERRORS as error:
            raise FatalError(f"{display_uri(uri)} cannot be written: {explain_error(error)}") from error
        return uri


class TarShards:
    """Samples of one split, gathered into tar files `SPLIT-000000.tar`, ... below a folder."""

    def __init__(self, folder: SetFolder, split: str, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._split = split
        self._shard_bytes = shard_bytes
        self.num_shards = 0
        self._start()

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """A sample: its members by extension. A key has no dot, which would end it for WebDataset."""
        if "." in key:
            raise ValueError(f"the key of a sample has no dot, got {key!r}")
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))
        self._num_samples += 1
        if self._buffer.tell() >= self._shard_bytes:
            self.close()
            self._start()

    def close(self) -> None:
        """Writes the last shard, if it holds anything."""
        self._tar.close()
        if self._num_samples:
            self._folder.write(f"{self._split}-{self.num_shards:06d}.tar", self._buffer.getvalue())
            self.num_shards += 1

    def _start(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._num_samples = 0


def npy(array: Any) -> bytes:
    """The bytes of a .npy file."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
