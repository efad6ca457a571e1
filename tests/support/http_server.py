"""A web server whose next responses a test chooses: any status, dropped connections, short bodies, redirects."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

RESET, SHORT, SILENT, GARBAGE = "reset", "short", "silent", "garbage"


class HttpServer(http.server.ThreadingHTTPServer):
    """Serves `files` ({path without query: bytes}) on a free port, after the faults of `script`.

    Each request takes the next entry of `script`, and the last one is repeated: a status, one of the constants above,
    or the address to redirect to; None serves the file. `faults_head` is false to spare HEAD requests. `requests` are
    (method, path with query, headers) in their order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.script: list[int | str | None] = []
        self.headers: dict[str, str] = {}
        self.faults_head = True
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    @property
    def address(self) -> str:
        """The address of the server, without a final slash."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def num_requests(self, method: str) -> int:
        """Return the number of requests with this method."""
        return sum(seen == method for seen, _, _ in self.requests)

    def next_fault(self, method: str) -> int | str | None:
        """Return what happens to the next request with this method."""
        if not self.script or (method == "HEAD" and not self.faults_head):
            return None
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that close the connection."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpServer

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, dict(self.headers.items())))
        path = self.path.split("://", 1)[-1].partition("/")[2] if "://" in self.path else self.path.lstrip("/")
        content = self.server.files.get(path.partition("?")[0])
        fault = self.server.next_fault(self.command)
        if isinstance(fault, str) and "://" in fault:
            self.respond(302, b"", {"Location": fault})
        elif isinstance(fault, int):
            self.respond(fault, b"")
        elif fault is None:
            self.respond(200 if content is not None else 404, content or b"", {"ETag": '"tag"'})
        else:
            self.close_connection = True
            if fault == SHORT:
                self.respond(200, (content or b"")[:100], {"ETag": '"tag"', "Content-Length": str(len(content or b""))})
            elif fault == SILENT:
                time.sleep(3)
            elif fault == GARBAGE:
                self.wfile.write(b"\x00\x01 this is not HTTP\r\n\r\n")
            else:
                self.connection.shutdown(2)

    do_HEAD = do_GET

    def respond(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {}) | self.server.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    """A running server without files."""
    with HttpServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def second_http_server() -> Iterator[HttpServer]:
    """Another server, to redirect to or to use as a proxy."""
    with HttpServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
