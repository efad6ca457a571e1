"""A local folder and a prefix of a real S3 server with the same interface, for contract tests over both."""

from pathlib import Path
from typing import Protocol

import aiohttp
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from deltalake.exceptions import DeltaError
from fsspec.exceptions import FSTimeoutError

from kvq_batch.storage.options import StorageOptions
from tests.support.s3 import S3Location

FOREIGN_ERRORS = (OSError, DeltaError, FSTimeoutError, BotoCoreError, ClientError, aiohttp.ClientError)
"""All that `storage.errors.foreign_errors` returns after a request: `pytest.raises` needs the classes before it."""


class Store(Protocol):
    """A local or remote location of objects."""

    @property
    def uri(self) -> str: ...
    @property
    def options(self) -> StorageOptions: ...

    def put(self, name: str, data: bytes) -> str: ...
    def remove(self, name: str) -> None: ...


class LocalStore:
    def __init__(self, folder: Path) -> None:
        self.uri, self.options = str(folder), StorageOptions()

    def put(self, name: str, data: bytes) -> str:
        path = Path(self.uri) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def remove(self, name: str) -> None:
        (Path(self.uri) / name).unlink()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        location: S3Location = request.getfixturevalue("s3_prefix")
        return location
    (tmp_path / "store").mkdir()
    return LocalStore(tmp_path / "store")
