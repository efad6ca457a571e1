"""One small object on S3, read with its tag and written only over what was read: what a lease is made of.

This module knows nothing of leases, and of no other store.
"""

from fsspec.asyn import sync

from kvq_batch.io.storage import StorageOptions, filesystem, join
from kvq_batch.io.trouble import FOREIGN_ERRORS, trouble


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
            if trouble(error) == "missing":
                return None
            raise
        return found

    def write(self, text: bytes, tag: str | None) -> str | None:
        """The new tag; None where the object is no longer the one of `tag` (None: where it is there)."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            answer = self._file_system.call_s3("put_object", Bucket=self._bucket, Key=self._key, Body=text, **condition)
        except FOREIGN_ERRORS as error:
            if trouble(error) == "changed":
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
