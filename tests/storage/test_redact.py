"""Redaction: no planted secret remains in a message, including real messages of the storage libraries."""

import http.server
import threading
from pathlib import Path

import pytest
from deltalake import DeltaTable

from kvq_batch.storage.options import StorageOptions, delta_options, filesystem
from kvq_batch.storage.redact import MASK, redact, summarize_error
from tests.support.s3 import BUCKET, S3Server
from tests.support.stores import FOREIGN_ERRORS

SECRET = "plantedSECRET/with+signs=="
TOKEN = "plantedTOKENvalue0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: AWS4-HMAC-SHA256 Credential={TOKEN}/20260101/r/s3/aws4_request, Signature={TOKEN}",
        f"{{'Authorization': 'Bearer {TOKEN}', 'accept': '*/*'}}",
        f"headers: authorization = Basic {TOKEN}",
        f"x-amz-security-token: {TOKEN}\nhost: store",
        f"GET https://store/b/k?X-Amz-Signature={TOKEN}&X-Amz-Credential={TOKEN}%2F2026",
        f"url='https://store/k?sp=r&sig={TOKEN}'",
        f"https%3A%2F%2Fstore%2Fk%3FSignature%3D{TOKEN}%26x%3D1",
        f"s3://user:{TOKEN}@bucket/key was not found",
        f"https://user:with@sign{TOKEN}@host/x and s3://{TOKEN}@b",
        f"<Error><AWSAccessKeyId>{TOKEN}</AWSAccessKeyId><StringToSign>AWS4\n{TOKEN}</StringToSign></Error>",
        f"aws_secret_access_key={TOKEN} region=x",
        f"{{'secret_key': '{TOKEN}'}}",
        "the key AKIAPLANTEDTOKEN0123456789 is unknown",
    ],
)
def test_secrets_are_masked_by_shape(text: str) -> None:
    cleaned = redact(text)
    assert TOKEN not in cleaned
    assert "PLANTEDTOKEN" not in cleaned
    assert MASK in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/folder/clip@2x.mp4 does not exist",
        "https://host/v.mp4?versionId=3&start=5: 404 Not Found",
        "Invalid data found when processing input: /videos/a b.mp4",
        "token ring.mp4 holds no video",
    ],
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_this_process_are_masked_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[other]\naws_access_key_id = plantedID\naws_secret_access_key = {TOKEN}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "plantedsession")
    cleaned = redact(f"a {SECRET} b plantedSECRET%2Fwith%2Bsigns%3D%3D c {TOKEN} d plantedsession e plantedID")
    assert cleaned == f"a {MASK} b {MASK} c {MASK} d {MASK} e {MASK}"


def test_summary_is_one_short_line() -> None:
    error = OSError("\x1b[31m↳\x1b[0m first\n   second " + "x" * 1000)
    assert summarize_error(error, 40).startswith("↳ first second xxx")
    assert len(summarize_error(error, 40)) == 40
    assert summarize_error(KeyError()) == "KeyError"


class TestRealErrors:
    """Real errors of s3fs, delta-rs and the http file system, with planted keys wherever possible."""

    def test_delta_error_with_endpoint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "plantedID")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        options = StorageOptions(f"http://user:{TOKEN}@127.0.0.1:1", "us-east-1")
        with pytest.raises(FOREIGN_ERRORS) as caught:
            DeltaTable("s3://b/t", storage_options={**delta_options("s3://b/t", options), "max_retries": "0"})
        self.assert_clean(caught.value)

    @pytest.mark.parametrize("access_key", ["", "plantedID"])
    def test_s3_error_with_keys_and_signatures(
        self, s3_server: S3Server, access_key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key or s3_server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        uri = f"s3://{BUCKET}/t"
        options = StorageOptions(s3_server.endpoint_url, f"redact-{access_key}")
        with pytest.raises(FOREIGN_ERRORS) as caught:
            DeltaTable(uri, storage_options=delta_options(uri, options))
        self.assert_clean(caught.value, s3_server.access_key)
        file_system, path = filesystem(uri, options)
        with pytest.raises(FOREIGN_ERRORS) as caught:
            file_system.ls(path)
        self.assert_clean(caught.value, s3_server.access_key)

    def test_s3fs_error_with_endpoint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "plantedID")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        options = StorageOptions(f"http://user:{TOKEN}@127.0.0.1:1", "us-east-1")
        file_system, path = filesystem(f"s3://key:{TOKEN}@b/t", options)
        with pytest.raises(FOREIGN_ERRORS) as caught:
            file_system.ls(path)
        self.assert_clean(caught.value)

    @pytest.mark.parametrize("status", [403, 404, 500])
    def test_http_error_with_signed_address(self, status: int) -> None:
        with _HttpServer(status) as address:
            uri = f"{address}/v.mp4?X-Amz-Signature={TOKEN}&token={TOKEN}"
            file_system, path = filesystem(uri, StorageOptions())
            with pytest.raises(FOREIGN_ERRORS) as caught:
                file_system.cat_file(path)
        self.assert_clean(caught.value)

    def assert_clean(self, error: BaseException, *more: str) -> None:
        for text in (redact(str(error)), summarize_error(error), redact(repr(error.__cause__))):
            assert not [secret for secret in (SECRET, TOKEN, "plantedID", *more) if secret in text], text


class _HttpServer:
    """An HTTP server on a free port that answers every GET and HEAD request with one status."""

    def __init__(self, status: int) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
