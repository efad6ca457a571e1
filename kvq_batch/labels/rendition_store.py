"""Stored renditions of a label job: files below its folder, named after their labels.

The same label always has the same bytes, so an existing file may be written again.
"""

from kvq_batch.domain.errors import FetchError, LabelError
from kvq_batch.storage.errors import classify_error, explain_error, foreign_errors
from kvq_batch.storage.objects import put_file, read_file
from kvq_batch.storage.options import StorageOptions, absolute, display_uri, join


def store_rendition(folder: str, name: str, content: bytes, options: StorageOptions) -> str:
    """Store a rendition and return the address of its file.

    Raises:
        LabelError: `not_kept`, if the file cannot be written.
    """
    uri = join(absolute(folder), name)
    try:
        put_file(uri, content, options)
    except foreign_errors() as error:
        raise LabelError("not_kept", f"{display_uri(uri)} cannot be written: {explain_error(error, uri)}") from error
    return display_uri(uri)


def read_rendition(uri: str, options: StorageOptions) -> bytes:
    """Return the bytes of a stored rendition, or of any other clip.

    Raises:
        FetchError: the file cannot be read.
    """
    try:
        return read_file(uri, options)
    except foreign_errors() as error:
        raise FetchError(classify_error(error), f"{display_uri(uri)}: {explain_error(error, uri)}") from error
