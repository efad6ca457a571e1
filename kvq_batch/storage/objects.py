"""Single objects of a store: streaming reads, retried writes, and conditional reads and writes on S3.

An `ObjectStream` reads one remote object once from start to end. It neither retries nor checks the length; its reader
does (`fetch`). `put_file` and `put_files` write whole files with retries. A `ConditionalObject` is a small S3 object
that is read with its ETag and replaced only if that has not changed, which is what a lease needs.
"""

import io
from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol

from fsspec.asyn import sync
from fsspec.compression import compr

from kvq_batch.domain.errors import FetchError
from kvq_batch.storage.errors import RetryPolicy, classify_error, foreign_errors, known_errors
from kvq_batch.storage.http import CHUNK_BYTES, HttpStream
from kvq_batch.storage.listing import content_id_of
from kvq_batch.storage.options import StorageOptions, display_uri, filesystem, is_http, is_local, is_s3, join


class ObjectStream(Protocol):
    """An open remote object: its announced size, its content id, and its bytes in order."""

    size_bytes: int | None
    content_id: str

    def read(self) -> bytes:
        """Return the next bytes, at most CHUNK_BYTES; empty at the end."""
        ...

    def close(self) -> None: ...


def open_object(uri: str, options: StorageOptions, expected: str | None) -> ObjectStream:
    """Open the object at `uri`. If the store can check `expected` (a content id), the read is conditional on it.

    Raises:
        FetchError: `not_a_file` for a bucket, prefix or folder; `content_changed` at the end of the stream if a store
            without conditional reads then reports another content id.
        OSError: or another exception of the store (`errors.foreign_errors`).
    """
    file_system, path = filesystem(uri, options)
    if is_s3(uri):
        return _S3Stream(file_system, uri, path, expected)
    if is_http(uri):
        return _HttpStream(file_system, path)
    return _AnyStream(file_system, uri, path)


def content_changed_error(uri: str, expected: str, actual: str) -> FetchError:
    """Return the error for an object whose content is not the planned one."""
    return FetchError(
        "content_changed", f"{display_uri(uri)} is {actual}, the plan has {expected}; the next run scores it again"
    )


class _S3Stream:
    """One conditional GetObject request, read in chunks from the caller's thread.

    The caller writes the chunks to disk, which therefore never blocks the event loop.
    """

    def __init__(self, file_system: Any, uri: str, path: str, expected: str | None) -> None:
        bucket, _, key = path.partition("/")
        if not key:
            raise FetchError("not_a_file", f"{display_uri(uri)} is a bucket; use the address of a video file")
        arguments = {"Bucket": bucket, "Key": key}
        kind, _, token = (expected or "").partition(":")
        if kind == "etag":
            arguments["IfMatch"] = f'"{token}"'
        elif kind == "version":
            arguments["VersionId"] = token
        self._loop = file_system.loop
        try:
            response = file_system.call_s3("get_object", **arguments)
        except FileNotFoundError:
            if file_system.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/", MaxKeys=1).get("KeyCount"):
                raise FetchError(
                    "not_a_file", f"{display_uri(uri)} is a prefix; use the address of a video file"
                ) from None
            raise
        self._body = response["Body"]
        self.size_bytes: int | None = response.get("ContentLength")
        self.content_id = expected if expected and kind == "version" else content_id_of(response)

    def read(self) -> bytes:
        return bytes(sync(self._loop, self._body.read, CHUNK_BYTES))

    def close(self) -> None:
        # Closes the connection of a partly read response, in the event loop that owns it.
        self._loop.call_soon_threadsafe(self._body.close)


class _HttpStream(HttpStream):
    """One GET request, with the content id of its response."""

    def __init__(self, file_system: Any, url: str) -> None:
        super().__init__(file_system, url)
        self.size_bytes: int | None = self.info["size"]
        self.content_id = content_id_of(self.info)


class _AnyStream:
    """An object of any other fsspec file system. Its content id is compared again after the last byte is read."""

    def __init__(self, file_system: Any, uri: str, path: str) -> None:
        with known_errors():
            info = file_system.info(path)
        if info.get("type") == "directory":
            raise FetchError("not_a_file", f"{display_uri(uri)} is a folder; use the address of a video file")
        self._file_system, self._uri, self._path = file_system, uri, path
        self.size_bytes: int | None = info.get("size")
        self.content_id = content_id_of(info)
        with known_errors():
            self._file: BinaryIO = file_system.open(path, "rb")

    def read(self) -> bytes:
        with known_errors():
            chunk = self._file.read(CHUNK_BYTES)
        if not chunk:
            with known_errors():
                now = content_id_of(self._file_system.info(self._path))
            if now != self.content_id:
                raise content_changed_error(self._uri, self.content_id, now)
        return chunk

    def close(self) -> None:
        with known_errors():
            self._file.close()


