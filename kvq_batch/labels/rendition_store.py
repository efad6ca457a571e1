"""Versions that a label job keeps: files below its own folder, named after their labels.

The same label is the same bytes, so that a file that stands there already may be written again. It deletes nothing.
"""

from kvq_batch.domain.errors import FetchError, LabelError
from kvq_batch.storage.errors import FOREIGN_ERRORS, HINTS, classify_error, told
from kvq_batch.storage.options import StorageOptions, absolute, display_uri, filesystem, is_local, join
from kvq_batch.storage.retry import RetryPolicy


def store_rendition(folder: str, name: str, content: bytes, options: StorageOptions) -> str:
    """The address of the file, once it stands there. Raises: LabelError not_kept where the store refuses it."""
    uri = join(absolute(folder), name)
    try:
        file_system, path = filesystem(uri, options)
        if is_local(uri):
            file_system.makedirs(path.rpartition("/")[0], exist_ok=True)
        RetryPolicy().repeat(lambda _: file_system.pipe_file(path, content))
    except FOREIGN_ERRORS as error:
        raise LabelError(
            "not_kept", f"{display_uri(uri)} cannot be written: {HINTS[classify_error(error)]} ({told(error)})"
        ) from error
    return display_uri(uri)


def read_rendition(uri: str, options: StorageOptions) -> bytes:
    """The bytes of a kept version, or of any other clip. Raises: FetchError where they cannot be had."""
    try:
        file_system, path = filesystem(uri, options)
        content: bytes = RetryPolicy().repeat(lambda _: file_system.cat_file(path))
    except FOREIGN_ERRORS as error:
        code = classify_error(error)
        raise FetchError(code, f"{display_uri(uri)}: {HINTS[code]} ({told(error)})") from error
    return content
