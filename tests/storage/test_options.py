"""Storage options: the same addresses and errors for fsspec and delta-rs."""

import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from kvq_batch.config.job import Storage
from kvq_batch.domain.errors import SpecError
from kvq_batch.storage.masking import mask_rows
from kvq_batch.storage.options import (
    StorageOptions,
    absolute,
    check_reachable,
    delta_options,
    display_uri,
    filesystem,
    join,
    translate_storage_errors,
)
from tests.support.s3 import BUCKET, S3Location, S3Server

UNREACHABLE = StorageOptions(endpoint_url="http://127.0.0.1:1", region="us-east-1")


def test_options_of_a_job_contain_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    options = StorageOptions.from_spec(Storage(endpoint_url="http://store:9000", region="r", anonymous=True))
    assert options == StorageOptions("http://store:9000", "r", True)
    assert pickle.loads(pickle.dumps(options)) == options
    assert "planted" not in repr(options) + str(delta_options("s3://b/t", options))


def test_endpoint_with_credentials_is_rejected() -> None:
    with pytest.raises(SpecError, match=r"use https://store and set AWS_PROFILE") as caught:
        StorageOptions.from_spec(Storage(endpoint_url="https://user:planted@store"))
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://b/a b#c?d.mp4", "s3://b/a b#c?d.mp4"),
        ("s3://b/k.mp4?token=1", "s3://b/k.mp4?token=1"),
        ("s3://key:secret@b/k.mp4", "s3://b/k.mp4"),
        ("s3://b/at@sign.mp4", "s3://b/at@sign.mp4"),
        ("s3://b/k?versionId=3&X-Amz-Signature=ab&X-Amz-Credential=k%2Fx", "s3://b/k?versionId=3"),
        (
            "https://u:p@w@host/v.mp4?a=1&Signature=x&Expires=3&AWSAccessKeyId=y#t=1",
            "https://host/v.mp4?a=1#t=1",
        ),
        ("https://host/v.mp4?sig=abc&sp=r", "https://host/v.mp4"),
        ("https://host/v.mp4?sp=r&st=2026&md5=x&expires=new", "https://host/v.mp4?sp=r&st=2026&md5=x&expires=new"),
        ("https://host/v.mp4?TOKEN=abc", "https://host/v.mp4"),
        ("https://host?token=user@example.org", "https://host"),
        ("/videos/a?token=b.mp4", "/videos/a?token=b.mp4"),
    ],
)
def test_display_uri_has_no_secrets(uri: str, shown: str) -> None:
    assert display_uri(uri) == shown
    table = pa.table({"uri": [None, uri, "s3://b/x"], "other": [1, 2, 3]})
    table = mask_rows(pa.concat_tables([table, table]))
    assert table["uri"].to_pylist() == [None, shown, "s3://b/x"] * 2
    assert table["other"].to_pylist() == [1, 2, 3] * 2


def test_addresses_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == absolute(f"file://{tmp_path}/b/") == str(tmp_path / "b")
    assert absolute("s3://b/p/") == "s3://b/p"
    assert join("s3://b/p/", "/x") == "s3://b/p/x"
    assert filesystem("a", StorageOptions())[1] == str(tmp_path / "a")


def test_unknown_protocol_is_rejected() -> None:
    with pytest.raises(SpecError, match="nosuch://bucket"):
        filesystem("nosuch://bucket/key", StorageOptions())


def test_delta_and_fsspec_use_the_same_path(s3_prefix: S3Location) -> None:
    uri = f"{s3_prefix.uri}/table"
    write_deltalake(uri, pa.table({"a": [1]}), storage_options=delta_options(uri, s3_prefix.options))
    file_system, path = filesystem(uri, s3_prefix.options)
    assert any(name.endswith(".parquet") for name in file_system.ls(path, detail=False))


def test_profile_works_for_both_libraries(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text(
        f"[nightly]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_PROFILE", "nightly")
    # Other options, so that fsspec does not return its cached client with the keys of the environment.
    options = StorageOptions(s3_server.endpoint_url, "eu-west-1")
    location = S3Location(s3_server.location().uri, options)
    location.put("x", b"1")
    settings = delta_options(location.uri, options)
    write_deltalake(f"{location.uri}/table", pa.table({"a": [1]}), storage_options=settings)
    assert s3_server.secret_key not in str(settings)
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(SpecError, match="no-such-profile"):
        delta_options(location.uri, StorageOptions(s3_server.endpoint_url))


class TestErrors:
    """Every error of a store becomes a SpecError with the address and a hint."""

    @pytest.mark.parametrize("library", ["fsspec", "delta"])
    def test_no_bucket(self, s3_server: S3Server, library: str) -> None:
        self.assert_rejected("s3://no-such-bucket/t", s3_server.options, library, "the bucket does not exist")

    @pytest.mark.parametrize("library", ["fsspec", "delta"])
    def test_unreachable(self, s3_server: S3Server, library: str) -> None:
        self.assert_rejected(f"s3://{BUCKET}/t", UNREACHABLE, library, "endpoint_url")

    @pytest.mark.parametrize("library", ["fsspec", "delta"])
    @pytest.mark.parametrize("key", ["reader", "unknown", "wrong secret"])
    def test_denied(self, s3_server: S3Server, library: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = {
            "reader": (s3_server.reader_access_key, s3_server.reader_secret_key),
            "unknown": ("NOBODYKNOWSME", "planted-secret"),
            "wrong secret": (s3_server.access_key, "planted-secret"),
        }
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[key][0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[key][1])
        options = StorageOptions(s3_server.endpoint_url, f"denied-{key.split()[0]}")
        message = self.assert_rejected(f"s3://{BUCKET}/secret/t", options, library, "access is denied")
        assert not any(secret in message for secret in keys[key])

    @pytest.mark.parametrize("library", ["fsspec", "delta"])
    def test_no_credentials(self, s3_server: S3Server, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        options = StorageOptions(s3_server.endpoint_url, "nobody")
        self.assert_rejected(f"s3://{BUCKET}/t", options, library, "no credentials found; set AWS_PROFILE")

    def test_folder_without_permission(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(SpecError, match="file/below: does not exist"),
            translate_storage_errors(f"{tmp_path}/file/below"),
        ):
            (tmp_path / "file" / "below").stat()

    def test_reachable_stores_pass(self, s3_prefix: S3Location, tmp_path: Path) -> None:
        check_reachable(s3_prefix.uri, s3_prefix.options)
        check_reachable(f"s3://{BUCKET}", s3_prefix.options)
        check_reachable(f"{tmp_path}/not/made/yet", StorageOptions())

    def assert_rejected(self, uri: str, options: StorageOptions, library: str, expected: str) -> str:
        with pytest.raises(SpecError) as caught:
            _access(library, uri, options)
        message = str(caught.value)
        assert uri in message
        assert expected in message
        return message


def _access(library: str, uri: str, options: StorageOptions) -> None:
    if library == "fsspec":
        check_reachable(uri, options)
    else:
        with translate_storage_errors(uri):
            DeltaTable(uri, storage_options={**delta_options(uri, options), "max_retries": "1"})
