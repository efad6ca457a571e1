"""Addresses that no store can serve are failures of their rows; a catalog without any other address is rejected."""

import logging
from pathlib import Path
from zipfile import ZipFile

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from kvq_batch.catalog.content_ids import MIN_VIDEOS_TO_LIST, resolve_content_ids
from kvq_batch.catalog.reader import CANONICAL
from kvq_batch.domain.errors import FetchError, SpecError
from kvq_batch.domain.identity import UNKNOWN_CONTENT
from kvq_batch.storage.errors import RetryPolicy, UnknownStoreError
from kvq_batch.storage.fetch import Fetcher
from kvq_batch.storage.listing import list_files
from kvq_batch.storage.objects import put_file, read_file
from kvq_batch.storage.options import StorageOptions, unsupported_scheme
from tests.support.stores import FOREIGN_ERRORS

ODD = {
    "gs://bucket/a.mp4": "bad_address",
    "GS://bucket/a.mp4": "bad_address",
    "foo://bucket/a.mp4": "bad_address",
    "a+b.c-d://x": "bad_address",
    "zip://a.mp4": "unreadable",
    "zip://a.mp4::/no/such.zip": "missing",
    "tar://a.mp4": "unreadable",
    "dir://a.mp4": "bad_address",
    "reference://a.mp4": "bad_address",
    "blockcache://a.mp4": "bad_address",
    "github://a.mp4": "bad_address",
    "ftp://127.0.0.1:1/a.mp4": "unreachable",
    "memory://no/such.mp4": "missing",
    "/videos/a\0b.mp4": "bad_address",
    "~\0/a.mp4": "bad_address",
    "file:///videos/a\0b.mp4": "bad_address",
    "n" * 300 + ".mp4": "bad_address",
    "/videos" + "/a" * 3000 + ".mp4": "bad_address",
    "no/such.mp4": "missing",
    "~nobody-of-this-name/a.mp4": "missing",
    "://a.mp4": "missing",
    "/": "not_a_file",
    "/dev/null": "not_a_file",
    "s3://": "not_a_file",
    "s3://UPPER CASE!/a.mp4": "bad_address",
    "data:text/plain,x": "missing",
}


def fetch(uri: str, scratch: Path) -> FetchError:
    fetcher = Fetcher(StorageOptions(attempts=1), scratch, 10**6, RetryPolicy(2, sleep=lambda _: None))
    with pytest.raises(FetchError) as caught, fetcher.fetch(uri):
        pytest.fail("the block was entered")
    return caught.value


def resolve(*uris: str) -> list[str]:
    table = pa.table({"video_id": uris, "uri": uris})
    for field in list(CANONICAL)[2:]:
        table = table.append_column(field, pa.nulls(len(uris), field.type))
    tokens: list[str] = resolve_content_ids(table, StorageOptions(attempts=1))["content_id"].to_pylist()
    return tokens


@pytest.mark.parametrize("uri", ODD, ids=lambda uri: ascii(uri[:30]))
def test_odd_address_is_failure_of_its_row(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "plantedID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plantedSECRET")
    error = fetch(uri, tmp_path)
    # Not permanent: the address may be corrected, or the missing package installed, while the content stays.
    assert (error.code, error.permanent) == (ODD[uri], False), error
    assert "AWS" not in error.message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_odd_addresses_do_not_stop_planning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "plantedID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plantedSECRET")
    (tmp_path / "a.mp4").write_bytes(b"a")
    odd = [uri for uri in ODD if uri not in ("/", "/dev/null")]
    with caplog.at_level(logging.WARNING, "kvq_batch"):
        tokens = resolve(str(tmp_path / "a.mp4"), *odd)
    assert tokens[0].startswith("stat:1-")
    assert set(tokens[1:]) == {UNKNOWN_CONTENT}
    (record,) = caplog.records
    message = record.getMessage()
    assert f"of {len(tokens)} videos cannot be fetched" in message
    assert "gs:// needs the package gcsfs; install it" in message
    assert "foo:// is not supported" in message


