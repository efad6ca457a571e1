"""Access rules of the local page: who may ask, and what a browser may do with the answer.

The server listens on the loopback interface only, but every page that the user opens elsewhere can send requests to it
as well. So a request must name this server as its host (no other name may be bound to the address), must not come from
another site, and can only read.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

# `none` is an address that the user typed; `same-origin` a link, form or picture of our own pages.
_OWN_SITES = frozenset({"none", "same-origin"})

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'self'; script-src 'self'; "
        "connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class LocalReadOnly:
    """ASGI middleware that rejects other methods (405), hosts (421) and sites (403), and sets `HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        rejection = PlainTextResponse("Only HTTP is served.\n", 400) if scope["type"] != "http" else _judge(scope)
        await (rejection or self.app)(scope, receive, send_with_headers)


def _judge(scope: Scope) -> PlainTextResponse | None:
    """Return the answer to a request that is rejected, or None."""
    headers = Headers(scope=scope)
    if scope["method"] not in METHODS:
        return PlainTextResponse("This server only reads: use GET.\n", 405, {"Allow": ", ".join(METHODS)})
    host = headers.get("host", "")
    if not is_loopback(host):
        return PlainTextResponse("This server answers only as 127.0.0.1 or localhost.\n", 421)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    is_foreign = (site is not None and site not in _OWN_SITES) or (
        origin is not None and urlsplit(origin).netloc != host
    )
    if is_foreign:
        return PlainTextResponse("Requests of other sites are rejected. Open the page by its address.\n", 403)
    return None


def is_loopback(host: str) -> bool:
    """Return whether a Host header, with or without a port, names this machine."""
    name, separator, port = host.rpartition(":")
    if not separator or host.endswith("]"):
        name, port = host, ""
    return name in LOOPBACK and (port == "" or (port.isascii() and port.isdigit()))
