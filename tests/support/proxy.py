"""A proxy in front of the S3 server of the tests that injects faults of networks and stores.

Requests are forwarded unchanged (the signature covers the Host header, so that stays the proxy's). A rule selects
requests by method and address; its fault replaces or corrupts the response. Each connection carries one request, so a
fault affects only that request.
"""

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pytest

from kvq_batch.storage.options import StorageOptions
from tests.support.s3 import S3Server

_CHUNK = 65536


@dataclass(frozen=True)
class Refusal:
    """An S3 error instead of the response."""

    status: int
    code: str

    def inject(self, client: socket.socket, method: str, response: "Response | None") -> None:
        body = f"<Error><Code>{self.code}</Code><Message>injected by the test</Message></Error>".encode()
        head = f"HTTP/1.1 {self.status} x\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        # A response to HEAD has no body, so it has no error code.
        client.sendall(f"{head}Connection: close\r\n\r\n".encode() + body * (method != "HEAD"))


SLOW_DOWN = Refusal(503, "SlowDown")
EXPIRED = Refusal(403, "ExpiredToken")
DENIED = Refusal(403, "AccessDenied")
FULL = Refusal(507, "InsufficientStorage")
BROKEN = Refusal(500, "InternalError")


@dataclass(frozen=True)
class Lost:
    """The connection is reset before the request reaches the server."""

    def inject(self, client: socket.socket, method: str, response: "Response | None") -> None:
        _reset_when_closed(client)


@dataclass(frozen=True)
class Reset:
    """The connection is reset before the response or after some bytes of its body. The server has seen the request."""

    after_bytes: int | None = None

    def inject(self, client: socket.socket, method: str, response: "Response | None") -> None:
        if response is not None and self.after_bytes is not None:
            client.sendall(response.head() + response.body[: self.after_bytes])
            # A reset would discard bytes that are still in transit.
            time.sleep(0.05)
        _reset_when_closed(client)


@dataclass(frozen=True)
class Silence:
    """No response, however long the client waits."""

    def inject(self, client: socket.socket, method: str, response: "Response | None") -> None:
        with suppress(OSError):
            while client.recv(_CHUNK):
                pass