class ConditionalObject:
    """A small S3 object with compare-and-swap. Its methods raise the exceptions of the store."""

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self._file_system, path = filesystem(uri, options)
        self._bucket, _, self._key = path.partition("/")

    def read(self) -> tuple[bytes, str] | None:
        """Return content and ETag, or None if the object does not exist."""
        try:
            found: tuple[bytes, str] = sync(self._file_system.loop, self._get)
        except foreign_errors() as error:
            if classify_error(error) == "missing":
                return None
            raise
        return found

    def write(self, text: bytes, tag: str | None) -> str | None:
        """Replace the object if its ETag is still `tag` (None: only if it does not exist).

        Returns the new ETag, or None if the condition does not hold.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            response = self._file_system.call_s3(
                "put_object", Bucket=self._bucket, Key=self._key, Body=text, **condition
            )
        except foreign_errors() as error:
            if classify_error(error) == "changed":
                return None
            raise
        return str(response["ETag"])

    async def _get(self) -> tuple[bytes, str]:
        response = await self._file_system._call_s3("get_object", Bucket=self._bucket, Key=self._key)
        async with response["Body"] as body:
            return await body.read(), str(response["ETag"])


def list_names(folder: str, prefix: str, options: StorageOptions) -> list[str]:
    """Return the names of the S3 objects directly below `folder` that begin with `prefix`."""
    file_system, path = filesystem(join(folder, prefix), options)
    bucket, _, key_prefix = path.partition("/")
    names: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = file_system.call_s3("list_objects_v2", Bucket=bucket, Prefix=key_prefix, Delimiter="/", **token)
        names += [entry["Key"].rpartition("/")[2] for entry in page.get("Contents", ())]
        if not page.get("IsTruncated"):
            return names
        token = {"ContinuationToken": page["NextContinuationToken"]}


def read_file(uri: str, options: StorageOptions, retry_policy: RetryPolicy | None = None) -> bytes:
    """Return the bytes of a small file, with retries.

    Raises:
        OSError: or another exception of the store (`errors.foreign_errors`), after the last attempt.
    """

    def read(attempt: int) -> bytes:
        with known_errors():
            file_system, path = filesystem(uri, options)
            return bytes(file_system.cat_file(path))

    return (retry_policy or RetryPolicy()).run(read)


def open_file(uri: str, options: StorageOptions, compression: str | None = None) -> BinaryIO:
    """Open a file for reading at any position, decompressed; `compression` is a name that fsspec knows.

    Raises:
        OSError: or another exception of the store (`errors.foreign_errors`).
    """
    if is_local(uri) or is_s3(uri):
        file_system, path = filesystem(uri, options)
        file: BinaryIO = file_system.open(path, "rb", compression=compression)
        return file
    # Not every web server answers requests for ranges of a file, and other stores do not retry them.
    content: BinaryIO = io.BytesIO(read_file(uri, options))
    return compr[compression](content, mode="rb") if compression else content


def put_file(uri: str, content: bytes, options: StorageOptions, retry_policy: RetryPolicy | None = None) -> None:
    """Write `content` to `uri`, with retries; missing folders are created.

    Raises:
        OSError: or another exception of the store (`errors.foreign_errors`), after the last attempt.
    """
    put_files({uri: content}, options, retry_policy)


def put_files(contents: Mapping[str, bytes], options: StorageOptions, retry_policy: RetryPolicy | None = None) -> None:
    """Write several files of one store, in parallel where its file system can. The keys are their addresses.

    An attempt writes all files again, so a file may be overwritten with the same content. Raises like `put_file`.
    """

    def put(attempt: int) -> None:
        file_systems = [filesystem(uri, options) for uri in contents]
        file_system = file_systems[0][0]
        paths = [path for _, path in file_systems]
        # S3 has no folders, and s3fs would look for the bucket.
        with known_errors():
            if not is_s3(next(iter(contents))):
                for folder in {path.rpartition("/")[0] for path in paths}:
                    file_system.makedirs(folder, exist_ok=True)
            file_system.pipe(dict(zip(paths, contents.values(), strict=True)))

    if contents:
        (retry_policy or RetryPolicy()).run(put)
