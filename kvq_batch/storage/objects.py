"""One remote object, read once from its first byte to its last: who it is, how long it says that it is, its bytes.

A stream tries nothing twice and judges no length; what reads it does (`fetch`). Errors of the store pass as they are.

One small object on S3, read with its tag and written only over what was read: what a lease is made of.

This module knows nothing of leases, and of no other store.
"""

from typing import Any, BinaryIO, Protocol

from fsspec.asyn import sync

from kvq_batch.domain.errors import FetchError
from kvq_batch.storage.errors import FOREIGN_ERRORS, classify_error
from kvq_batch.storage.listing import content_id_of
from kvq_batch.storage.options import StorageOptions, display_uri, filesystem, is_s3, join, protocol

CHUNK_BYTES = 4 * 2**20


class ObjectStream(Protocol):
    """An open remote object: its announced size, its token, and its bytes in order."""

    size_bytes: int | None
    content_id: str

    def read(self) -> bytes:
        """Some bytes, at most CHUNK_BYTES; none after the last."""
        ...

    def close(self) -> None: ...


def open_object(uri: str, options: StorageOptions, expected: str | None) -> ObjectStream:
    """The object at `uri`; where `expected` is a token that the store can check, only in that state.

    Raises: FetchError not_a_file for a bucket, prefix or folder; content_changed, at the end, where a store without
    conditions tells of another state then; otherwise what the store raises (`trouble.FOREIGN_ERRORS`).
    """
    file_system, path = filesystem(uri, options)
    if is_s3(uri):
        return _S3Stream(file_system, uri, path, expected)
    return _AnyStream(file_system, uri, path)


def changed(uri: str, expected: str, actual: str) -> FetchError:
    """The refusal of bytes that the plan did not mean."""
    return FetchError("content_changed", f"{display_uri(uri)} is {actual}, the plan saw {expected}; take it anew")


class _S3Stream:
    """One conditional GetObject, read in chunks from the caller's thread, so that its disk never holds up the loop."""

    def __init__(self, file_system: Any, uri: str, path: str, expected: str | None) -> None:
        bucket, _, key = path.partition("/")
        if not key:
            raise FetchError("not_a_file", f"{display_uri(uri)} is a bucket; name a video file")
        arguments = {"Bucket": bucket, "Key": key}
        kind, _, token = (expected or "").partition(":")
        if kind == "etag":
            arguments["IfMatch"] = f'"{token}"'
        elif kind == "version":
            arguments["VersionId"] = token
        self._loop = file_system.loop
        try:
            answer = file_system.call_s3("get_object", **arguments)
        except FileNotFoundError:
            if file_system.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/", MaxKeys=1).get("KeyCount"):
                raise FetchError("not_a_file", f"{display_uri(uri)} is a prefix; name a video file") from None
            raise
        self._body = answer["Body"]
        self.size_bytes: int | None = answer.get("ContentLength")
        self.content_id = expected if expected and kind == "version" else content_id_of(answer)

    def read(self) -> bytes:
        return bytes(sync(self._loop, self._body.read, CHUNK_BYTES))

    def close(self) -> None:
        # An answer that was not read to its end is cut off, in the loop that owns its connection.
        self._loop.call_soon_threadsafe(self._body.close)


class _AnyStream:
    """An object of any other fsspec file system; what it tells of itself is asked again when the last byte is read."""

    def __init__(self, file_system: Any, uri: str, path: str) -> None:
        info = file_system.info(path)
        if info.get("type") == "directory":
            raise FetchError("not_a_file", f"{display_uri(uri)} is a folder; name a video file")
        self._file_system, self._uri, self._path = file_system, uri, path
        self.size_bytes: int | None = info.get("size")
        self.content_id = content_id_of(info)
        # One answer read to its end: in blocks, a server that knows no ranges cannot be read (fsspec: ValueError).
        whole = {"block_size": 0} if protocol(uri) in ("http", "https") else {}
        self._file: BinaryIO = file_system.open(path, "rb", **whole)

    def read(self) -> bytes:
        chunk = self._file.read(CHUNK_BYTES)
        if not chunk:
            now = content_id_of(self._file_system.info(self._path))
            if now != self.content_id:
                raise changed(self._uri, self.content_id, now)
        return chunk

    def close(self) -> None:
        self._file.close()


class ConditionalObject:
    """The object at `uri`. Its methods raise what the store raises."""

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self._file_system, path = filesystem(uri, options)
        self._bucket, _, self._key = path.partition("/")

    def read(self) -> tuple[bytes, str] | None:
        """Content and tag, or None where there is none."""
        try:
            found: tuple[bytes, str] = sync(self._file_system.loop, self._get)
        except FOREIGN_ERRORS as error:
            if classify_error(error) == "missing":
                return None
            raise
        return found

    def write(self, text: bytes, tag: str | None) -> str | None:
        """The new tag; None where the object is no longer the one of `tag` (None: where it is there)."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            answer = self._file_system.call_s3("put_object", Bucket=self._bucket, Key=self._key, Body=text, **condition)
        except FOREIGN_ERRORS as error:
            if classify_error(error) == "changed":
                return None
            raise
        return str(answer["ETag"])

    async def _get(self) -> tuple[bytes, str]:
        answer = await self._file_system._call_s3("get_object", Bucket=self._bucket, Key=self._key)
        async with answer["Body"] as body:
            return await body.read(), str(answer["ETag"])


def names_beginning(folder: str, start: str, options: StorageOptions) -> list[str]:
    """Names of the objects below `folder` that begin with `start`, as the store lists them now."""
    file_system, path = filesystem(join(folder, start), options)
    bucket, _, prefix = path.partition("/")
    names: list[str] = []
    more: dict[str, str] = {}
    while True:
        page = file_system.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/", **more)
        names += [entry["Key"].rpartition("/")[2] for entry in page.get("Contents", ())]
        if not page.get("IsTruncated"):
            return names
        more = {"ContinuationToken": page["NextContinuationToken"]}