def test_bucket_that_cannot_exist_does_not_stop_planning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "plantedID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "plantedSECRET")
    (tmp_path / "a.mp4").write_bytes(b"a")
    # As many as are found by a listing of their bucket.
    odd = [f"s3://UPPER CASE!/{number}.mp4" for number in range(MIN_VIDEOS_TO_LIST)]
    tokens = resolve(str(tmp_path / "a.mp4"), *odd)
    assert tokens[0].startswith("stat:1-")
    assert set(tokens[1:]) == {UNKNOWN_CONTENT}


@pytest.mark.parametrize(
    ("uris", "message"),
    [
        (["gs://b/1.mp4", "GS://b/2.mp4"], r"gs:// needs the package gcsfs; install it .*\(2 videos\)"),
        (["az://b/1.mp4", "foo://b/2.mp4"], r"needs the package adlfs.*foo:// is not supported"),
        (["sftp://h/1.mp4"], "paramiko"),
    ],
)
def test_catalog_without_usable_address_is_rejected(uris: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve(*uris)
    # Also if the catalog has content ids, so that no store is asked.
    table = pa.table({"video_id": uris, "uri": uris, "content_id": ["theirs"] * len(uris)})
    for field in list(CANONICAL)[3:]:
        table = table.append_column(field, pa.nulls(len(uris), field.type))
    with pytest.raises(SpecError, match=message):
        resolve_content_ids(table, StorageOptions())


@pytest.mark.parametrize("scheme", ["file", "local", "s3", "S3A", "http", "HTTPS", "memory", "zip", "ftp"])
def test_schemes_that_can_be_opened(scheme: str) -> None:
    assert unsupported_scheme(f"{scheme}://x") is None


def test_archive_in_a_chain_is_read(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "videos.zip", "w") as archive:
        archive.writestr("a.mp4", b"data")
    fetcher = Fetcher(StorageOptions(), tmp_path, 10**6)
    with fetcher.fetch(f"zip://a.mp4::{tmp_path}/videos.zip") as video:
        assert video.path.read_bytes() == b"data"
    (tmp_path / "videos.zip").write_bytes(b"not a zip file")
    assert fetch(f"zip://b.mp4::{tmp_path}/videos.zip", tmp_path).code == "unreadable"


class OddError(Exception):
    """An exception that no other package knows, as clients of stores have them."""

    def __init__(self, status_code: int | None = None) -> None:
        super().__init__("denied by policy 7")
        self.status_code = status_code


class OddFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """A file system whose every operation fails with an exception of its own."""

    protocol = "odd"
    cachable = False
    error: Exception = OddError()

    def _fail(self, *arguments: object, **options: object) -> object:
        raise self.error

    info = find = ls = open = isdir = exists = makedirs = pipe = cat_file = _fail


@pytest.fixture(
    params=[OddError(), OddError(403), OddError(503), KeyError("x"), EOFError(), RecursionError()], ids=repr
)
def odd_error(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Exception:
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    monkeypatch.setattr(OddFileSystem, "error", request.param)
    error: Exception = request.param
    return error


def test_exceptions_of_other_file_systems_are_translated(odd_error: Exception, tmp_path: Path) -> None:
    status = getattr(odd_error, "status_code", None)
    error = fetch("odd://a.mp4", tmp_path)
    assert error.code == {403: "forbidden", 503: "unreachable"}.get(status or 0, "unreadable")
    assert type(odd_error).__name__ in error.message
    with pytest.raises(SpecError, match="odd://v"):
        list_files("odd://v", StorageOptions())
    for action in (
        lambda: read_file("odd://v", StorageOptions(), RetryPolicy(1)),
        lambda: put_file("odd://v/x", b"", StorageOptions(), RetryPolicy(1)),
    ):
        with pytest.raises(FOREIGN_ERRORS) as caught:
            action()
        assert isinstance(caught.value, UnknownStoreError)
        assert caught.value.__cause__ is odd_error
