"""The bytes of a video of the catalog, whole or a range of them, as a player asks for them."""

import mimetypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import PlainTextResponse, Response, StreamingResponse

from kvq_batch.analysis.questions import quote_literal
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.options import StorageOptions, filesystem, translate_storage_errors
from kvq_batch.tables.session import Session

CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes from `first` to `last`, both included."""

    first: int
    last: int


def find_uri(session: Session, video_id: str) -> str | None:
    """Return the address of a video that has a score, or None.

    Only these are served: a file that a catalog lists, but that was never decoded as a video, may be anything.
    """
    rows = session.sql(
        "SELECT any_value(v.uri) AS uri FROM catalog v SEMI JOIN scores s ON s.video_id = v.video_id "
        f"WHERE v.video_id = {quote_literal(video_id)} HAVING count(*) > 0"
    ).to_pylist()
    return rows[0]["uri"] if rows else None


def serve_bytes(uri: str, storage: StorageOptions, header: str | None, is_head: bool = False) -> Response:
    """Return the answer to a request with this Range header: 200, 206, or 416 if the range lies outside of the file.

    Raises:
        SpecError: the file is out of reach.
    """
    files, path = filesystem(uri, storage)
    with translate_storage_errors(uri):
        size = files.info(path)["size"]
    if size is None:
        raise SpecError("The store does not report the length of this video, so that it cannot be played from here.")
    try:
        wanted = parse_range(header, size)
    except ValueError:
        return PlainTextResponse("The range lies outside of the file.\n", 416, {"Content-Range": f"bytes */{size}"})
    chosen = wanted or ByteRange(0, size - 1)
    headers = {"Accept-Ranges": "bytes", "Content-Length": str(chosen.last - chosen.first + 1)}
    if wanted:
        headers["Content-Range"] = f"bytes {chosen.first}-{chosen.last}/{size}"
    status, kind = 206 if wanted else 200, media_type(uri)
    if is_head:
        return Response(None, status, headers, kind)
    return StreamingResponse(_read(files, path, chosen), status, headers, kind)


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Return the bytes that a Range header asks for; None for the whole file (no header, or one of another form).

    Raises:
        ValueError: the range lies outside of the file.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if not found or found[1] == found[2] == "":
        return None
    if found[1] == "":
        first, last = size - int(found[2]), size - 1
        if int(found[2]) == 0:
            raise ValueError(header)
        return ByteRange(max(0, first), last)
    first = int(found[1])
    last = min(int(found[2]) if found[2] else size - 1, size - 1)
    if first >= size or first > last:
        raise ValueError(header)
    return ByteRange(first, last)


def media_type(uri: str) -> str:
    """Return the media type of a video by its name. Anything but a video or picture is only downloaded."""
    kind, _ = mimetypes.guess_type(uri.partition("?")[0])
    return kind if kind and kind.startswith(("video/", "image/")) and "svg" not in kind else "application/octet-stream"


def _read(files: Any, path: str, chosen: ByteRange) -> Iterator[bytes]:
    for first in range(chosen.first, chosen.last + 1, CHUNK_BYTES):
        yield files.cat_file(path, start=first, end=min(first + CHUNK_BYTES, chosen.last + 1))
