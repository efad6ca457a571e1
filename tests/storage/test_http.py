"""http(s) sources: every status and network error becomes the same class as for S3, with the same retries."""

import ssl
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pyarrow as pa
import pytest

from kvq_batch.catalog.content_ids import resolve_content_ids
from kvq_batch.catalog.reader import CANONICAL
from kvq_batch.domain.errors import FetchError, SpecError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.storage.errors import RetryPolicy, retry_after_s
from kvq_batch.storage.fetch import Fetcher
from kvq_batch.storage.listing import stat_object
from kvq_batch.storage.options import StorageOptions
from tests.support.http_server import GARBAGE, RESET, SHORT, SILENT, HttpServer
from tests.support.stores import FOREIGN_ERRORS

DATA = bytes(range(256)) * 40
OPTIONS = StorageOptions(read_timeout_s=1, connect_timeout_s=1, attempts=2)

CODES = {
    401: "forbidden", 403: "forbidden", 407: "forbidden", 451: "forbidden", 404: "missing", 410: "missing",
    408: "timeout", 425: "unreachable", 429: "unreachable", 412: "content_changed",
    400: "unreadable", 405: "unreadable", 416: "unreadable", 501: "unreadable", 507: "unreadable",
    204: "unreadable", 206: "unreadable", 304: "unreadable",
    500: "unreachable", 502: "unreachable", 503: "unreachable", 504: "unreachable", 520: "unreachable",
    RESET: "unreachable", SHORT: "unreachable", GARBAGE: "unreachable", SILENT: "timeout",
}  # fmt: skip
RETRIED = ("timeout", "unreachable")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A scratch folder that must contain no files at the end of the test."""
    (tmp_path / "scratch").mkdir()
    yield tmp_path / "scratch"
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


@pytest.fixture
def uri(http_server: HttpServer) -> str:
    http_server.files["v/a.mp4"] = DATA
    return f"{http_server.address}/v/a.mp4"


def fetcher(scratch: Path, attempts: int = 3, delays: list[float] | None = None) -> Fetcher:
    return Fetcher(OPTIONS, scratch, 10**6, RetryPolicy(attempts, sleep=(delays or []).append))


@pytest.mark.parametrize("fault", CODES, ids=str)
@pytest.mark.parametrize("faults_head", [True, False], ids=["always", "get"])
def test_fault_has_a_class(
    fault: int | str, faults_head: bool, uri: str, http_server: HttpServer, scratch: Path
) -> None:
    http_server.script, http_server.faults_head = [fault], faults_head
    with pytest.raises(FetchError) as caught, fetcher(scratch).fetch(uri):
        pytest.fail("the block was entered")
    code = CODES[fault]
    assert (caught.value.code, caught.value.permanent) == (code, False)
    # aiohttp itself sends a request again if the connection was closed without a response.
    expected = 6 if fault == RESET else 3 if code in RETRIED else 1
    assert http_server.num_requests("GET") == expected
    assert uri in caught.value.message
    assert ("3 attempts" in caught.value.message) == (code in RETRIED)
    assert "AWS" not in caught.value.message
    assert "endpoint_url" not in caught.value.message


@pytest.mark.parametrize("fault", [fault for fault, code in CODES.items() if code in RETRIED], ids=str)
def test_fault_that_ends_is_retried(fault: int | str, uri: str, http_server: HttpServer, scratch: Path) -> None:
    http_server.script = [fault, fault, None]
    with fetcher(scratch).fetch(uri, "etag:tag", len(DATA)) as video:
        assert video.path.read_bytes() == DATA
        assert video.attempts == 3 or fault == RESET


def test_fetch_is_one_request(uri: str, http_server: HttpServer, scratch: Path) -> None:
    with fetcher(scratch).fetch(f"{uri}?sig=a.b", "etag:tag", len(DATA)) as video:
        assert (video.size_bytes, video.content_id) == (len(DATA), "etag:tag")
        assert video.path.suffix == ".mp4"
    assert [method for method, _, _ in http_server.requests] == ["GET"]


def test_other_content_is_rejected_before_its_body(uri: str, scratch: Path) -> None:
    with pytest.raises(FetchError, match="content_changed"), fetcher(scratch).fetch(uri, "etag:planned"):
        pass


@pytest.mark.parametrize("fault", [fault for fault in CODES if fault != SHORT], ids=str)
def test_fault_while_planning(fault: int | str, uri: str, http_server: HttpServer, scratch: Path) -> None:
    http_server.script = [fault]
    if CODES[fault] in RETRIED:
        with pytest.raises(SpecError, match=r"cannot be reached|in time") as caught:
            resolve(uri)
        assert http_server.num_requests("HEAD") == OPTIONS.attempts or fault == RESET
        assert "endpoint_url" not in str(caught.value)
    else:
        assert resolve(uri) == [UNKNOWN_CONTENT]
    http_server.script = [fault, None] if CODES[fault] in RETRIED else []
    assert resolve(uri) == ["etag:tag"]


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_server_without_head(status: int, uri: str, http_server: HttpServer) -> None:
    http_server.script = [status, None]
    assert stat_object(uri, OPTIONS) == ("etag:tag", len(DATA))
    assert [method for method, _, _ in http_server.requests] == ["HEAD", "GET"]


def test_length_of_a_compressed_response(uri: str, http_server: HttpServer) -> None:
    http_server.headers = {"Content-Encoding": "gzip"}
    assert stat_object(uri, OPTIONS) == ("etag:tag", None)


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("http://127.0.0.1:1/a.mp4", "unreachable"),
        ("http://no-such-host.invalid/a.mp4", "unreachable"),
        ("http://127.0.0.1:99999/a.mp4", "bad_address"),
        ("http://[::1/a.mp4", "bad_address"),
        ("http:///a.mp4", "bad_address"),
        ("http://", "bad_address"),
    ],
)
def test_address_that_does_not_answer(address: str, code: str, scratch: Path) -> None:
    with pytest.raises(FetchError) as caught, fetcher(scratch, attempts=2).fetch(address):
        pass
    assert (caught.value.code, caught.value.permanent) == (code, False)
    assert ("2 attempts" in caught.value.message) == (code == "unreachable")


def test_certificate_of_nobody(http_server: HttpServer, uri: str, tmp_path: Path, scratch: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    http_server.socket = context.wrap_socket(http_server.socket, server_side=True)
    secure = uri.replace("http://", "https://")
    with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED") as caught, fetcher(scratch, 1).fetch(secure):
        pass
    assert caught.value.code == "unreachable"


class TestRetryAfter:
    def test_delay_is_the_one_that_the_server_asks_for(self, uri: str, http_server: HttpServer, scratch: Path) -> None:
        http_server.script, http_server.headers = [429, 503, None], {"Retry-After": "17"}
        delays: list[float] = []
        patient = Fetcher(OPTIONS, scratch, 10**6, RetryPolicy(sleep=delays.append))
        with patient.fetch(uri) as video:
            assert video.attempts == 3
        assert delays == [17, 17]

    def test_too_long_a_delay_ends_the_retries(self, uri: str, http_server: HttpServer, scratch: Path) -> None:
        http_server.script, http_server.headers = [429], {"Retry-After": "3600"}
        started = time.monotonic()
        with pytest.raises(FetchError, match="unreachable"), Fetcher(OPTIONS, scratch, 10**6).fetch(uri):
            pass
        assert http_server.num_requests("GET") == 1
        assert time.monotonic() - started < 60

    def test_planning_does_not_wait_long(self, uri: str, http_server: HttpServer) -> None:
        http_server.script, http_server.headers = [429], {"Retry-After": "60"}
        with pytest.raises(FOREIGN_ERRORS):
            stat_object(uri, OPTIONS)
        assert http_server.num_requests("HEAD") == 1

    @pytest.mark.parametrize(
        ("value", "seconds"), [("5", 5), ("soon", 0), ("", 0), ("Sun, 06 Nov 1994 08:49:37 GMT", 0)]
    )
    def test_values(self, value: str, seconds: float, uri: str, http_server: HttpServer) -> None:
        assert self.asked(value, uri, http_server) == seconds

    def test_date(self, uri: str, http_server: HttpServer) -> None:
        at = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
        assert 90 < self.asked(at, uri, http_server) <= 100

    def asked(self, value: str, uri: str, http_server: HttpServer) -> float:
        http_server.script, http_server.headers = [429], {"Retry-After": value}
        with pytest.raises(FOREIGN_ERRORS) as caught:
            stat_object(uri, StorageOptions(attempts=1))
        return retry_after_s(caught.value)


class TestRedirects:
    def test_to_another_host(
        self, uri: str, http_server: HttpServer, second_http_server: HttpServer, scratch: Path
    ) -> None:
        moved = http_server.address.replace("127.0.0.1", "localhost")
        second_http_server.script = [f"{moved}/v/a.mp4"]
        first = second_http_server.address.replace("://", "://user:plantedSECRET@")
        with fetcher(scratch).fetch(f"{first}/old.mp4", "etag:tag") as video:
            assert video.path.read_bytes() == DATA
        assert "Authorization" in second_http_server.requests[0][2]
        assert "Authorization" not in http_server.requests[0][2]

    def test_without_end(self, uri: str, http_server: HttpServer, scratch: Path) -> None:
        http_server.script = [uri]
        with pytest.raises(FetchError, match="unreadable") as caught, fetcher(scratch).fetch(uri):
            pass
        assert not caught.value.permanent

    def test_to_a_missing_file(self, uri: str, http_server: HttpServer, scratch: Path) -> None:
        http_server.script = [f"{http_server.address}/gone.mp4", None]
        with pytest.raises(FetchError, match="missing"), fetcher(scratch).fetch(uri):
            pass


def test_proxy_of_the_environment(http_server: HttpServer, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    http_server.files["v/a.mp4"] = DATA
    monkeypatch.setenv("HTTP_PROXY", http_server.address)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with fetcher(scratch).fetch("http://videos.invalid/v/a.mp4") as video:
        assert video.path.read_bytes() == DATA
    assert http_server.requests[0][1] == "http://videos.invalid/v/a.mp4"


def resolve(uri: str) -> list[str]:
    table = pa.table({"video_id": ["a"], "uri": [uri]})
    for field in list(CANONICAL)[2:]:
        table = table.append_column(field, pa.nulls(1, field.type))
    tokens: list[str] = resolve_content_ids(table, OPTIONS)["content_id"].to_pylist()
    return tokens
