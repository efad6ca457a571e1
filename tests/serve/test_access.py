"""Requests of other methods, hosts and sites are rejected."""

import pytest

from kvq_batch.serve.access import is_loopback
from tests.serve.conftest import Running


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_rejected(server: Running, method: str) -> None:
    answer = server.get("/videos", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "localhost:80:80", "127.0.0.1:x", "", "[::2]"]
)
def test_other_hosts_are_rejected(server: Running, host: str) -> None:
    assert server.get("/", Host=host).status in (400, 421)
    assert not is_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8765", "localhost", "localhost:1", "[::1]", "[::1]:8765"])
def test_loopback_hosts(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_sites_are_rejected(server: Running, headers: dict[str, str]) -> None:
    assert server.get("/sql?q=SELECT+1", **headers).status == 403


def test_own_pages_are_allowed(server: Running) -> None:
    assert server.get("/sql", Origin=server.url, Sec_Fetch_Site="same-origin").status == 200
    assert server.get("/sql", Sec_Fetch_Site="none").status == 200


@pytest.mark.parametrize("target", ["/", "/nothing", "/media?id=nothing", "/style.css"])
def test_every_answer_forbids_foreign_content(server: Running, target: str) -> None:
    headers = server.get(target).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_websockets_are_rejected(server: Running) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Key": "x", "Sec_WebSocket_Version": "13"}
    assert server.get("/", **upgrade).status != 101
