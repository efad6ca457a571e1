"""Objects at http(s) addresses: one request each, whose status and headers are checked before its body is read.

fsspec's file system provides the session and its event loop. Its own `info` reports every failure as a missing file,
and its `open` sends two more requests.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.asyn import sync

from kvq_batch.storage.errors import known_errors

if TYPE_CHECKING:
    import aiohttp

CHUNK_BYTES = 4 * 2**20

_SUCCESS = (200, 203)
# Signed addresses are valid for one method only, and some servers do not know HEAD.
_ANSWERS_TO_HEAD = (400, 401, 403, 405, 501)
_FIELDS = ("ETag", "Content-MD5", "Digest", "Last-Modified")


def http_filesystem(connect_timeout_s: float, read_timeout_s: float) -> Any:
    """Return fsspec's file system for http and https.

    It uses the proxies of the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY) and the passwords in ~/.netrc.
    """
    # Imported where it is used because that takes 0.4 s, and most runs read no http address.
    import aiohttp

    # No limit on the total time (aiohttp: 5 minutes): a long film takes longer while its bytes still arrive.
    limits = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=read_timeout_s)
    return fsspec.filesystem("http", use_listings_cache=False, client_kwargs={"timeout": limits, "trust_env": True})


def http_info(file_system: Any, url: str) -> dict[str, Any]:
    """Return the size (None if unknown) and the change tokens of the object, from the headers of one response.

    Raises:
        OSError: or another exception of aiohttp (`errors.foreign_errors`).
    """
    with known_errors():
        info: dict[str, Any] = sync(file_system.loop, _info, file_system, url)
    return info


class HttpStream:
    """One GET request, read in chunks from the caller's thread. `info` is as in `http_info`."""

    def __init__(self, file_system: Any, url: str) -> None:
        self._loop = file_system.loop
        with known_errors():
            self._response: aiohttp.ClientResponse = sync(self._loop, _request, file_system, "GET", url)
        self.info = _info_of(self._response.headers)

    def read(self) -> bytes:
        with known_errors():
            return bytes(sync(self._loop, self._response.content.read, CHUNK_BYTES))

    def close(self) -> None:
        # Closes the connection of a partly read response, in the event loop that owns it.
        self._loop.call_soon_threadsafe(self._response.close)


async def _info(file_system: Any, url: str) -> dict[str, Any]:
    import aiohttp

    try:
        response = await _request(file_system, "HEAD", url)
    except aiohttp.ClientResponseError as error:
        if error.status not in _ANSWERS_TO_HEAD:
            raise
        response = await _request(file_system, "GET", url)
    response.close()
    return _info_of(response.headers)


async def _request(file_system: Any, method: str, url: str) -> "aiohttp.ClientResponse":
    """Send a request, follow redirects, and return the response if it has the whole object."""
    import aiohttp

    session: aiohttp.ClientSession = await file_system.set_session()
    # Compressed by the server, an object would have another length and other bytes.
    headers = {"Accept-Encoding": "identity"}
    response = await session.request(method, file_system.encode_url(url), headers=headers, allow_redirects=True)
    if response.status in _SUCCESS:
        return response
    response.close()
    raise aiohttp.ClientResponseError(
        response.request_info,
        response.history,
        status=response.status,
        message=response.reason or "",
        headers=response.headers,
    )


def _info_of(headers: Mapping[str, str]) -> dict[str, Any]:
    length = headers.get("Content-Length", "")
    is_whole = headers.get("Content-Encoding", "identity") in ("identity", "") and length.isdecimal()
    info: dict[str, Any] = {"size": int(length) if is_whole else None}
    return info | {name: headers[name] for name in _FIELDS if headers.get(name)}