@dataclass(frozen=True)
class Trickle:
    """The complete response, with a limited number of bytes per second."""

    bytes_per_s: int

    def inject(self, client: socket.socket, method: str, response: "Response | None") -> None:
        assert response is not None
        client.sendall(response.head())
        step = max(1, self.bytes_per_s // 20)
        for start in range(0, len(response.body), step):
            client.sendall(response.body[start : start + step])
            time.sleep(step / self.bytes_per_s)


@dataclass(frozen=True)
class Short:
    """A response without its last bytes. With `is_announced`, its Content-Length is the shorter length."""

    missing_bytes: int
    is_announced: bool = False

    def inject(self, client: socket.socket, method: str, response: "Response | None") -> None:
        assert response is not None
        body = response.body[: -self.missing_bytes]
        client.sendall(response.head(len(body) if self.is_announced else None) + body)


@dataclass(frozen=True)
class Flipped:
    """A response of the right length with one wrong byte."""

    def inject(self, client: socket.socket, method: str, response: "Response | None") -> None:
        assert response is not None
        middle = len(response.body) // 2
        flipped = bytes([response.body[middle] ^ 0xFF])
        client.sendall(response.head() + response.body[:middle] + flipped + response.body[middle + 1 :])


Fault = Refusal | Lost | Reset | Silence | Trickle | Short | Flipped

_ACTS_FIRST = (Reset, Trickle, Short, Flipped)
"""Faults of the response: the server has processed the request."""


@dataclass
class Rule:
    """Selects the requests with a fault: those of a method whose "/bucket/key?query" matches `pattern`.

    Of these, the first `passed` pass, the next `times` fail (None: all others), and the rest pass. `seen` counts them.
    """

    fault: Fault
    method: str = "GET"
    pattern: str = ""
    passed: int = 0
    times: int | None = None
    seen: int = 0

    @property
    def num_faults(self) -> int:
        """Number of injected faults."""
        after = max(0, self.seen - self.passed)
        return after if self.times is None else min(after, self.times)

    def matches(self, method: str, target: str) -> bool:
        if method != self.method or not re.search(self.pattern, target):
            return False
        self.seen += 1
        return self.seen > self.passed and (self.times is None or self.seen <= self.passed + self.times)


@dataclass(frozen=True)
class Response:
    """The complete response of the server."""

    lines: list[bytes]
    body: bytes

    def head(self, length: int | None = None) -> bytes:
        """Return the head with `length` as Content-Length (None: the length of the body)."""
        kept = [line for line in self.lines if not re.match(rb"(?i)(connection|transfer-encoding):", line)]
        if length is not None:
            kept = [line for line in kept if not re.match(rb"(?i)content-length:", line)]
            kept.append(b"Content-Length: %d" % length)
        elif not any(re.match(rb"(?i)content-length:", line) for line in kept) and kept[0].split()[1] != b"204":
            kept.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join([*kept, b"Connection: close", b"", b""])


@dataclass
class FaultProxy:
    """A running proxy: its endpoint, its rules (the first match wins), and its requests."""

    endpoint_url: str
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def options(self, **limits: float) -> StorageOptions:
        return StorageOptions(endpoint_url=self.endpoint_url, region="us-east-1", **limits)  # type: ignore[arg-type]

    def add(self, fault: Fault, **more: object) -> Rule:
        """Add a rule, effective immediately."""
        rule = Rule(fault, **more)  # type: ignore[arg-type]
        with self.lock:
            self.rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules."""
        with self.lock:
            self.rules.clear()

    def fault_of(self, method: str, target: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, target))
            return next((rule.fault for rule in self.rules if rule.matches(method, target)), None)


@contextmanager
def proxied(server: S3Server) -> Iterator[FaultProxy]:
    """Start a proxy without rules in front of `server`; all connections are closed at the end of the block."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        proxy = FaultProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
        upstream = urlsplit(server.endpoint_url)
        assert upstream.hostname is not None
        assert upstream.port is not None
        address = (upstream.hostname, upstream.port)
        open_clients: set[socket.socket] = set()
        threads: list[threading.Thread] = []

        def accept() -> None:
            # Ends when the listener is shut down.
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    open_clients.add(client)
                    thread = threading.Thread(target=serve, args=(client,), daemon=True)
                    threads.append(thread)
                    thread.start()

        def serve(client: socket.socket) -> None:
            # An error of the client or the server ends this connection only.
            with client, suppress(OSError):
                _serve_one(proxy, client, address)
            open_clients.discard(client)

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for client in list(open_clients):
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


@pytest.fixture
def fault_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy for this test, in front of the server of the session."""
    with proxied(s3_server) as proxy:
        yield proxy


def slept(seconds: float) -> None:
    """Replacement for `time.sleep` in a RetryPolicy, which must be picklable."""


def _reset_when_closed(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _serve_one(proxy: FaultProxy, client: socket.socket, address: tuple[str, int]) -> None:
    head, rest = _read_head(client)
    if not head:
        return
    lines = head.split(b"\r\n")
    method, target, _ = lines[0].decode().split(" ", 2)
    headers = _headers(lines)
    if headers.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = _read_body(client, headers, rest, until_end=False)
    fault = proxy.fault_of(method, unquote(target))
    if fault is not None and not isinstance(fault, _ACTS_FIRST):
        fault.inject(client, method, None)
        return
    response = _forward(address, method, lines, body)
    if fault is not None:
        fault.inject(client, method, response)
    else:
        client.sendall(response.head() + response.body)


def _forward(address: tuple[str, int], method: str, lines: list[bytes], body: bytes) -> Response:
    kept = [line for line in lines if not re.match(rb"(?i)(connection|expect|transfer-encoding):", line)]
    if body and not any(re.match(rb"(?i)content-length:", line) for line in kept):
        kept.append(b"Content-Length: %d" % len(body))
    with socket.create_connection(address) as server:
        server.sendall(b"\r\n".join([*kept, b"Connection: close", b"", b""]) + body)
        head, rest = _read_head(server)
        response_lines = head.split(b"\r\n")
        while response_lines[0].split()[1] == b"100":
            head, _, rest = rest.partition(b"\r\n\r\n")
            response_lines = head.split(b"\r\n")
        content = b"" if method == "HEAD" else _read_body(server, _headers(response_lines), rest, until_end=True)
    return Response(response_lines, content)


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(_CHUNK)
        if not chunk:
            return b"", b""
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    fields = (line.partition(b":") for line in lines[1:])
    return {name.strip().lower(): value.strip() for name, _, value in fields}


def _read_body(connection: socket.socket, headers: dict[bytes, bytes], rest: bytes, until_end: bool) -> bytes:
    """Return the body as bytes, for any transfer encoding."""
    data = bytearray(rest)

    def more() -> bool:
        chunk = connection.recv(_CHUNK)
        data.extend(chunk)
        return bool(chunk)

    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        content = bytearray()
        while True:
            while b"\r\n" not in data and more():
                pass
            line, _, remaining = bytes(data).partition(b"\r\n")
            size = int(line.split(b";")[0] or b"0", 16)
            data[:] = remaining
            while len(data) < size + 2 and more():
                pass
            content += data[:size]
            del data[: size + 2]
            if not size:
                return bytes(content)
    if b"content-length" in headers:
        while len(data) < int(headers[b"content-length"]) and more():
            pass
    elif until_end:
        while more():
            pass
    return bytes(data)
